// Cholesky factors of symmetric positive definite matrices, one thread's share of the work.
#pragma once
#include <vector>

#include "awp/gemm.hpp"

namespace awp {

// Scratch memory of one thread; it grows to the largest factor.
template <class T> struct CholeskyScratch {
  std::vector<T> above, update, panel;
  Workspace workspace;
};

// Overwrites the lower triangle of a (k x k, row-major, stride k) by L with A = L L^T; the rest is neither read nor
// written. A pivot that rounding has made too small or negative is raised to the rounding error of its diagonal entry.
template <class T> void cholesky(T* a, std::size_t k, CholeskyScratch<T>& scratch);

}  // namespace awp
