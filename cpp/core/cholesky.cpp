#include "awp/cholesky.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace awp {

namespace {

constexpr std::size_t kBlock = 32;

template <class T> T* room(std::vector<T>& buffer, std::size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

// y -= a_0 x_0 + a_1 x_1 + a_2 x_2 + a_3 x_3: four rows at a time, since memory is what limits it.
template <class T> void subtract(T* y, const T* x, std::size_t stride, const T* a, std::size_t size) {
  const T *x0 = x, *x1 = x0 + stride, *x2 = x1 + stride, *x3 = x2 + stride;
  const T a0 = a[0], a1 = a[stride], a2 = a[2 * stride], a3 = a[3 * stride];
#pragma omp simd
  for (std::size_t j = 0; j < size; ++j) y[j] -= (a0 * x0[j] + a1 * x1[j]) + (a2 * x2[j] + a3 * x3[j]);
}

// Factors a panel that is stored transposed: row c of p (width x m) is column c, from the diagonal block down.
template <class T> void factor_panel(T* p, std::size_t width, std::size_t m) {
  constexpr T eps = std::numeric_limits<T>::epsilon();
  for (std::size_t c = 0; c < width; ++c) {
    T* column = p + c * m;
    const T floor = std::max(eps * std::abs(column[c]), std::numeric_limits<T>::min());
    std::size_t before = 0;
    for (; before + 4 <= c; before += 4)
      subtract(column + c, p + before * m + c, m, p + before * m + c, m - c);
    for (; before < c; ++before) {
      const T* x = p + before * m;
      const T a = x[c];
#pragma omp simd
      for (std::size_t r = c; r < m; ++r) column[r] -= a * x[r];
    }
    const T scale = T(1) / std::sqrt(std::max(column[c], floor));
    column[c] = std::max(column[c], floor);
    for (std::size_t r = c; r < m; ++r) column[r] *= scale;
  }
}

}  // namespace

template <class T> void cholesky(T* a, std::size_t k, CholeskyScratch<T>& scratch) {
  for (std::size_t first = 0; first < k; first += kBlock) {
    const std::size_t width = std::min(kBlock, k - first), m = k - first;
    T* rows = a + first * k;
    T* update = room(scratch.update, m * width);
    if (first > 0) {  // what the finished columns take from this panel
      T* above = room(scratch.above, first * width);
      for (std::size_t c = 0; c < width; ++c)
        for (std::size_t j = 0; j < first; ++j) above[j * width + c] = rows[c * k + j];
      const auto inner = static_cast<Index>(first), outer = static_cast<Index>(width);
      const PackedMatrix<T> packed(above, inner, outer, outer);
      multiply<T>(rows, static_cast<Index>(m), static_cast<Index>(k), packed, update, outer, scratch.workspace);
    } else {
      std::fill_n(update, m * width, T(0));
    }
    T* panel = room(scratch.panel, m * width);
    for (std::size_t r = 0; r < m; ++r)
      for (std::size_t c = 0; c <= std::min(r, width - 1); ++c)
        panel[c * m + r] = rows[r * k + first + c] - update[r * width + c];
    factor_panel(panel, width, m);
    for (std::size_t r = 0; r < m; ++r)
      for (std::size_t c = 0; c <= std::min(r, width - 1); ++c) rows[r * k + first + c] = panel[c * m + r];
  }
}

template void cholesky(float*, std::size_t, CholeskyScratch<float>&);
template void cholesky(double*, std::size_t, CholeskyScratch<double>&);

}  // namespace awp
