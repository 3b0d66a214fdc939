#include <algorithm>

#include "awp/admm.hpp"
#include "awp/matmul.hpp"

namespace awp {

namespace {

template <class T> struct Scratch {
  std::vector<T> gradient, direction, image;
  std::vector<double> energy;  // <r, r / diag C> of every row
  Workspace workspace;

  void reserve(std::size_t rows, std::size_t size) {
    for (auto* buffer : {&gradient, &direction, &image})
      if (buffer->size() < size) buffer->resize(size);
    energy.resize(std::max(energy.size(), rows));
  }
};

// A tile of rows: the weights, where they may move, and where they stand.
template <class T> struct Rows {
  View<const T> weight;
  View<const std::uint8_t> mask;
  View<T> theta;
};

template <class T> class Refit {
 public:
  Refit(View<const T> gram, const RefitOptions& options)
      : options_(options), pool_(options.threads, options.checkpoint), scratch_(pool_.threads()), packed_(pack<T>(gram, pool_)),
        inverse_(gram.cols) {
    for (std::size_t j = 0; j < gram.cols; ++j) {
      const T c = gram.row(j)[j];
      inverse_[j] = c > 0 ? 1 / c : T(0);
    }
  }

  void run(const Rows<T>& all, double* objectives) {
    const std::size_t rows = all.weight.rows, tile = tile_rows(rows, RowSparse{{0}});
    pool_.parallel_for((rows + tile - 1) / tile, [&](std::size_t t, std::size_t thread) {
      const std::size_t first = t * tile, count = std::min(tile, rows - first);
      const Rows<T> part{all.weight.strip(first, count), all.mask.strip(first, count), all.theta.strip(first, count)};
      run_tile(part, objectives + first, thread);
    });
  }

 private:
  void run_tile(const Rows<T>& rows, double* objectives, std::size_t thread) {
    Scratch<T>& scratch = scratch_[thread];
    scratch.reserve(rows.weight.rows, rows.weight.size());
    T* direction = scratch.direction.data();
    for (std::size_t j = 0; j < rows.weight.size(); ++j) direction[j] = rows.weight.data[j] - rows.theta.data[j];
    multiply_tile(direction, scratch.gradient.data(), rows.weight, scratch);
    start(rows, scratch);
    for (std::size_t step = 0; step < options_.steps; ++step) {
      multiply_tile(direction, scratch.image.data(), rows.weight, scratch);
      for (std::size_t i = 0; i < rows.weight.rows; ++i) advance(rows, i, scratch);
      pool_.check(thread);
    }
    for (std::size_t i = 0; i < rows.weight.rows; ++i) objectives[i] = objective(rows, i, scratch);
  }

  void multiply_tile(const T* a, T* out, View<const T> shape, Scratch<T>& scratch) {
    const Index d = static_cast<Index>(shape.cols);
    multiply<T>(a, static_cast<Index>(shape.rows), d, packed_, out, d, scratch.workspace);
  }

  // p = r / diag C inside the mask.
  void start(const Rows<T>& rows, Scratch<T>& scratch) {
    const std::size_t d = rows.weight.cols;
    for (std::size_t i = 0; i < rows.weight.rows; ++i) {
      const T* gradient = scratch.gradient.data() + i * d;
      const std::uint8_t* mask = rows.mask.row(i);
      T* direction = scratch.direction.data() + i * d;
      double energy = 0;
#pragma omp simd reduction(+ : energy)
      for (std::size_t j = 0; j < d; ++j) {
        const T r = mask[j] ? gradient[j] : T(0);
        direction[j] = r * inverse_[j];
        energy += static_cast<double>(r) * static_cast<double>(direction[j]);
      }
      scratch.energy[i] = energy;
    }
  }

  // One step of conjugate gradients for row i; `image` holds p C.
  void advance(const Rows<T>& rows, std::size_t i, Scratch<T>& scratch) {
    const std::size_t d = rows.weight.cols;
    const std::uint8_t* mask = rows.mask.row(i);
    const T* image = scratch.image.data() + i * d;
    T* gradient = scratch.gradient.data() + i * d;
    T* direction = scratch.direction.data() + i * d;
    T* theta = rows.theta.row(i);
    double curvature = 0;
#pragma omp simd reduction(+ : curvature)
    for (std::size_t j = 0; j < d; ++j) curvature += static_cast<double>(direction[j]) * static_cast<double>(image[j]);
    const double before = scratch.energy[i];
    const T alpha = curvature > 0 ? static_cast<T>(before / curvature) : T(0);
    double energy = 0;
#pragma omp simd reduction(+ : energy)
    for (std::size_t j = 0; j < d; ++j) {
      theta[j] += alpha * direction[j];
      gradient[j] -= alpha * image[j];
      const T r = mask[j] ? gradient[j] : T(0);
      energy += static_cast<double>(r) * static_cast<double>(r * inverse_[j]);
    }
    const T beta = before > 0 ? static_cast<T>(energy / before) : T(0);
    for (std::size_t j = 0; j < d; ++j) {
      const T r = mask[j] ? gradient[j] : T(0);
      direction[j] = r * inverse_[j] + beta * direction[j];
    }
    scratch.energy[i] = energy;
  }

  static double objective(const Rows<T>& rows, std::size_t i, const Scratch<T>& scratch) {
    const std::size_t d = rows.weight.cols;
    const T* gradient = scratch.gradient.data() + i * d;
    const T* weight = rows.weight.row(i);
    const T* theta = rows.theta.row(i);
    double sum = 0;
    for (std::size_t j = 0; j < d; ++j) sum += static_cast<double>(weight[j] - theta[j]) * static_cast<double>(gradient[j]);
    return 0.5 * sum;
  }

  const RefitOptions& options_;
  ThreadPool pool_;
  std::vector<Scratch<T>> scratch_;
  PackedMatrix<T> packed_;
  std::vector<T> inverse_;
};

}  // namespace

template <class T>
void refit(View<const T> weight, View<const T> gram, View<const std::uint8_t> mask, View<T> theta, double* objectives,
           const RefitOptions& options) {
  Refit<T>(gram, options).run({weight, mask, theta}, objectives);
}

template void refit(View<const float>, View<const float>, View<const std::uint8_t>, View<float>, double*,
                    const RefitOptions&);
template void refit(View<const double>, View<const double>, View<const std::uint8_t>, View<double>, double*,
                    const RefitOptions&);

}  // namespace awp
