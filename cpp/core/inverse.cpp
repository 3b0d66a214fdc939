#include "awp/inverse.hpp"

#include <algorithm>
#include <vector>

#include "awp/cholesky.hpp"
#include "awp/matmul.hpp"

namespace awp {

namespace {

constexpr std::size_t kBlock = 64, kRows = 192;

// L^-1 of the lower triangle of l, zeros above. What finished rows contribute to a block of rows is a product; within the
// block they are substituted.
template <class T> std::vector<T> triangular_inverse(View<const T> l, std::size_t threads) {
  const std::size_t n = l.rows;
  std::vector<T> inverse(n * n), factors, taken;
  for (std::size_t first = 0; first < n; first += kBlock) {
    const std::size_t width = std::min(kBlock, n - first);
    T* block = &inverse[first * n];
    if (first > 0) {
      factors.clear();
      for (std::size_t r = 0; r < width; ++r) factors.insert(factors.end(), l.row(first + r), l.row(first + r) + first);
      taken.resize(width * n);
      product<T>({factors.data(), width, first}, {inverse.data(), first, n}, {taken.data(), width, n}, threads);
      for (std::size_t i = 0; i < width * n; ++i) block[i] = -taken[i];
    }
    for (std::size_t r = 0; r < width; ++r) {
      const T* factor = l.row(first + r) + first;
      T* row = block + r * n;
      const std::size_t end = first + r + 1;
      row[end - 1] += 1;
      for (std::size_t s = 0; s < r; ++s) {
        const T share = factor[s];
        const T* above = block + s * n;
#pragma omp simd
        for (std::size_t j = 0; j < end; ++j) row[j] -= share * above[j];
      }
      const T scale = 1 / factor[r];
      for (std::size_t j = 0; j < end; ++j) row[j] *= scale;
    }
  }
  return inverse;
}

// out = X^T X for a lower triangular X: rows of X above an output's block of rows have nothing for it.
template <class T> void lower_gram(const std::vector<T>& x, View<T> out, std::size_t threads) {
  const std::size_t n = out.rows;
  std::vector<T> left;
  for (std::size_t first = 0; first < n; first += kRows) {
    const std::size_t width = std::min(kRows, n - first), inner = n - first;
    left.resize(width * inner);
    for (std::size_t k = 0; k < inner; ++k)
      for (std::size_t r = 0; r < width; ++r) left[r * inner + k] = x[(first + k) * n + first + r];
    product<T>({left.data(), width, inner}, {x.data() + first * n, inner, n}, out.strip(first, width), threads);
  }
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < i; ++j) out.row(j)[i] = out.row(i)[j];
}

}  // namespace

template <class T> void invert(View<T> a, std::size_t threads) {
  CholeskyScratch<T> scratch;
  cholesky<T>(a.data, a.rows, scratch);
  lower_gram<T>(triangular_inverse<T>(a, threads), a, threads);
}

template void invert(View<float>, std::size_t);
template void invert(View<double>, std::size_t);

}  // namespace awp
