// Inverses of symmetric positive definite matrices.
#pragma once
#include "awp/matrix.hpp"
#include "awp/parallel.hpp"

namespace awp {

// Overwrites a (n, n), symmetric positive definite, by its inverse L^-T L^-1 from the Cholesky factor L: as accurate as
// the condition number allows, where inverting blocks by their Schur complements loses that number once more.
// Cost about n^3 / 2 multiply-adds, all but the diagonal blocks in products of fixed tiles, spread over the threads; no
// second matrix.
template <class T> void invert(View<T> a, std::size_t threads, const Checkpoint& checkpoint = {});

}  // namespace awp
