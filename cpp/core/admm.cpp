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
  std::vector<T> v, z, argument, moved, units;
  std::vector<std::int8_t> codes;
  std::vector<std::int32_t> sums;
  ProjectScratch<T> project;
  Workspace workspace;

  void reserve(View<const T> tile, bool rounded) {
    const std::size_t size = tile.size();
    if (v.size() < size) v.resize(size), z.resize(size);
    if (rounded) {
      if (codes.size() < size) codes.resize(size), sums.resize(size);
      argument.resize(tile.cols), units.resize(std::max(units.size(), tile.rows));
    } else if (moved.size() < size) {
      argument.resize(size), moved.resize(size);
    }
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
    scratch.reserve(weight, rounded_ != nullptr);
    const View<T> v{scratch.v.data(), weight.rows, weight.cols}, z{scratch.z.data(), weight.rows, weight.cols};
    std::copy_n(weight.data, weight.size(), v.data);
    std::vector<Key<T>> hints(weight.rows);
    for (std::size_t step = 1; step < options_.steps; ++step) {
      if (rounded_) {
        advance_rounded(weight, v, z, relaxation(step), first, hints.data(), scratch);
      } else {
        project<T>(set_, v, z, first, scratch.project, hints.data());
        advance(weight, v, z, relaxation(step), scratch);
      }
      pool_.check(thread);
    }
    project<T>(set_, v, out, first, scratch.project, hints.data());
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
  void advance(View<const T> weight, View<T> v, View<T> z, T relaxation, Scratch<T>& scratch) {
    const Index rows = static_cast<Index>(weight.rows), d = static_cast<Index>(weight.cols);
    T* argument = scratch.argument.data();
    T* moved = scratch.moved.data();
    for (std::size_t j = 0; j < v.size(); ++j) argument[j] = reflected(weight.data[j], v.data[j], z.data[j]);
    multiply<T>(argument, rows, d, exact_, moved, d, scratch.workspace);
    for (std::size_t j = 0; j < v.size(); ++j) v.data[j] += relaxation * (weight.data[j] - moved[j] - z.data[j]);
  }

  // Z <- P(V) and the same with the rounded M. Only Z, codes and sums are kept for a whole tile: what else a row takes
  // stays in the cache nearest to the core.
  void advance_rounded(View<const T> weight, View<T> v, View<T> z, T relaxation, std::size_t first, Key<T>* hints,
                       Scratch<T>& scratch) {
    const std::size_t d = weight.cols, strip = std::min(strip_rows(set_.support), weight.rows);
    for (std::size_t i = 0; i < weight.rows; ++i) {
      if (i % strip == 0) {
        const std::size_t count = std::min(strip, weight.rows - i);
        project<T>(set_, v.strip(i, count), z.strip(i, count), first + i, scratch.project, hints + i);
      }
      T* argument = scratch.argument.data();
      for (std::size_t j = 0; j < d; ++j) argument[j] = reflected(weight.row(i)[j], v.row(i)[j], z.row(i)[j]);
      scratch.units[i] = round_row(argument, d, scratch.codes.data() + i * d);
    }
    const Index rows = static_cast<Index>(weight.rows), width = static_cast<Index>(d);
    multiply<std::int8_t>(scratch.codes.data(), rows, width, codes_, scratch.sums.data(), width, scratch.workspace);
    for (std::size_t i = 0; i < weight.rows; ++i) {
      const T* w = weight.row(i);
      const T* kept = z.row(i);
      const std::int32_t* sums = scratch.sums.data() + i * d;
      const T unit = scratch.units[i];
      T* to = v.row(i);
      for (std::size_t j = 0; j < d; ++j) {
        const T moved = static_cast<T>(sums[j]) * (unit * rounded_->scale[j]) +
                        reflected(w[j], to[j], kept[j]) * rounded_->diagonal[j];
        to[j] += relaxation * (w[j] - moved - kept[j]);
      }
    }
  }

  static T reflected(T w, T v, T z) { return w + v - z - z; }

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
