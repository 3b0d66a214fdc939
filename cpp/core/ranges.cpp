#include <vector>

#include "awp/parallel.hpp"
#include "awp/quantize.hpp"

namespace awp {

namespace {

// One group of one row: the candidates lie side by side in registers, the weights pass by in order.
template <class T> struct Contest {
  std::vector<T> scales, zeros, errors;

  explicit Contest(std::size_t candidates) : scales(candidates), zeros(candidates), errors(candidates) {}

  void add(T z, T importance, T top) {
    const T *scale = scales.data(), *zero = zeros.data();
    T* error = errors.data();
#pragma omp simd
    for (std::size_t c = 0; c < scales.size(); ++c) {
      const T gap = z - (nearest_code(z, scale[c], zero[c], top) - zero[c]) * scale[c];
      error[c] += importance * (gap * gap);
    }
  }

  std::int32_t winner() const {
    return static_cast<std::int32_t>(std::min_element(errors.begin(), errors.end()) - errors.begin());
  }
};

}  // namespace

template <class T>
void cheapest_range(View<const T> weight, View<const T> importance, const Grid<T>& candidates,
                    View<std::int32_t> index, std::size_t threads, const Checkpoint& checkpoint) {
  const std::size_t count = candidates.scales.rows / weight.rows;
  ThreadPool pool(threads, checkpoint);
  std::vector<Contest<T>> contests(pool.threads(), Contest<T>(count));
  pool.parallel_for(weight.rows, [&](std::size_t row, std::size_t thread) {
    Contest<T>& contest = contests[thread];
    for (std::size_t group = 0; group < index.cols; ++group) {
      for (std::size_t c = 0; c < count; ++c) {
        contest.scales[c] = candidates.scales.row(c * weight.rows + row)[group];
        contest.zeros[c] = candidates.zeros.row(c * weight.rows + row)[group];
        contest.errors[c] = 0;
      }
      for (std::size_t j = group * candidates.group_size, end = j + candidates.group_size; j < end; ++j)
        contest.add(weight.row(row)[j], importance.data[j], static_cast<T>(candidates.top));
      index.row(row)[group] = contest.winner();
    }
  });
}

template void cheapest_range(View<const float>, View<const float>, const Grid<float>&, View<std::int32_t>, std::size_t,
                             const Checkpoint&);
template void cheapest_range(View<const double>, View<const double>, const Grid<double>&, View<std::int32_t>,
                             std::size_t, const Checkpoint&);

}  // namespace awp
