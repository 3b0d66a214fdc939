#include "awp/inverse.hpp"

#include <vector>

#include "awp/matmul.hpp"

namespace awp {

namespace {

constexpr std::size_t kDirect = 48;  // below this Gauss-Jordan elimination is as quick

using Matrix = std::vector<double>;

// A block of a larger matrix, n x n from (first, first).
struct Block {
  View<double> whole;
  std::size_t first, n;
  double* row(std::size_t i) const { return whole.row(first + i) + first; }
};

// A positive definite matrix needs no pivots.
void invert_directly(const Block& a) {
  for (std::size_t c = 0; c < a.n; ++c) {
    double* pivot = a.row(c);
    const double scale = 1 / pivot[c];
    pivot[c] = 1;
    for (std::size_t j = 0; j < a.n; ++j) pivot[j] *= scale;
    for (std::size_t i = 0; i < a.n; ++i) {
      if (i == c) continue;
      double* row = a.row(i);
      const double factor = row[c];
      row[c] = 0;
#pragma omp simd
      for (std::size_t j = 0; j < a.n; ++j) row[j] -= factor * pivot[j];
    }
  }
}

Matrix copy(const Block& a, std::size_t row, std::size_t column, std::size_t rows, std::size_t columns) {
  Matrix out(rows * columns);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < columns; ++j) out[i * columns + j] = a.row(row + i)[column + j];
  return out;
}

Matrix transposed(const Matrix& a, std::size_t rows, std::size_t columns) {
  Matrix out(a.size());
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < columns; ++j) out[j * rows + i] = a[i * columns + j];
  return out;
}

Matrix times(const Matrix& a, const Matrix& b, std::size_t inner, std::size_t threads) {
  const std::size_t rows = a.size() / inner, columns = b.size() / inner;
  Matrix out(rows * columns);
  product<double>({a.data(), rows, inner}, {b.data(), inner, columns}, {out.data(), rows, columns}, threads);
  return out;
}

// [A B; B^T D]: with T = A^-1 B and S = D - B^T T the inverse is [A^-1 + T S^-1 T^T, -T S^-1; ., S^-1].
void invert(const Block& a, std::size_t threads) {
  if (a.n <= kDirect) return invert_directly(a);
  const std::size_t n = a.n / 2, m = a.n - n;
  const Block corner{a.whole, a.first, n}, rest{a.whole, a.first + n, m};
  const Matrix b = copy(a, 0, n, n, m);
  invert(corner, threads);
  const Matrix t = times(copy(a, 0, 0, n, n), b, n, threads), t_transposed = transposed(t, n, m);
  const Matrix taken = times(transposed(b, n, m), t, n, threads);
  for (std::size_t i = 0; i < m; ++i)
    for (std::size_t j = 0; j < m; ++j) rest.row(i)[j] -= taken[i * m + j];
  invert(rest, threads);
  const Matrix cross = times(t, copy(a, n, n, m, m), m, threads), added = times(cross, t_transposed, m, threads);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) corner.row(i)[j] += added[i * n + j];
    for (std::size_t j = 0; j < m; ++j) a.row(i)[n + j] = a.row(n + j)[i] = -cross[i * m + j];
  }
}

}  // namespace

void invert(View<double> a, std::size_t threads) { invert(Block{a, 0, a.rows}, threads); }

}  // namespace awp
