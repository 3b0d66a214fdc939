#include "awp/admm.hpp"

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "awp/matmul.hpp"

namespace awp {

namespace {

// One thread's buffers; they grow to the largest tile.
template <class T> struct Scratch {
  std::vector<T> v, z, argument, moved;
  ProjectScratch<T> project;
  Workspace workspace;

  void reserve(std::size_t size) {
    for (auto* buffer : {&v, &z, &argument, &moved})
      if (buffer->size() < size) buffer->resize(size);
  }
};

template <class T> class Splitting {
 public:
  Splitting(View<const T> weight, View<const T> inverse, const AdmmOptions& options)
      : weight_(weight), options_(options), set_{options.support, std::nullopt}, pool_(options.threads),
        scratch_(pool_.threads()) {
    if constexpr (sizeof(T) == 4) {
      if (options.bfloat16_products) rounded_.emplace(pack<bfloat16>(inverse, pool_));
    }
    if (!rounded_) exact_ = pack<T>(inverse, pool_);
  }

  void run(View<T> out) {
    const std::size_t rows = weight_.rows, tile = tile_rows(rows, options_.support);
    pool_.parallel_for((rows + tile - 1) / tile, [&](std::size_t t, std::size_t thread) {
      const std::size_t first = t * tile, count = std::min(tile, rows - first);
      run_tile(weight_.strip(first, count), out.strip(first, count), first, thread);
    });
  }

 private:
  void run_tile(View<const T> weight, View<T> out, std::size_t first, std::size_t thread) {
    Scratch<T>& scratch = scratch_[thread];
    const std::size_t size = weight.size();
    scratch.reserve(size);
    T* v = scratch.v.data();
    std::copy_n(weight.data, size, v);
    std::vector<Key<T>> hints(weight.rows);
    for (std::size_t step = 1; step <= options_.steps; ++step) {
      const bool last = step == options_.steps;
      const View<T> z = last ? out : View<T>{scratch.z.data(), weight.rows, weight.cols};
      project<T>(set_, {v, weight.rows, weight.cols}, z, first, scratch.project, hints.data());
      if (last) break;
      advance(weight, z.data, relaxation(step), scratch);
      if (thread == 0 && options_.checkpoint) options_.checkpoint();
    }
  }

  // Of the move behind a selection, step = 1, ..., steps - 1.
  T relaxation(std::size_t step) const {
    const double share = options_.steps > 2 ? static_cast<double>(step - 1) / static_cast<double>(options_.steps - 2) : 0;
    return static_cast<T>(options_.first_relaxation + share * (options_.last_relaxation - options_.first_relaxation));
  }

  // V <- V + t (W - Z - (W + V - 2 Z) rho (C + rho I)^-1), t the relaxation.
  void advance(View<const T> weight, const T* z, T relaxation, Scratch<T>& scratch) {
    T* v = scratch.v.data();
    T* argument = scratch.argument.data();
    T* moved = scratch.moved.data();
    const T* w = weight.data;
    const Index rows = static_cast<Index>(weight.rows), d = static_cast<Index>(weight.cols);
    for (std::size_t j = 0; j < weight.size(); ++j) argument[j] = w[j] + v[j] - z[j] - z[j];
    if (rounded_) {
      if constexpr (sizeof(T) == 4) multiply<bfloat16>(argument, rows, d, *rounded_, moved, d, scratch.workspace);
    } else {
      multiply<T>(argument, rows, d, exact_, moved, d, scratch.workspace);
    }
    for (std::size_t j = 0; j < weight.size(); ++j) v[j] += relaxation * (w[j] - moved[j] - z[j]);
  }

  View<const T> weight_;
  const AdmmOptions& options_;
  const SparseSet<T> set_;
  ThreadPool pool_;
  std::vector<Scratch<T>> scratch_;
  PackedMatrix<T> exact_;
  std::optional<PackedMatrixBf16> rounded_;
};

}  // namespace

template <class T>
void admm(View<const T> weight, View<const T> inverse, const AdmmOptions& options, View<T> out) {
  if (options.steps == 0) throw std::invalid_argument("the search needs at least one step");
  Splitting<T>(weight, inverse, options).run(out);
}

template void admm(View<const float>, View<const float>, const AdmmOptions&, View<float>);
template void admm(View<const double>, View<const double>, const AdmmOptions&, View<double>);

}  // namespace awp
