// Cholesky factors of symmetric positive definite matrices: one thread's own, or a large one by all threads of a pool.
#pragma once
#include <cstddef>

#include "awp/parallel.hpp"

namespace awp {

// Overwrites the upper triangle of a (k x k, row-major, stride k) by the first `rows` rows of U with A = U^T U and, in
// the rows after them, by what is left of A: its Schur complement. Below the diagonal nothing is written, and what is
// there does not matter. A pivot that rounding has made too small or negative is raised to the rounding error of its
// diagonal entry.
template <class T> void cholesky(T* a, std::size_t k, std::size_t rows);
template <class T> void cholesky(T* a, std::size_t k) { cholesky(a, k, k); }
// The bits do not depend on the number of threads, but are not those of the above, which finishes fewer rows at a time.
template <class T> void cholesky(T* a, std::size_t k, ThreadPool& pool);

}  // namespace awp
