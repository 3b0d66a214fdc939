// Inverses of symmetric positive definite matrices, by products alone.
#pragma once
#include "awp/matrix.hpp"

namespace awp {

// Overwrites a (n, n), symmetric positive definite, by its inverse. Cost 4/3 n^3 multiply-adds, nearly all in products.
template <class T> void invert(View<T> a, std::size_t threads);

}  // namespace awp
