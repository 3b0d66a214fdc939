// Checks the integer grids against their definitions, and the three solvers on them, on small random layers.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "awp/quantize.hpp"
#include "layer.hpp"

namespace {

using awp_test::check;
using awp_test::Layer;
using namespace awp;

constexpr int kTop = 15;

template <class T> struct Grids {
  std::size_t group;
  std::vector<T> scales;
  std::vector<std::uint8_t> zeros;
  std::size_t rows;

  // Powers of two, so that every step is exact and halves are ties; or those of each group's range.
  Grids(std::size_t rows_, std::size_t d, std::size_t group_) : group(group_), rows(rows_) {
    for (std::size_t i = 0; i < rows * (d / group); ++i) {
      scales.push_back(T(1) / static_cast<T>(2u << (i % 3)));
      zeros.push_back(static_cast<std::uint8_t>(i * 5 % (kTop + 1)));
    }
  }
  Grids(const Layer<T>& layer, std::size_t group_) : group(group_), rows(layer.rows) {
    for (std::size_t first = 0; first < layer.weight.size(); first += group) {
      const auto [low, high] = std::minmax_element(&layer.weight[first], &layer.weight[first] + group);
      scales.push_back(std::max(*high - std::min(*low, T(0)), T(1e-3)) / kTop);
      zeros.push_back(static_cast<std::uint8_t>(std::clamp(std::nearbyint(-*low / scales.back()), T(0), T(kTop))));
    }
  }
  std::size_t groups() const { return scales.size() / rows; }
  Grid<T> grid() const { return {{scales.data(), rows, groups()}, {zeros.data(), rows, groups()}, group, kTop}; }

  long code(T z, std::size_t row, std::size_t column) const {
    const std::size_t i = row * groups() + column / group;
    return std::lround(std::clamp<double>(std::nearbyint(z / scales[i]) + zeros[i], 0, kTop));
  }
  T nearest(T z, std::size_t row, std::size_t column) const {
    const std::size_t i = row * groups() + column / group;
    return static_cast<T>(code(z, row, column) - zeros[i]) * scales[i];
  }
  bool holds(const std::vector<T>& theta, std::size_t d) const {
    for (std::size_t j = 0; j < theta.size(); ++j)
      if (theta[j] != nearest(theta[j], j / d, j % d)) return false;
    return true;
  }
};

template <class T> View<const T> view(const std::vector<T>& values, std::size_t rows) {
  return {values.data(), rows, values.size() / rows};
}
template <class T> View<T> view(std::vector<T>& values, std::size_t rows) {
  return {values.data(), rows, values.size() / rows};
}

template <class T> void test_grid() {
  const std::size_t rows = 5, d = 48;
  const Grids<T> grids(rows, d, 16);
  std::vector<T> z = awp_test::normal<T>(rows * d, 3);
  for (std::size_t j = 0; j < z.size(); j += 3) z[j] = (static_cast<T>(j % 13) - T(6.5)) / 4;  // ties of every scale
  z[1] = std::numeric_limits<T>::infinity();
  z[2] = std::numeric_limits<T>::lowest();
  for (std::size_t row = 0; row < rows; ++row) {
    std::vector<T> rounded(d);
    std::vector<std::uint8_t> codes(d);
    grids.grid().round(row, &z[row * d], rounded.data());
    grids.grid().encode(row, &z[row * d], codes.data());
    for (std::size_t j = 0; j < d; ++j) {
      const T value = z[row * d + j];
      check(codes[j] == grids.code(value, row, j), "code", static_cast<long>(row), static_cast<long>(j));
      check(rounded[j] == grids.nearest(value, row, j), "round", static_cast<long>(row), static_cast<long>(j));
    }
  }
}

template <class T> void test_ranges(std::size_t rows, std::size_t d, std::size_t group) {
  constexpr std::size_t kCandidates = 7;
  const Layer<T> layer(rows, d);
  const Grids<T> grids(layer, group);
  const std::size_t groups = grids.groups();
  std::vector<T> scales, importance(d);
  std::vector<std::uint8_t> zeros;
  for (std::size_t j = 0; j < d; ++j) importance[j] = static_cast<T>(1 + j * j % 50);
  for (std::size_t c = 0; c < kCandidates; ++c)  // the last repeats the first: the first of equals wins
    for (std::size_t i = 0; i < grids.scales.size(); ++i) {
      scales.push_back(grids.scales[i] * (1 - T(c % (kCandidates - 1)) / 8));
      zeros.push_back(grids.zeros[i]);
    }
  const Grid<T> candidates{view(scales, kCandidates * rows), view(zeros, kCandidates * rows), group, kTop};
  std::vector<std::int32_t> one(rows * groups, -1), three(one);
  cheapest_range<T>(view(layer.weight, rows), view(importance, 1), candidates, view(one, rows), 1);
  cheapest_range<T>(view(layer.weight, rows), view(importance, 1), candidates, view(three, rows), 3);
  check(one == three, "threads of the ranges", static_cast<long>(d));
  for (std::size_t i = 0; i < one.size(); ++i) {
    std::size_t best = 0;
    std::vector<T> errors(kCandidates);
    for (std::size_t c = 0; c < kCandidates; ++c) {
      const T scale = scales[c * one.size() + i];
      for (std::size_t j = i % groups * group; j < (i % groups + 1) * group; ++j) {
        const T w = layer.weight[i / groups * d + j];
        const T code = std::clamp<T>(std::nearbyint(w / scale) + zeros[i], 0, kTop);
        const T gap = w - (code - zeros[i]) * scale;
        errors[c] += importance[j] * (gap * gap);
      }
      if (errors[c] < errors[best]) best = c;
    }
    check(one[i] == static_cast<std::int32_t>(best), "cheapest range", static_cast<long>(d), static_cast<long>(i));
  }
}

Order shuffled(std::size_t d) {
  Order order(d);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::shuffle(order.begin(), order.end(), std::mt19937(5));
  return order;
}

template <class T> std::vector<T> factored(const Layer<T>& layer, const Order& order, std::size_t threads = 1) {
  std::vector<T> upper(layer.d * layer.d, T(7));
  factor<T>(view(layer.gram, layer.d), order, view(upper, layer.d), threads);
  return upper;
}

void test_factor(std::size_t d) {
  const Layer<double> layer(1, d);
  const Order order = shuffled(d);
  const std::vector<double> upper = factored(layer, order);
  double worst = 0;
  for (std::size_t i = 0; i < d; ++i)
    for (std::size_t j = 0; j < d; ++j) {
      double sum = -layer.gram[order[i] * d + order[j]];
      for (std::size_t k = 0; k < d; ++k) sum += upper[i * d + k] * upper[j * d + k];
      worst = std::max({worst, std::abs(sum), i > j ? std::abs(upper[i * d + j]) : 0.0});
    }
  check(worst < 1e-12, "factor", static_cast<long>(d));
  check(factored(layer, order, 3) == upper, "threads of the factor", static_cast<long>(d));
}

// Solves C[s, s] x = -C[s, f] e for the first unknown: where the best continuation of the rounded columns f moves s_0.
double best_continuation(const Layer<double>& layer, const Order& s, const Order& f, const std::vector<double>& e) {
  const std::size_t n = s.size();
  std::vector<double> a(n * (n + 1));
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) a[i * (n + 1) + j] = layer.gram[s[i] * layer.d + s[j]];
    for (std::size_t j = 0; j < f.size(); ++j) a[i * (n + 1) + n] -= layer.gram[s[i] * layer.d + f[j]] * e[j];
  }
  for (std::size_t i = n; i-- > 0;)  // C is positive definite: no pivoting; the first unknown is left for the end
    for (std::size_t r = 0; r < i; ++r) {
      const double ratio = a[r * (n + 1) + i] / a[i * (n + 1) + i];
      for (std::size_t j = 0; j <= n; ++j) a[r * (n + 1) + j] -= ratio * a[i * (n + 1) + j];
    }
  return a[n] / a[0];
}

// Rounds one row column by column by the definition: each where the best real continuation would have it.
std::vector<double> plainly_rounded(const Layer<double>& layer, const Grids<double>& grids, std::size_t row,
                                    const std::vector<double>& target, const Order& columns) {
  std::vector<double> theta(layer.d), errors;
  Order fixed;
  for (std::size_t i = 0; i < columns.size(); ++i) {
    const Order rest(columns.begin() + static_cast<std::ptrdiff_t>(i), columns.end());
    const double wanted = target[columns[i]] + best_continuation(layer, rest, fixed, errors);
    theta[columns[i]] = grids.nearest(wanted, row, columns[i]);
    fixed.push_back(columns[i]);
    errors.push_back(theta[columns[i]] - target[columns[i]]);
  }
  return theta;
}

template <class T>
std::vector<T> rounded(const Layer<T>& layer, const Grids<T>& grids, const Order& order, std::size_t threads) {
  std::vector<T> theta(layer.weight.size(), T(7));
  nearest_plane<T>(view(layer.weight, layer.rows), view(factored(layer, order), layer.d), order, grids.grid(),
                   view(theta, layer.rows), threads);
  return theta;
}

template <class T> void test_nearest_plane(std::size_t rows, std::size_t d, std::size_t group) {
  const Layer<T> layer(rows, d);
  const Grids<T> grids(layer, group);
  const Order order = shuffled(d);
  const std::vector<T> one = rounded(layer, grids, order, 1);
  const long size = static_cast<long>(d);
  check(one == rounded(layer, grids, order, 3), "threads of the nearest plane", size);
  check(grids.holds(one, d), "nearest plane on the grid", size);
  std::vector<T> plain(one.size());
  for (std::size_t j = 0; j < plain.size(); ++j) plain[j] = grids.nearest(layer.weight[j], j / d, j % d);
  if (d > 20) check(layer.objective(one) < 0.9 * layer.objective(plain), "nearest plane against rounding", size);
}

void test_nearest_plane_by_definition(std::size_t rows, std::size_t d, std::size_t group) {
  const Layer<double> layer(rows, d);
  const Grids<double> grids(layer, group);
  const Order order = shuffled(d);
  const std::vector<double> theta = rounded(layer, grids, order, 2);
  for (std::size_t row = 0; row < rows; ++row) {
    const std::vector<double> target(&layer.weight[row * d], &layer.weight[row * d] + d);
    const std::vector<double> expected = plainly_rounded(layer, grids, row, target, order);
    check(std::equal(expected.begin(), expected.end(), &theta[row * d]), "definition", static_cast<long>(d),
          static_cast<long>(row));
  }
}

// Every third entry is pruned; the first row keeps nothing and the second everything.
std::vector<std::uint8_t> masks(std::size_t rows, std::size_t d) {
  std::vector<std::uint8_t> mask(rows * d);
  for (std::size_t j = 0; j < mask.size(); ++j) mask[j] = j >= d && (j < 2 * d || j * 7 % 3 != 0);
  return mask;
}

template <class T>
std::vector<T> masked(const Layer<T>& layer, const Grids<T>& grids, const Order& order, std::size_t threads) {
  std::vector<std::uint8_t> mask = masks(layer.rows, layer.d);
  std::vector<T> start(layer.weight), theta(start.size(), T(7));
  for (std::size_t j = 0; j < start.size(); ++j) start[j] *= mask[j];
  masked_nearest_plane<T>(layer.problem(), view(std::as_const(start), layer.rows), view(mask, layer.rows), order,
                          grids.grid(), view(theta, layer.rows), threads);
  return theta;
}

template <class T> void test_masked(std::size_t rows, std::size_t d, std::size_t group) {
  const Layer<T> layer(rows, d);
  const Grids<T> grids(layer, group);
  const Order order = shuffled(d);
  const std::vector<T> one = masked(layer, grids, order, 1);
  const std::vector<std::uint8_t> mask = masks(rows, d);
  const long size = static_cast<long>(d);
  check(one == masked(layer, grids, order, 3), "threads of the masked plane", size);
  check(grids.holds(one, d), "masked plane on the grid", size);
  bool inside = true;
  for (std::size_t j = 0; j < one.size(); ++j) inside = inside && (mask[j] || one[j] == 0);
  check(inside, "masked plane in the mask", size);
}

void test_masked_by_definition(std::size_t rows, std::size_t d, std::size_t group) {
  const Layer<double> layer(rows, d);
  const Grids<double> grids(layer, group);
  const Order order = shuffled(d);
  const std::vector<double> theta = masked(layer, grids, order, 2);
  const std::vector<std::uint8_t> mask = masks(rows, d);
  for (std::size_t row = 0; row < rows; ++row) {
    Order kept, lost;
    for (std::size_t column : order) (mask[row * d + column] ? kept : lost).push_back(column);
    // The refit on the support: what the lost columns would have given, as their best continuation gives it back.
    std::vector<double> target(d), gone;
    for (std::size_t column : lost) gone.push_back(-layer.weight[row * d + column]);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      Order first = kept;
      std::swap(first[0], first[i]);
      target[kept[i]] = layer.weight[row * d + kept[i]] + best_continuation(layer, first, lost, gone);
    }
    const std::vector<double> expected = plainly_rounded(layer, grids, row, target, kept);
    check(std::equal(expected.begin(), expected.end(), &theta[row * d]), "masked definition", static_cast<long>(d),
          static_cast<long>(row));
  }
}

template <class T> struct Ends {
  std::vector<T> theta;
  Grids<T> grids;
};

template <class T>
Ends<T> descended(const Layer<T>& layer, const Ends<T>& start, std::vector<std::uint8_t>* mask, DescentOptions options) {
  Ends<T> end = start;
  descend<T>(layer.problem(), view(end.theta, layer.rows), view(end.grids.scales, layer.rows), start.grids.grid(),
             mask ? view(*mask, layer.rows) : Mask{}, options);
  return end;
}

bool is_half(double x) {
  int exponent = 0;
  const double digits = std::ldexp(std::frexp(x, &exponent), 11);
  return exponent > -14 && digits == std::nearbyint(digits);
}

template <class T> void test_descent(std::size_t rows, std::size_t d, std::size_t group, bool rescale) {
  const Layer<T> layer(rows, d);
  Ends<T> start{layer.weight, Grids<T>(layer, group)};
  std::vector<std::uint8_t> mask = masks(rows, d);
  for (std::size_t j = 0; j < start.theta.size(); ++j)
    start.theta[j] = mask[j] ? start.grids.nearest(layer.weight[j], j / d, j % d) : 0;
  const Ends<T> one = descended(layer, start, &mask, {3, rescale, rescale, 1});
  const Ends<T> three = descended(layer, start, &mask, {3, rescale, rescale, 3});
  const long size = static_cast<long>(d);
  check(one.theta == three.theta && one.grids.scales == three.grids.scales, "threads of the descent", size);
  check(one.grids.holds(one.theta, d), "descent on the grid", size);
  check(rescale || one.grids.scales == start.grids.scales, "scales left alone", size);
  const double before = layer.objective(start.theta), after = layer.objective(one.theta);
  check(after <= before * 1.00001 && (d < 20 || after < 0.95 * before), "descent", size);
  for (std::size_t j = 0; j < mask.size(); ++j) check(mask[j] || one.theta[j] == 0, "descent in the mask", size);
  for (std::size_t i = 0; i < one.grids.scales.size(); ++i)
    check(one.grids.scales[i] == start.grids.scales[i] || is_half(one.grids.scales[i]), "half scales", size);
}

// Where it ends, no single code can be changed with profit, and an unmasked run is the run with a mask of ones.
void test_descent_ends(std::size_t rows, std::size_t d, std::size_t group) {
  const Layer<double> layer(rows, d);
  Ends<double> start{layer.weight, Grids<double>(layer, group)};
  for (std::size_t j = 0; j < start.theta.size(); ++j)
    start.theta[j] = start.grids.nearest(layer.weight[j], j / d, j % d);
  std::vector<std::uint8_t> all(rows * d, 1);
  Ends<double> end = descended<double>(layer, start, nullptr, {200, false, false, 2});
  check(end.theta == descended(layer, start, &all, {200, false, false, 2}).theta, "mask of ones");
  const double least = layer.objective(end.theta);
  for (std::size_t j = 0; j < end.theta.size(); ++j) {
    const double kept = end.theta[j], scale = start.grids.scales[j / group];
    for (const double step : {-scale, scale}) {
      end.theta[j] = start.grids.nearest(kept + step, j / d, j % d);
      check(layer.objective(end.theta) >= least * (1 - 1e-12), "one code", static_cast<long>(j));
    }
    end.theta[j] = kept;
  }
}

// Moves every code and then every scale of one row to its minimum, recomputing the gradient each time.
void descend_plainly(const Layer<double>& layer, Ends<double>& end, std::size_t row) {
  const std::size_t d = layer.d, group = end.grids.group, groups = end.grids.groups();
  double* theta = &end.theta[row * d];
  const auto gradient = [&](std::size_t j) {
    double sum = 0;
    for (std::size_t i = 0; i < d; ++i) sum += (theta[i] - layer.weight[row * d + i]) * layer.gram[i * d + j];
    return sum;
  };
  for (std::size_t j = 0; j < d; ++j) {
    const double curvature = layer.gram[j * d + j], slope = gradient(j);
    const double step = end.grids.nearest(theta[j] - slope / curvature, row, j) - theta[j];
    if (step * (slope + curvature * step / 2) < 0) theta[j] += step;
  }
  for (std::size_t g = 0; g < groups; ++g) {
    double &scale = end.grids.scales[row * groups + g], slope = 0, curvature = 0;
    const double old = scale;
    for (std::size_t j = g * group; j < (g + 1) * group; ++j) {
      slope += theta[j] / old * gradient(j);
      for (std::size_t i = g * group; i < (g + 1) * group; ++i)
        curvature += theta[j] / old * layer.gram[j * d + i] * theta[i] / old;
    }
    if (!(curvature > 0) || !(old - slope / curvature > 0)) continue;
    scale = old - slope / curvature;
    for (std::size_t j = g * group; j < (g + 1) * group; ++j) theta[j] *= scale / old;
  }
}

void test_descent_by_definition(std::size_t rows, std::size_t d, std::size_t group) {
  const Layer<double> layer(rows, d);
  Ends<double> start{layer.weight, Grids<double>(layer, group)};
  for (std::size_t j = 0; j < start.theta.size(); ++j)
    start.theta[j] = start.grids.nearest(layer.weight[j], j / d, j % d);
  const Ends<double> end = descended<double>(layer, start, nullptr, {1, true, false, 2});
  Ends<double> expected = start;
  for (std::size_t row = 0; row < rows; ++row) descend_plainly(layer, expected, row);
  double worst = 0;
  for (std::size_t j = 0; j < end.theta.size(); ++j)
    worst = std::max(worst, std::abs(end.theta[j] - expected.theta[j]));
  check(worst < 1e-10, "descent by definition", static_cast<long>(d));
}

}  // namespace

int main() {
  test_grid<float>();
  test_grid<double>();
  test_ranges<float>(33, 64, 32);
  test_ranges<double>(3, 6, 2);
  for (std::size_t d : {1u, 2u, 33u, 70u, 257u, 500u}) test_factor(d);
  test_nearest_plane<float>(70, 130, 65);  // more than one tile of rows, more than one block of columns
  test_nearest_plane<double>(65, 128, 32);
  test_nearest_plane<float>(2, 1, 1);
  test_nearest_plane_by_definition(5, 12, 4);
  test_nearest_plane_by_definition(2, 72, 24);
  test_masked<float>(40, 66, 33);
  test_masked<double>(3, 2, 1);
  test_masked_by_definition(6, 12, 4);
  for (const bool rescale : {false, true}) {
    test_descent<float>(70, 64, 32, rescale);
    test_descent<double>(35, 66, 33, rescale);
    test_descent<float>(3, 2, 1, rescale);
  }
  test_descent_by_definition(40, 24, 6);
  test_descent_ends(3, 12, 6);
  return awp_test::result("quantize");
}
