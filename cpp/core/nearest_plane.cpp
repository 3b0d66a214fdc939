#include <algorithm>
#include <vector>

#include "awp/cholesky.hpp"
#include "awp/matmul.hpp"
#include "awp/quantize.hpp"

namespace awp {

namespace {

constexpr std::size_t kTileRows = 64, kBlock = 64;

template <class T> T nearest(const Grid<T>& grid, std::size_t row, std::size_t column, T z) {
  const std::size_t group = column / grid.group_size;
  const T scale = grid.scales.row(row)[group], zero = grid.zeros.row(row)[group];
  return (nearest_code(z, scale, zero, static_cast<T>(grid.top)) - zero) * scale;
}

// y += a x.
template <class T> void add(T* y, T a, const T* x, std::size_t size) {
#pragma omp simd
  for (std::size_t j = 0; j < size; ++j) y[j] += a * x[j];
}

// Up to kTileRows rows side by side: line i of `errors` and `pull` belongs to the i-th column in the order.
template <class T> class DenseTile {
 public:
  DenseTile(View<const T> lower, const Order& order, const Grid<T>& grid)
      : lower_(lower), order_(order), grid_(grid), errors_(order.size() * kTileRows), pull_(errors_.size()),
        update_(errors_.size()) {}

  void run(std::size_t first, View<const T> target, View<T> theta) {
    std::fill(pull_.begin(), pull_.end(), T(0));
    std::fill(errors_.begin(), errors_.end(), T(0));
    for (std::size_t begin = 0; begin < order_.size(); begin += kBlock) {
      const std::size_t end = std::min(begin + kBlock, order_.size());
      for (std::size_t i = begin; i < end; ++i) {
        round_column(i, first, target, theta);
        for (std::size_t later = i + 1; later < end; ++later)
          add(pull_.data() + later * kTileRows, lower_.row(later)[i], errors_.data() + i * kTileRows, kTileRows);
      }
      if (end < order_.size()) pass_on(begin, end);
    }
  }

 private:
  void round_column(std::size_t i, std::size_t first, View<const T> target, View<T> theta) {
    const std::size_t column = order_[i];
    const T pivot = lower_.row(i)[i];
    for (std::size_t r = 0; r < target.rows; ++r) {
      const T wanted = target.row(r)[column] + pull_[i * kTileRows + r] / pivot;
      const T rounded = nearest(grid_, first + r, column, wanted);
      theta.row(r)[column] = rounded;
      errors_[i * kTileRows + r] = target.row(r)[column] - rounded;
    }
  }

  void pass_on(std::size_t begin, std::size_t end) {
    const auto m = static_cast<Index>(order_.size() - end), inner = static_cast<Index>(end - begin);
    const auto rows = static_cast<Index>(kTileRows), stride = static_cast<Index>(lower_.cols);
    const PackedMatrix<T> packed(errors_.data() + begin * kTileRows, inner, rows, rows);
    multiply<T>(lower_.row(end) + begin, m, stride, packed, update_.data(), rows, workspace_);
    add(pull_.data() + end * kTileRows, T(1), update_.data(), static_cast<std::size_t>(m * rows));
  }

  View<const T> lower_;
  const Order& order_;
  const Grid<T>& grid_;
  std::vector<T> errors_, pull_, update_;
  Workspace workspace_;
};

// One row on its support; index a counts the support's columns backwards, from the last to be rounded.
template <class T> struct MaskedRow {
  std::vector<std::size_t> columns;
  std::vector<T> upper, step, errors;

  void run(View<const T> gram, const Order& order, const std::uint8_t* mask) {
    columns.clear();
    for (std::size_t i = order.size(); i-- > 0;)
      if (mask[order[i]]) columns.push_back(order[i]);
    const std::size_t k = columns.size();
    upper.resize(k * k);
    for (std::size_t a = 0; a < k; ++a)
      for (std::size_t b = a; b < k; ++b) upper[a * k + b] = gram.row(columns[a])[columns[b]];
    cholesky(upper.data(), k);
  }

  // step = -(U^T U)^{-1} gradient: what the refit adds.
  void refit(const T* gradient) {
    const std::size_t k = columns.size();
    step.resize(k);
    for (std::size_t a = 0; a < k; ++a) step[a] = -gradient[columns[a]];
    for (std::size_t a = 0; a < k; ++a) {
      const T* row = upper.data() + a * k;
      step[a] /= row[a];
      add(step.data() + a + 1, -step[a], row + a + 1, k - a - 1);
    }
    for (std::size_t a = k; a-- > 0;) step[a] = (step[a] - later(a, step)) / upper[a * k + a];
  }

  void round(const T* start, const Grid<T>& grid, std::size_t row, T* theta) {
    const std::size_t k = columns.size();
    errors.resize(k);
    for (std::size_t a = k; a-- > 0;) {
      const T target = start[columns[a]] + step[a];
      theta[columns[a]] = nearest(grid, row, columns[a], target + later(a, errors) / upper[a * k + a]);
      errors[a] = target - theta[columns[a]];
    }
  }

  // The sum over b > a of U_ab values_b.
  T later(std::size_t a, const std::vector<T>& values) const {
    const std::size_t k = columns.size();
    const T* line = upper.data() + a * k;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::size_t b = a + 1; b < k; ++b) sum += line[b] * values[b];
    return sum;
  }
};

}  // namespace

template <class T>
void factor(View<const T> gram, const Order& order, View<T> upper, std::size_t threads, const Checkpoint& checkpoint) {
  // Of the matrix read backwards: its factor, turned over, has the rows that nearest plane wants.
  const std::size_t k = order.size();
  ThreadPool pool(threads, checkpoint);
  std::vector<double> backwards(k * k);
  pool.parallel_for(k, [&](std::size_t a, std::size_t) {
    for (std::size_t b = a; b < k; ++b) backwards[a * k + b] = gram.row(order[k - 1 - a])[order[k - 1 - b]];
  });
  cholesky(backwards.data(), k, pool);
  std::fill_n(upper.data, upper.size(), T(0));
  for (std::size_t i = 0; i < k; ++i)
    for (std::size_t j = i; j < k; ++j) upper.row(i)[j] = static_cast<T>(backwards[(k - 1 - j) * k + (k - 1 - i)]);
}

template <class T>
void nearest_plane(View<const T> target, View<const T> upper, const Order& order, const Grid<T>& grid, View<T> theta,
                   std::size_t threads, const Checkpoint& checkpoint) {
  const std::size_t d = order.size(), tiles = (target.rows + kTileRows - 1) / kTileRows;
  std::vector<T> lower(d * d);
  for (std::size_t i = 0; i < d; ++i)
    for (std::size_t j = i; j < d; ++j) lower[j * d + i] = upper.row(i)[j];
  ThreadPool pool(threads, checkpoint);
  std::vector<DenseTile<T>> scratch;
  for (std::size_t t = 0; t < pool.threads(); ++t) scratch.emplace_back(View<const T>{lower.data(), d, d}, order, grid);
  pool.parallel_for(tiles, [&](std::size_t tile, std::size_t thread) {
    const std::size_t first = tile * kTileRows, count = std::min(kTileRows, target.rows - first);
    scratch[thread].run(first, target.strip(first, count), theta.strip(first, count));
  });
}

template <class T>
void masked_nearest_plane(const LayerProblem<T>& problem, View<const T> start, Mask mask, const Order& order,
                          const Grid<T>& grid, View<T> theta, std::size_t threads,
                          const Checkpoint& checkpoint) {
  std::vector<T> residual(start.size()), gradient(start.size());
  for (std::size_t j = 0; j < start.size(); ++j) residual[j] = start.data[j] - problem.weight.data[j];
  product<T>({residual.data(), start.rows, start.cols}, problem.gram, {gradient.data(), start.rows, start.cols}, threads);
  std::fill_n(theta.data, theta.size(), T(0));
  ThreadPool pool(threads, checkpoint);
  std::vector<MaskedRow<T>> scratch(pool.threads());
  pool.parallel_for(start.rows, [&](std::size_t row, std::size_t thread) {
    MaskedRow<T>& part = scratch[thread];
    part.run(problem.gram, order, mask.row(row));
    part.refit(gradient.data() + row * start.cols);
    part.round(start.row(row), grid, row, theta.row(row));
  });
}

#define AWP_INSTANTIATE(T)                                                                                          \
  template void factor(View<const T>, const Order&, View<T>, std::size_t, const Checkpoint&);                        \
  template void nearest_plane(View<const T>, View<const T>, const Order&, const Grid<T>&, View<T>, std::size_t,      \
                              const Checkpoint&);                                                                    \
  template void masked_nearest_plane(const LayerProblem<T>&, View<const T>, Mask, const Order&, const Grid<T>&,      \
                                     View<T>, std::size_t, const Checkpoint&);
AWP_INSTANTIATE(float)
AWP_INSTANTIATE(double)
#undef AWP_INSTANTIATE

}  // namespace awp
