// Whole products on the thread pool.
#pragma once
#include "awp/gemm.hpp"
#include "awp/matrix.hpp"
#include "awp/parallel.hpp"

namespace awp {

// Packs b for the product, on all threads. P: float, double, bfloat16 (from float) or std::int8_t.
template <class P> PackedMatrix<P> pack(View<const External<P>> b, ThreadPool& pool);

// out = a b.
template <class P>
void product(View<const External<P>> a, View<const External<P>> b, View<Result<P>> out, std::size_t threads);

// Adds x^T x to the upper triangle of total (d, d), x (n, d).
template <class P> void add_gram(View<const External<P>> x, View<double> total, std::size_t threads);

}  // namespace awp
