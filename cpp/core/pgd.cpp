#include "awp/pgd.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "awp/matmul.hpp"

namespace awp {

const char* name(StopReason reason) {
  switch (reason) {
    case StopReason::gradient: return "gradient";
    case StopReason::fixed_point: return "fixed point";
    case StopReason::diverged: return "diverged";
    default: return "iterations";
  }
}

namespace {

constexpr std::size_t kBandRows = 16;  // rows whose intermediate results stay in the second-level cache

std::size_t round_up(std::size_t value, std::size_t step) { return (value + step - 1) / step * step; }

struct Sums {
  double inner = 0, square = 0;  // <R, G> and ||G||^2
  bool changed = false;          // the step moved Theta
};

template <class T> struct Scratch {
  std::vector<T> residual, descent;
  ProjectScratch<T> project;
  Workspace workspace;
};

// One step on row tiles. Everything but the product is fused behind it while the tile is in cache.
template <class T> class Stepper {
 public:
  Stepper(const LayerProblem<T>& problem, const SparseSet<T>& set, const PgdOptions& options)
      : problem_(problem), set_(set), step_(static_cast<T>(options.step)), pool_(options.threads),
        tile_(tile_rows(problem.weight.rows, set.support)), scratch_(pool_.threads()), hints_(problem.weight.rows),
        exact_(pack<T>(problem.gram, pool_)) {
    if constexpr (sizeof(T) == 4)
      if (options.bfloat16_products && options.max_iter > 0) rounded_.emplace(pack<bfloat16>(problem.gram, pool_));
  }

  // Evaluates the iterate and, unless `next` is empty, steps from it onto the set with `support`.
  Sums evaluate(View<const T> theta, const Support& support, View<T> next, bool exact) {
    const std::size_t rows = theta.rows, tiles = (rows + tile_ - 1) / tile_;
    std::vector<Sums> partial(tiles);
    const SparseSet<T> set{support, set_.grid};
    pool_.parallel_for(tiles, [&](std::size_t tile, std::size_t thread) {
      const std::size_t first = tile * tile_, count = std::min(tile_, rows - first);
      partial[tile] = run_tile(first, theta.strip(first, count), set, next, exact, scratch_[thread]);
    });
    Sums total;  // in the order of the tiles, whichever thread did them
    for (const Sums& sums : partial) {
      total.inner += sums.inner;
      total.square += sums.square;
      total.changed |= sums.changed;
    }
    return total;
  }

 private:
  Sums run_tile(std::size_t first, View<const T> theta, const SparseSet<T>& set, View<T> next, bool exact,
                Scratch<T>& scratch) {
    const std::size_t d = theta.cols;
    scratch.residual.resize(std::max(scratch.residual.size(), tile_ * d));
    scratch.descent.resize(std::max(scratch.descent.size(), tile_ * d));
    T* residual = scratch.residual.data();
    T* descent = scratch.descent.data();
    const T* weight = problem_.weight.row(first);
    for (std::size_t j = 0; j < theta.size(); ++j) residual[j] = weight[j] - theta.data[j];
    product(residual, theta, descent, exact, scratch.workspace);
    Sums sums;
    const std::size_t band = round_up(kBandRows, strip_rows(set.support));
    for (std::size_t top = 0; top < theta.rows; top += band) {
      const std::size_t count = std::min(band, theta.rows - top), offset = top * d;
      add_inner(residual + offset, descent + offset, count * d, sums);
      if (!next.data) continue;
      View<T> z{residual + offset, count, d};
      const View<const T> from = theta.strip(top, count);
      const View<T> to = next.strip(first + top, count);
      for (std::size_t j = 0; j < z.size(); ++j) z.data[j] = from.data[j] + step_ * descent[offset + j];
      project<T>(set, z, to, first + top, scratch.project, hints_.data() + first + top);
      sums.changed |= differ(from.data, to.data, z.size());
    }
    return sums;
  }

  void product(const T* residual, View<const T> theta, T* out, bool exact, Workspace& workspace) {
    const Index m = static_cast<Index>(theta.rows), d = static_cast<Index>(theta.cols);
    if constexpr (sizeof(T) == 4)
      if (!exact) return multiply<bfloat16>(residual, m, d, *rounded_, out, d, workspace);
    multiply<T>(residual, m, d, exact_, out, d, workspace);
  }

  static void add_inner(const T* residual, const T* descent, std::size_t size, Sums& sums) {
    double inner = 0, square = 0;
#pragma omp simd reduction(+ : inner, square)
    for (std::size_t j = 0; j < size; ++j) {
      const double g = descent[j];
      inner += static_cast<double>(residual[j]) * g;
      square += g * g;
    }
    sums.inner += inner;
    sums.square += square;
  }

  static bool differ(const T* a, const T* b, std::size_t size) {
    Key<T> different = 0;
    for (std::size_t j = 0; j < size; ++j) different |= a[j] != b[j];
    return different != 0;
  }

  const LayerProblem<T>& problem_;
  const SparseSet<T>& set_;
  T step_;
  ThreadPool pool_;
  std::size_t tile_;
  std::vector<Scratch<T>> scratch_;
  std::vector<Key<T>> hints_;
  PackedMatrix<T> exact_;
  std::optional<PackedMatrixBf16> rounded_;
};

// The current, the next and the best iterate share three buffers; the start is only read.
template <class T> class Iterates {
 public:
  explicit Iterates(View<const T> start) : current(start) {
    for (auto& buffer : buffers_) buffer.resize(start.size());
  }

  View<T> next() {
    for (auto& buffer : buffers_)
      if (buffer.data() != current.data && buffer.data() != best.data) return {buffer.data(), current.rows, current.cols};
    return {};
  }

  View<const T> current, best;

 private:
  std::vector<T> buffers_[3];
};

double ratio(double value, double reference) {
  if (reference != 0) return value / reference;
  return value == 0 ? 0 : std::numeric_limits<double>::infinity();
}

}  // namespace

template <class T>
PgdRun pgd(const LayerProblem<T>& problem, View<const T> start, const SparseSet<T>& set, const PgdOptions& options,
           View<T> best) {
  Stepper<T> stepper(problem, set, options);
  Iterates<T> iterates(start);
  PgdRun run;
  const std::size_t last_quarter = options.max_iter - options.max_iter / 4;
  bool all_exact = sizeof(T) == 8 || !options.bfloat16_products, settled = false;
  for (std::size_t t = 0;; ++t) {
    const bool exact = all_exact || t == 0 || t >= last_quarter, feasible = t >= options.ramp;
    const View<T> next = t < options.max_iter ? iterates.next() : View<T>{};
    const Support& support = t + 1 < options.ramp ? options.relaxed.at(t) : set.support;
    const Sums sums = stepper.evaluate(iterates.current, support, next, exact);
    const double objective = 0.5 * sums.inner, residual = ratio(std::sqrt(sums.square), options.weight_norm);
    run.objectives.push_back(objective);
    run.residuals.push_back(residual);
    if (feasible && exact && (!run.found || objective < run.objective)) {
      run.found = true;
      run.objective = objective;
      iterates.best = iterates.current;
    }
    const bool flat = feasible && residual < options.tol, stuck = settled && t > options.ramp;
    const bool finite = std::isfinite(static_cast<T>(objective));  // as far as the reference, which multiplies in T
    if (!finite) run.reason = StopReason::diverged;
    else if (flat && exact) run.reason = StopReason::gradient;
    else if (stuck) run.reason = StopReason::fixed_point;
    if (!finite || (flat && exact) || stuck || t >= options.max_iter) break;
    settled = !sums.changed && exact;
    // What a rounded product takes for the end is judged by an exact one.
    all_exact |= flat || (!sums.changed && !exact);
    iterates.current = next;
    if (options.checkpoint) options.checkpoint();
  }
  if (run.found) std::copy_n(iterates.best.data, best.size(), best.data);
  return run;
}

template PgdRun pgd(const LayerProblem<float>&, View<const float>, const SparseSet<float>&, const PgdOptions&,
                    View<float>);
template PgdRun pgd(const LayerProblem<double>&, View<const double>, const SparseSet<double>&, const PgdOptions&,
                    View<double>);

}  // namespace awp
