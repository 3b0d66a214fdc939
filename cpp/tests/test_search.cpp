// Checks the mask search, the refit, exact swaps, the Cholesky factor and the inverse on small random layers.
#include <algorithm>
#include <cmath>
#include <limits>

#include "awp/admm.hpp"
#include "awp/cholesky.hpp"
#include "awp/inverse.hpp"
#include "awp/swap.hpp"
#include "layer.hpp"

namespace {

using awp_test::check;
using awp_test::Layer;
using namespace awp;

template <class T> std::vector<T> proximal(const Layer<T>& layer) {
  std::vector<T> matrix = layer.gram;
  for (std::size_t i = 0; i < layer.d; ++i) matrix[i * layer.d + i] += 1;
  invert<T>({matrix.data(), layer.d, layer.d}, 2);
  return matrix;
}

template <class T> void test_inverse(std::size_t d) {
  const Layer<T> layer(1, d);
  const std::vector<T> inverse = proximal(layer);
  double worst = 0;
  for (std::size_t i = 0; i < d; ++i)
    for (std::size_t j = 0; j < d; ++j) {
      double sum = inverse[i * d + j] - (i == j);
      for (std::size_t k = 0; k < d; ++k) sum += static_cast<double>(layer.gram[i * d + k]) * inverse[k * d + j];
      worst = std::max(worst, std::abs(sum));
    }
  check(worst < 1e4 * std::numeric_limits<T>::epsilon(), "inverse", static_cast<long>(d));
}

// A = U^T U + the rest, of the upper triangle alone.
template <class T> void test_cholesky(std::size_t d, std::size_t rows) {
  const Layer<T> layer(1, d);
  std::vector<T> factor = layer.gram;
  for (std::size_t i = 0; i < d; ++i) std::fill_n(&factor[i * d], i, std::numeric_limits<T>::quiet_NaN());
  cholesky<T>(factor.data(), d, rows);
  double worst = 0;
  bool untouched = true;
  for (std::size_t i = 0; i < d; ++i) {
    for (std::size_t j = 0; j < i; ++j) untouched = untouched && std::isnan(factor[i * d + j]);
    for (std::size_t j = i; j < d; ++j) {
      double sum = i < rows ? 0 : static_cast<double>(factor[i * d + j]);
      for (std::size_t l = 0; l < std::min(rows, i + 1); ++l)
        sum += static_cast<double>(factor[l * d + i]) * static_cast<double>(factor[l * d + j]);
      worst = std::max(worst, std::abs(sum - static_cast<double>(layer.gram[i * d + j])));
    }
  }
  check(worst < 100 * static_cast<double>(std::numeric_limits<T>::epsilon()), "cholesky", static_cast<long>(d),
        static_cast<long>(rows));
  check(untouched, "below the diagonal", static_cast<long>(d), static_cast<long>(rows));
}

template <class T> struct Ends {
  std::vector<T> found, refitted, swapped;
  std::vector<double> objectives;
};

// A matrix rounded column by column, as awp_edge/solvers/admm.py does it.
template <class T> struct Rounded {
  Rounded(const std::vector<T>& matrix, std::size_t d) : codes(d * d), scale(d), diagonal(d), d(d) {
    for (std::size_t j = 0; j < d; ++j) {
      T top = 0;
      for (std::size_t i = 0; i < d; ++i)
        if (i != j) top = std::max(top, std::abs(matrix[i * d + j]));
      scale[j] = top / kRightLimit, diagonal[j] = matrix[j * d + j];
      for (std::size_t i = 0; i < d; ++i)
        if (i != j && top > 0) codes[i * d + j] = static_cast<std::int8_t>(std::nearbyint(matrix[i * d + j] / scale[j]));
    }
  }
  RoundedMatrix<T> view() const { return {{codes.data(), d, d}, scale.data(), diagonal.data()}; }

  std::vector<std::int8_t> codes;
  std::vector<T> scale, diagonal;
  std::size_t d;
};

template <class T> Ends<T> search(const Layer<T>& layer, std::size_t k, std::size_t threads, bool rounded) {
  const std::size_t rows = layer.rows, d = layer.d;
  const std::vector<T> inverse = proximal(layer);
  Ends<T> ends{std::vector<T>(rows * d), {}, {}, std::vector<double>(rows)};
  const AdmmOptions options{RowSparse{{k}}, 5, 2.0, 0.2, threads, nullptr};
  const Rounded<T> codes(inverse, d);
  std::variant<View<const T>, RoundedMatrix<T>> matrix = View<const T>{inverse.data(), d, d};
  if (rounded) matrix = codes.view();
  admm<T>({layer.weight.data(), rows, d}, matrix, options, {ends.found.data(), rows, d});
  std::vector<std::uint8_t> mask(rows * d);
  for (std::size_t j = 0; j < mask.size(); ++j) mask[j] = ends.found[j] != 0;
  const View<const std::uint8_t> inside{mask.data(), rows, d};
  ends.refitted = ends.found;
  refit<T>({layer.weight.data(), rows, d}, {layer.gram.data(), d, d}, inside, {ends.refitted.data(), rows, d},
           ends.objectives.data(), {6, threads, nullptr});
  std::vector<T> gradient(rows * d);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t a = 0; a < d; ++a)
      for (std::size_t b = 0; b < d; ++b)
        gradient[i * d + b] += (layer.weight[i * d + a] - ends.refitted[i * d + a]) * layer.gram[a * d + b];
  const std::vector<std::int64_t> labels(d);
  ends.swapped = ends.refitted;
  const std::vector<double> least(rows);
  swap<T>({{layer.gram.data(), d, d}, {gradient.data(), rows, d}, inside, {labels.data(), 1, d}, {least.data(), 1, rows}},
          {ends.swapped.data(), rows, d}, {5, 4, threads, nullptr});
  return ends;
}

template <class T> std::size_t most_in_a_row(const std::vector<T>& theta, std::size_t d) {
  std::size_t most = 0;
  for (std::size_t first = 0; first < theta.size(); first += d) {
    const auto row = theta.begin() + static_cast<std::ptrdiff_t>(first);
    most = std::max(most, d - static_cast<std::size_t>(std::count(row, row + static_cast<std::ptrdiff_t>(d), T(0))));
  }
  return most;
}

template <class T> void test_search(std::size_t rows, std::size_t d, std::size_t k, bool rounded) {
  const Layer<T> layer(rows, d);
  const Ends<T> one = search(layer, k, 1, rounded), three = search(layer, k, 3, rounded);
  const long size = static_cast<long>(d);
  check(one.found == three.found && one.refitted == three.refitted && one.swapped == three.swapped, "threads", size);
  check(most_in_a_row(one.found, d) <= k && most_in_a_row(one.swapped, d) <= k, "support", size);
  const double found = layer.objective(one.found), refitted = layer.objective(one.refitted);
  double sum = 0;
  for (double objective : one.objectives) sum += objective;
  check(std::abs(sum - refitted) <= 1e-4 * refitted, "objectives", size);
  check(refitted <= found * 1.00001, "refit", size);
  check(layer.objective(one.swapped) <= refitted * 1.0001, "swap", size);
}

}  // namespace

int main() {
  for (std::size_t d : {1u, 2u, 3u, 7u, 15u, 16u, 17u, 47u, 97u, 130u, 300u}) {
    test_inverse<float>(d);
    test_inverse<double>(d);
    for (std::size_t rows : {d, d - 1, d / 2, std::size_t{0}}) {
      test_cholesky<float>(d, rows);
      test_cholesky<double>(d, rows);
    }
  }
  for (bool rounded : {false, true}) {
    test_search<float>(70, 50, 25, rounded);
    test_search<double>(33, 65, 20, rounded);
    test_search<float>(3, 1, 1, rounded);
    test_search<double>(2, 7, 7, rounded);
  }
  return awp_test::result("search");
}
