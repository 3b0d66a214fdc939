#include "awp/cholesky.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "gemm_kernels.hpp"

namespace awp {

namespace {

// Rows that are finished together. Those above them are read in place, kDepth at a time: a strip of them stays in L1
// while it is taken from all kBlock rows.
constexpr Index kBlock = 16, kDepth = 192;

// y -= a_0 x_0 + a_1 x_1 + a_2 x_2 + a_3 x_3: four rows at a time, since memory is what limits it.
template <class T> void subtract(T* y, const T* x, Index stride, const T* a, Index size) {
  const T *x0 = x, *x1 = x0 + stride, *x2 = x1 + stride, *x3 = x2 + stride;
  const T a0 = a[0], a1 = a[stride], a2 = a[2 * stride], a3 = a[3 * stride];
#pragma omp simd
  for (Index j = 0; j < size; ++j) y[j] -= (a0 * x0[j] + a1 * x1[j]) + (a2 * x2[j] + a3 * x3[j]);
}

// Finishes `rows` rows of U from their diagonal block on, `size` long, from which the rows above have been taken.
template <class T> void finish(T* block, Index stride, Index rows, Index size) {
  constexpr T eps = std::numeric_limits<T>::epsilon();
  for (Index i = 0; i < rows; ++i) {
    T* row = block + i * stride;
    const T floor = std::max(eps * std::abs(row[i]), std::numeric_limits<T>::min());
    Index above = 0;
    for (; above + 4 <= i; above += 4)
      subtract(row + i, block + above * stride + i, stride, block + above * stride + i, size - i);
    for (; above < i; ++above) {
      const T *x = block + above * stride, a = x[i];
#pragma omp simd
      for (Index j = i; j < size; ++j) row[j] -= a * x[j];
    }
    const T scale = T(1) / std::sqrt(std::max(row[i], floor));
    row[i] = std::max(row[i], floor);
    for (Index j = i; j < size; ++j) row[j] *= scale;
  }
}

// subtract_finished for a matrix so small that a kernel would read past its end.
template <class T> void subtract_few(T* a, Index k, Index finished, Index first, Index rows) {
  for (Index i = first; i < first + rows; ++i)
    for (Index l = 0; l < finished; ++l)
      for (Index j = i; j < k; ++j) a[i * k + j] -= a[l * k + i] * a[l * k + j];
}

template <class T> using Kernel = VectorKernel<PlainOperand<T>>;

// A call of its own: inlined, GCC 12 takes the ends of the sums for out of bounds where vectors are short.
template <class T>
[[gnu::noinline]] void add_products(Slice<T> a, Slice<T> b, Index depth, Index width, const OutBlock<T>& out) {
  Kernel<T>::template run<1>(a, b, depth, width, out, {b.data, 0});
}

// Takes from the rows [first, first + rows) what the first `finished` rows contribute: A_ij -= sum_l U_li U_lj.
template <class T> void subtract_finished(T* a, Index k, Index finished, Index first, Index rows) {
  constexpr Index stride = Kernel<T>::kPanel, unit = Kernel<T>::kPanelUnit, height = Kernel<T>::kBlockRows;
  if (k < std::max(unit, height)) return subtract_few(a, k, finished, first, rows);
  alignas(64) T sums[kBlock * stride];
  for (Index column = first; column < k; column += stride) {
    const Index columns = std::min(stride, k - column), padded = (columns + unit - 1) / unit * unit;
    const Index end = std::min(rows, column + columns - first);  // rows that reach these columns
    for (Index start = 0; start < finished; start += kDepth) {
      const T* from = a + start * k;
      for (Index row = 0; row < end; row += height)
        add_products<T>({from + first + row, k}, {from + column, k}, std::min(kDepth, finished - start), padded,
                        {sums + row * stride, stride, std::min(height, end - row), columns, start > 0});
    }
    for (Index row = 0; row < end; ++row) {
      T* to = a + (first + row) * k + column;
#pragma omp simd
      for (Index j = 0; j < columns; ++j) to[j] -= sums[row * stride + j];
    }
  }
}

}  // namespace

template <class T> void cholesky(T* a, std::size_t size, std::size_t wanted) {
  const auto k = static_cast<Index>(size), end = static_cast<Index>(wanted);
  for (Index first = 0, rows; first < k; first += rows) {
    rows = std::min(kBlock, (first < end ? end : k) - first);
    const Index finished = std::min(first, end);
    if (finished > 0) subtract_finished(a, k, finished, first, rows);
    if (first < end) finish(a + first * k + first, k, rows, k - first);
  }
}

template void cholesky(float*, std::size_t, std::size_t);
template void cholesky(double*, std::size_t, std::size_t);

}  // namespace awp
