#include "awp/cholesky.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "gemm_kernels.hpp"

namespace awp {

namespace {

// Rows that are finished together: few where a matrix is a core's own and small, more where all cores read a large one
// from memory. Those above them are read in place, kDepth at a time: a strip of them stays in L1 while it is taken from
// all rows of the band.
constexpr Index kFew = 16, kMany = 96, kDepth = 192;
constexpr Index kShare = 240;  // columns of a band that are one thread's task

// y -= a_0 x_0 + a_1 x_1 + a_2 x_2 + a_3 x_3: four rows at a time, since memory is what limits it.
template <class T> void subtract(T* y, const T* x, Index stride, const T* a, Index size) {
  const T *x0 = x, *x1 = x0 + stride, *x2 = x1 + stride, *x3 = x2 + stride;
  const T a0 = a[0], a1 = a[stride], a2 = a[2 * stride], a3 = a[3 * stride];
#pragma omp simd
  for (Index j = 0; j < size; ++j) y[j] -= (a0 * x0[j] + a1 * x1[j]) + (a2 * x2[j] + a3 * x3[j]);
}

// The rows [first, first + rows) of A (k x k), to become rows of U; the first `finished` rows have become so.
template <class T> struct Band {
  T* a;
  Index k, finished, first, rows;

  T* row(Index i) const { return a + (first + i) * k; }
};

// Takes from row i of the band, in the columns [begin, end), the rows of the band above it.
template <class T> void take_rows(const Band<T>& band, Index i, Index begin, Index end) {
  T* row = band.row(i);
  const T* factors = band.a + band.first * band.k + band.first + i;
  Index above = 0;
  for (; above + 4 <= i; above += 4)
    subtract(row + begin, band.row(above) + begin, band.k, factors + above * band.k, end - begin);
  for (; above < i; ++above) {
    const T *x = band.row(above), factor = factors[above * band.k];
#pragma omp simd
    for (Index j = begin; j < end; ++j) row[j] -= factor * x[j];
  }
}

// Finishes the band's diagonal block, from which the rows above have been taken; scales: 1 / U_ii.
template <class T> void finish_diagonal(const Band<T>& band, T* scales) {
  constexpr T eps = std::numeric_limits<T>::epsilon();
  const Index first = band.first;
  for (Index i = 0; i < band.rows; ++i) {
    T* row = band.row(i) + first;
    const T floor = std::max(eps * std::abs(row[i]), std::numeric_limits<T>::min());
    take_rows(band, i, first + i, first + band.rows);
    row[i] = std::max(row[i], floor);
    scales[i] = T(1) / std::sqrt(row[i]);
    for (Index j = i; j < band.rows; ++j) row[j] *= scales[i];
  }
}

// The same for columns behind the block.
template <class T> void finish_columns(const Band<T>& band, const T* scales, Index begin, Index end) {
  for (Index i = 0; i < band.rows; ++i) {
    take_rows(band, i, begin, end);
    T* row = band.row(i);
    for (Index j = begin; j < end; ++j) row[j] *= scales[i];
  }
}

// take_finished for a matrix so small that a kernel would read past its end.
template <class T> void take_few(const Band<T>& band, Index begin, Index end) {
  for (Index i = 0; i < band.rows; ++i)
    for (Index l = 0; l < band.finished; ++l) {
      const T* above = band.a + l * band.k;
      for (Index j = std::max(band.first + i, begin); j < end; ++j) band.row(i)[j] -= above[band.first + i] * above[j];
    }
}

template <class T> using Kernel = VectorKernel<PlainOperand<T>>;

// A call of its own: inlined, GCC 12 takes the ends of the sums for out of bounds where vectors are short.
template <class T>
[[gnu::noinline]] void add_products(Slice<T> a, Slice<T> b, Index depth, Index width, const OutBlock<T>& out) {
  Kernel<T>::template run<1>(a, b, depth, width, out, {b.data, 0});
}

// Takes from the band, in the columns [begin, end), what the finished rows contribute: A_ij -= sum_l U_li U_lj.
template <class T> void take_finished(const Band<T>& band, Index begin, Index end) {
  constexpr Index stride = Kernel<T>::kPanel, unit = Kernel<T>::kPanelUnit, height = Kernel<T>::kBlockRows;
  if (band.finished == 0) return;
  if (band.k < std::max(unit, height)) return take_few(band, begin, end);
  alignas(64) T sums[kMany * stride];
  for (Index column = begin; column < end; column += stride) {
    const Index columns = std::min(stride, end - column), padded = (columns + unit - 1) / unit * unit;
    const Index rows = std::min(band.rows, column + columns - band.first);  // those that reach these columns
    for (Index start = 0; start < band.finished; start += kDepth) {
      const T* from = band.a + start * band.k;
      const Index depth = std::min(kDepth, band.finished - start);
      for (Index row = 0; row < rows; row += height)
        add_products<T>({from + band.first + row, band.k}, {from + column, band.k}, depth, padded,
                        {sums + row * stride, stride, std::min(height, rows - row), columns, start > 0});
    }
    for (Index row = 0; row < rows; ++row) {
      T* to = band.row(row) + column;
#pragma omp simd
      for (Index j = 0; j < columns; ++j) to[j] -= sums[row * stride + j];
    }
  }
}

}  // namespace

template <class T> void cholesky(T* a, std::size_t size, std::size_t wanted) {
  const auto k = static_cast<Index>(size), end = static_cast<Index>(wanted);
  T scales[kFew];
  for (Index first = 0, rows; first < k; first += rows) {
    rows = std::min(kFew, (first < end ? end : k) - first);
    const Band<T> band{a, k, std::min(first, end), first, rows};
    take_finished(band, first, k);
    if (first >= end) continue;
    finish_diagonal(band, scales);
    finish_columns(band, scales, first + rows, k);
  }
}

template <class T> void cholesky(T* a, std::size_t size, ThreadPool& pool) {
  const auto k = static_cast<Index>(size);
  T scales[kMany];
  for (Index first = 0; first < k; first += kMany) {
    const Band<T> band{a, k, first, first, std::min(kMany, k - first)};
    const Index behind = first + band.rows;
    take_finished(band, first, behind);
    finish_diagonal(band, scales);
    pool.parallel_for(static_cast<std::size_t>((k - behind + kShare - 1) / kShare), [&](std::size_t task, std::size_t) {
      const Index begin = behind + static_cast<Index>(task) * kShare, end = std::min(k, begin + kShare);
      take_finished(band, begin, end);
      finish_columns(band, scales, begin, end);
    });
  }
}

template void cholesky(float*, std::size_t, std::size_t);
template void cholesky(double*, std::size_t, std::size_t);
template void cholesky(double*, std::size_t, ThreadPool&);

}  // namespace awp
