#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "awp/matmul.hpp"
#include "awp/quantize.hpp"

namespace awp {

namespace {

constexpr std::size_t kTileRows = 32;

// The nearest float16 number, ties to even; infinity from 65520 up.
template <class T> T rounded_to_half(T x) {
  if (!(x < T(65520))) return std::numeric_limits<T>::infinity();
  int exponent = 0;
  std::frexp(x, &exponent);
  const T quantum = std::ldexp(T(1), std::max(exponent - 1, -14) - 10);
  return std::nearbyint(x / quantum) * quantum;
}

// C as a whole and cut into the groups' rows.
template <class T> struct PackedGram {
  PackedMatrix<T> whole;
  std::vector<PackedMatrix<T>> groups;

  PackedGram(View<const T> gram, std::size_t group_size, bool by_group, ThreadPool& pool) : whole(pack<T>(gram, pool)) {
    for (std::size_t first = 0; by_group && first < gram.rows; first += group_size)
      groups.push_back(pack<T>(gram.strip(first, group_size), pool));
  }
};

template <class T> class DescentTile {
 public:
  DescentTile(const LayerProblem<T>& problem, const PackedGram<T>& packed, View<T> theta, View<T> scales,
              const Grid<T>& grid, Mask mask, const DescentOptions& options)
      : problem_(problem), packed_(packed), theta_(theta), scales_(scales), grid_(grid), mask_(mask), options_(options),
        residual_(kTileRows * theta.cols), gradient_(residual_.size()), pull_(residual_.size()),
        steps_(kTileRows * grid.group_size) {}

  void run(std::size_t first, std::size_t count, const ThreadPool& pool, std::size_t thread) {
    rows_.resize(count);
    for (std::size_t r = 0; r < count; ++r) rows_[r] = first + r;
    for (std::size_t pass = 0; pass < options_.passes && !rows_.empty(); ++pass) {
      changed_.assign(rows_.size(), false);
      find_gradient();
      for (std::size_t r = 0; r < rows_.size(); ++r) move_codes(r);
      if (options_.rescale)
        for (std::size_t group = 0; group < scales_.cols; ++group) move_scales(group);
      std::size_t left = 0;
      for (std::size_t r = 0; r < rows_.size(); ++r)
        if (changed_[r]) rows_[left++] = rows_[r];
      rows_.resize(left);
      pool.check(thread);
    }
  }

 private:
  void find_gradient() {
    const std::size_t d = theta_.cols;
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      const T *theta = theta_.row(rows_[r]), *weight = problem_.weight.row(rows_[r]);
      for (std::size_t j = 0; j < d; ++j) residual_[r * d + j] = theta[j] - weight[j];
    }
    const auto m = static_cast<Index>(rows_.size()), stride = static_cast<Index>(d);
    multiply<T>(residual_.data(), m, stride, packed_.whole, gradient_.data(), stride, workspace_);
  }

  void move_codes(std::size_t r) {
    const std::size_t d = theta_.cols, row = rows_[r];
    T *theta = theta_.row(row), *gradient = gradient_.data() + r * d;
    const T top = static_cast<T>(grid_.top);
    for (std::size_t j = 0, group = 0; group < scales_.cols; ++group) {
      const T scale = scales_.row(row)[group], zero = grid_.zeros.row(row)[group];
      for (const std::size_t end = j + grid_.group_size; j < end; ++j) {
        const T curvature = problem_.gram.row(j)[j];
        if (!(curvature > 0) || (mask_.data && !mask_.row(row)[j])) continue;
        const T wanted = (nearest_code(theta[j] - gradient[j] / curvature, scale, zero, top) - zero) * scale;
        const T step = wanted - theta[j];
        if (!(step * (gradient[j] + curvature * step / 2) < 0)) continue;
        theta[j] = wanted;
        add(gradient, step, problem_.gram.row(j));
        changed_[r] = true;
      }
    }
  }

  void move_scales(std::size_t group) {
    const std::size_t size = grid_.group_size, d = theta_.cols, first = group * size;
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      const T* theta = theta_.row(rows_[r]) + first;
      const T scale = scales_.row(rows_[r])[group];
      for (std::size_t j = 0; j < size; ++j) steps_[r * size + j] = std::nearbyint(theta[j] / scale);
    }
    multiply<T>(steps_.data(), static_cast<Index>(rows_.size()), static_cast<Index>(size), packed_.groups[group],
                pull_.data(), static_cast<Index>(d), workspace_);
    for (std::size_t r = 0; r < rows_.size(); ++r) move_scale(r, group);
  }

  void move_scale(std::size_t r, std::size_t group) {
    const std::size_t size = grid_.group_size, d = theta_.cols, first = group * size;
    const T *steps = steps_.data() + r * size, *pull = pull_.data() + r * d;
    T *gradient = gradient_.data() + r * d, &scale = scales_.row(rows_[r])[group];
    T slope = 0, curvature = 0;
    for (std::size_t j = 0; j < size; ++j) {
      slope += steps[j] * gradient[first + j];
      curvature += steps[j] * pull[first + j];
    }
    if (!(curvature > 0)) return;
    T wanted = scale - slope / curvature;
    if (options_.half_scales) wanted = rounded_to_half(wanted);
    const T step = wanted - scale;
    if (!(wanted > 0) || !std::isfinite(wanted) || !(step * (slope + curvature * step / 2) < 0)) return;
    scale = wanted;
    for (std::size_t j = 0; j < size; ++j) theta_.row(rows_[r])[first + j] = steps[j] * wanted;
    add(gradient, step, pull);
    changed_[r] = true;
  }

  void add(T* y, T a, const T* x) const {
    const std::size_t d = theta_.cols;
#pragma omp simd
    for (std::size_t j = 0; j < d; ++j) y[j] += a * x[j];
  }

  const LayerProblem<T>& problem_;
  const PackedGram<T>& packed_;
  View<T> theta_, scales_;
  const Grid<T>& grid_;
  Mask mask_;
  const DescentOptions& options_;
  std::vector<T> residual_, gradient_, pull_, steps_;
  std::vector<std::size_t> rows_;  // those that still move
  std::vector<char> changed_;
  Workspace workspace_;
};

}  // namespace

template <class T>
void descend(const LayerProblem<T>& problem, View<T> theta, View<T> scales, const Grid<T>& grid, Mask mask,
             const DescentOptions& options) {
  ThreadPool pool(options.threads, options.checkpoint);
  const PackedGram<T> packed(problem.gram, grid.group_size, options.rescale, pool);
  std::vector<DescentTile<T>> tiles;
  for (std::size_t t = 0; t < pool.threads(); ++t)
    tiles.emplace_back(problem, packed, theta, scales, grid, mask, options);
  pool.parallel_for((theta.rows + kTileRows - 1) / kTileRows, [&](std::size_t tile, std::size_t thread) {
    tiles[thread].run(tile * kTileRows, std::min(kTileRows, theta.rows - tile * kTileRows), pool, thread);
  });
}

template void descend(const LayerProblem<float>&, View<float>, View<float>, const Grid<float>&, Mask,
                      const DescentOptions&);
template void descend(const LayerProblem<double>&, View<double>, View<double>, const Grid<double>&, Mask,
                      const DescentOptions&);

}  // namespace awp
