#include "awp/admm.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "awp/matmul.hpp"

namespace awp {

namespace {

// One thread's buffers; they grow to the largest tile.
template <class T> struct Scratch {
  std::vector<T> v, z, argument, moved;
  std::vector<std::int8_t> codes;
  std::vector<std::int32_t> sums;
  ProjectScratch<T> project;
  Workspace workspace;

  void reserve(std::size_t size, bool rounded) {
    for (auto* buffer : {&v, &z, &argument, &moved})
      if (buffer->size() < size) buffer->resize(size);
    if (rounded && codes.size() < size) codes.resize(size), sums.resize(size);
  }
};

// x / unit to the nearest integer, ties to even: adding and taking off this constant leaves no fraction.
template <class T> constexpr T kNoFraction = T(3) / 2 / std::numeric_limits<T>::epsilon();

// Writes the codes of one row, within +-kLeftLimit, and returns what one of them stands for.
template <class T> T round_row(const T* row, std::size_t d, std::int8_t* codes) {
  constexpr T limit = kLeftLimit;
  T top = 0;
#pragma omp simd reduction(max : top)
  for (std::size_t j = 0; j < d; ++j) top = std::max(top, std::abs(row[j]));
  T factor = limit / top;
  if (!(factor <= std::numeric_limits<T>::max())) factor = 0;  // nothing, or nearly nothing, in the row
  for (std::size_t j = 0; j < d; ++j) {
    const T code = (row[j] * factor + kNoFraction<T>) - kNoFraction<T>;
    codes[j] = static_cast<std::int8_t>(std::min(limit, std::max(-limit, code)));  // NaN, too, becomes a code
  }
  return top / limit;
}

template <class T> class Splitting {
 public:
  Splitting(View<const T> weight, const std::variant<View<const T>, RoundedMatrix<T>>& matrix,
            const AdmmOptions& options)
      : weight_(weight), options_(options), set_{options.support, std::nullopt}, pool_(options.threads, options.checkpoint),
        scratch_(pool_.threads()), rounded_(std::get_if<RoundedMatrix<T>>(&matrix)) {
    if (rounded_) {
      codes_ = pack<std::int8_t>(rounded_->codes, pool_);
    } else {
      exact_ = pack<T>(std::get<View<const T>>(matrix), pool_);
    }
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
    scratch.reserve(size, rounded_ != nullptr);
    T* v = scratch.v.data();
    std::copy_n(weight.data, size, v);
    std::vector<Key<T>> hints(weight.rows);
    for (std::size_t step = 1; step <= options_.steps; ++step) {
      const bool last = step == options_.steps;
      const View<T> z = last ? out : View<T>{scratch.z.data(), weight.rows, weight.cols};
      project<T>(set_, {v, weight.rows, weight.cols}, z, first, scratch.project, hints.data());
      if (last) break;
      advance(weight, z.data, relaxation(step), scratch);
      pool_.check(thread);
    }
  }

  // Of the move behind a selection, step = 1, ..., steps - 1: the bits of numpy.linspace.
  T relaxation(std::size_t step) const {
    const double first = options_.first_relaxation, last = options_.last_relaxation;
    if (step == 1) return static_cast<T>(first);
    if (step + 1 == options_.steps) return static_cast<T>(last);
    const double part = (last - first) / static_cast<double>(options_.steps - 2);
    return static_cast<T>(static_cast<double>(step - 1) * part + first);
  }

  // V <- V + t (W - Z - (W + V - 2 Z) M), t the relaxation.
  void advance(View<const T> weight, const T* z, T relaxation, Scratch<T>& scratch) {
    T* v = scratch.v.data();
    T* argument = scratch.argument.data();
    T* moved = scratch.moved.data();
    const T* w = weight.data;
    for (std::size_t j = 0; j < weight.size(); ++j) argument[j] = w[j] + v[j] - z[j] - z[j];
    multiply_rows(weight, scratch);
    for (std::size_t j = 0; j < weight.size(); ++j) v[j] += relaxation * (w[j] - moved[j] - z[j]);
  }

  // moved = argument M.
  void multiply_rows(View<const T> weight, Scratch<T>& scratch) {
    const Index rows = static_cast<Index>(weight.rows), d = static_cast<Index>(weight.cols);
    const T* argument = scratch.argument.data();
    T* moved = scratch.moved.data();
    if (!rounded_) return multiply<T>(argument, rows, d, exact_, moved, d, scratch.workspace);
    std::vector<T> units(weight.rows);
    for (std::size_t i = 0; i < weight.rows; ++i) {
      units[i] = round_row(argument + i * weight.cols, weight.cols, scratch.codes.data() + i * weight.cols);
    }
    multiply<std::int8_t>(scratch.codes.data(), rows, d, codes_, scratch.sums.data(), d, scratch.workspace);
    for (std::size_t i = 0, at = 0; i < weight.rows; ++i) {
      for (std::size_t j = 0; j < weight.cols; ++j, ++at) {
        const T shared = static_cast<T>(scratch.sums[at]) * (units[i] * rounded_->scale[j]);
        moved[at] = shared + argument[at] * rounded_->diagonal[j];
      }
    }
  }

  View<const T> weight_;
  const AdmmOptions& options_;
  const SparseSet<T> set_;
  ThreadPool pool_;
  std::vector<Scratch<T>> scratch_;
  const RoundedMatrix<T>* rounded_;
  PackedMatrix<T> exact_;
  PackedIntegers codes_;
};

}  // namespace

template <class T>
void admm(View<const T> weight, const std::variant<View<const T>, RoundedMatrix<T>>& matrix, const AdmmOptions& options,
          View<T> out) {
  if (options.steps == 0) throw std::invalid_argument("the search needs at least one step");
  Splitting<T>(weight, matrix, options).run(out);
}

#define AWP_INSTANTIATE(T)                                                                        \
  template void admm(View<const T>, const std::variant<View<const T>, RoundedMatrix<T>>&,         \
                     const AdmmOptions&, View<T>);
AWP_INSTANTIATE(float)
AWP_INSTANTIATE(double)
#undef AWP_INSTANTIATE

}  // namespace awp
