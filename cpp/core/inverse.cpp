#include "awp/inverse.hpp"

#include <vector>

#include "awp/matmul.hpp"

namespace awp {

namespace {

constexpr std::size_t kDirect = 48;  // below this Gauss-Jordan elimination is as quick

template <class T> using Matrix = std::vector<T>;

// A block of a larger matrix, n x n from (first, first).
template <class T> struct Block {
  View<T> whole;
  std::size_t first, n;
  T* row(std::size_t i) const { return whole.row(first + i) + first; }
};

// A positive definite matrix needs no pivots.
template <class T> void invert_directly(const Block<T>& a) {
  for (std::size_t c = 0; c < a.n; ++c) {
    T* pivot = a.row(c);
    const T scale = 1 / pivot[c];
    pivot[c] = 1;
    for (std::size_t j = 0; j < a.n; ++j) pivot[j] *= scale;
    for (std::size_t i = 0; i < a.n; ++i) {
      if (i == c) continue;
      T* row = a.row(i);
      const T factor = row[c];
      row[c] = 0;
#pragma omp simd
      for (std::size_t j = 0; j < a.n; ++j) row[j] -= factor * pivot[j];
    }
  }
}

template <class T>
Matrix<T> copy(const Block<T>& a, std::size_t row, std::size_t column, std::size_t rows, std::size_t columns) {
  Matrix<T> out(rows * columns);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < columns; ++j) out[i * columns + j] = a.row(row + i)[column + j];
  return out;
}

template <class T> Matrix<T> transposed(const Matrix<T>& a, std::size_t rows, std::size_t columns) {
  Matrix<T> out(a.size());
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < columns; ++j) out[j * rows + i] = a[i * columns + j];
  return out;
}

template <class T>
Matrix<T> times(const Matrix<T>& a, const Matrix<T>& b, std::size_t inner, std::size_t threads) {
  const std::size_t rows = a.size() / inner, columns = b.size() / inner;
  Matrix<T> out(rows * columns);
  product<T>({a.data(), rows, inner}, {b.data(), inner, columns}, {out.data(), rows, columns}, threads);
  return out;
}

// [A B; B^T D]: with T = A^-1 B and S = D - B^T T the inverse is [A^-1 + T S^-1 T^T, -T S^-1; ., S^-1].
template <class T> void invert(const Block<T>& a, std::size_t threads) {
  if (a.n <= kDirect) return invert_directly(a);
  const std::size_t n = a.n / 2, m = a.n - n;
  const Block<T> corner{a.whole, a.first, n}, rest{a.whole, a.first + n, m};
  const Matrix<T> b = copy(a, 0, n, n, m);
  invert(corner, threads);
  const Matrix<T> t = times(copy(a, 0, 0, n, n), b, n, threads), t_transposed = transposed(t, n, m);
  const Matrix<T> taken = times(transposed(b, n, m), t, n, threads);
  for (std::size_t i = 0; i < m; ++i)
    for (std::size_t j = 0; j < m; ++j) rest.row(i)[j] -= taken[i * m + j];
  invert(rest, threads);
  const Matrix<T> cross = times(t, copy(a, n, n, m, m), m, threads), added = times(cross, t_transposed, m, threads);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) corner.row(i)[j] += added[i * n + j];
    for (std::size_t j = 0; j < m; ++j) a.row(i)[n + j] = a.row(n + j)[i] = -cross[i * m + j];
  }
}

}  // namespace

template <class T> void invert(View<T> a, std::size_t threads) { invert(Block<T>{a, 0, a.rows}, threads); }

template void invert(View<float>, std::size_t);
template void invert(View<double>, std::size_t);

}  // namespace awp
