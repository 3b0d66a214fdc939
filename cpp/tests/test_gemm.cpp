// Checks the dense products against plain double loops, over every tail of every blocking.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "awp/gemm.hpp"

namespace {

using awp::External;
using awp::Index;

int failures = 0;

void check(bool good, const char* what, const char* type, Index m, Index k, Index n) {
  if (good) return;
  ++failures;
  std::printf("FAILED %s<%s> m=%td k=%td n=%td\n", what, type, m, k, n);
}

template <class T> struct Case;
template <> struct Case<float> {
  static constexpr const char* name = "float";
  static constexpr double unit = 0x1p-24;
  static double operand(float x) { return x; }
};
template <> struct Case<double> {
  static constexpr const char* name = "double";
  static constexpr double unit = 0x1p-53;
  static double operand(double x) { return x; }
};
template <> struct Case<awp::bfloat16> {
  static constexpr const char* name = "bfloat16";
  static constexpr double unit = 0x1p-24;
  // Nearest number of 8 significant bits, ties to even.
  static double operand(float x) {
    int exponent;
    const double fraction = std::frexp(x, &exponent);
    return std::ldexp(std::nearbyint(fraction * 256), exponent - 8);
  }
};

template <class S> std::vector<S> random_values(Index size, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<S> normal;
  std::vector<S> values(static_cast<std::size_t>(size));
  for (S& value : values) value = normal(random);
  return values;
}

// A matrix between guard values, its row padding and surroundings filled with NaN of a known pattern.
template <class S> class Guarded {
 public:
  Guarded(Index rows, Index columns, Index stride)
      : rows_(rows), columns_(columns), stride_(stride), values_(rows * stride + 2 * kGuard, nan()) {}
  S* data() { return values_.data() + kGuard; }
  S& at(Index i, Index j) { return data()[i * stride_ + j]; }
  bool intact() const {
    for (Index p = 0; p < static_cast<Index>(values_.size()); ++p) {
      const Index i = (p - kGuard) / stride_, j = (p - kGuard) % stride_;
      const bool inside = p >= kGuard && i < rows_ && j < columns_;
      const S guard = nan();
      if (!inside && std::memcmp(&values_[p], &guard, sizeof guard) != 0) return false;
    }
    return true;
  }

 private:
  static constexpr Index kGuard = 64;
  static S nan() { return std::numeric_limits<S>::quiet_NaN(); }
  Index rows_, columns_, stride_;
  std::vector<S> values_;
};

// |error| <= (k + 2) unit sum |a b|: the bound of any order of additions.
template <class T>
void check_product(const std::vector<External<T>>& a, const std::vector<External<T>>& b, Guarded<External<T>>& out,
                   Index m, Index k, Index n) {
  bool close = true;
  std::vector<double> sums(n), sizes(n);
  for (Index i = 0; i < m; ++i) {
    std::fill(sums.begin(), sums.end(), 0.0), std::fill(sizes.begin(), sizes.end(), 0.0);
    for (Index p = 0; p < k; ++p) {
      const double left = Case<T>::operand(a[i * k + p]);
      for (Index j = 0; j < n; ++j) {
        const double term = left * Case<T>::operand(b[p * n + j]);
        sums[j] += term, sizes[j] += std::abs(term);
      }
    }
    for (Index j = 0; j < n; ++j) {
      close &= std::abs(out.at(i, j) - sums[j]) <= static_cast<double>(k + 2) * Case<T>::unit * sizes[j];
    }
  }
  check(close, "multiply", Case<T>::name, m, k, n);
  check(out.intact(), "multiply writes outside", Case<T>::name, m, k, n);
}

template <class T> void test_multiply(Index m, Index k, Index n) {
  using S = External<T>;
  const auto a = random_values<S>(m * k, 1), b = random_values<S>(k * n, 2);
  awp::PackedMatrix<T> packed(k, n);
  for (Index panel = packed.panels(); panel-- > 0;) packed.pack(b.data(), n, panel, panel + 1);
  awp::Workspace workspace;
  Guarded<S> out(m, n, n + 5);
  awp::multiply(a.data(), m, k, packed, out.data(), n + 5, workspace);
  check_product<T>(a, b, out, m, k, n);

  // The same bits when the rows are computed in tiles of another size.
  Guarded<S> tiled(m, n, n);
  for (Index row = 0; row < m; row += 3) {
    const Index rows = std::min<Index>(3, m - row);
    awp::multiply(a.data() + row * k, rows, k, packed, tiled.data() + row * n, n, workspace);
  }
  bool same = true;
  for (Index i = 0; i < m; ++i) same &= std::memcmp(&tiled.at(i, 0), &out.at(i, 0), n * sizeof(S)) == 0;
  check(same, "multiply in tiles", Case<T>::name, m, k, n);
}

template <class T> void test_gram(Index n, Index d) {
  const auto x = random_values<External<T>>(n * d, 3);
  const awp::PackedMatrix<T> packed(x.data(), n, d, d);
  awp::Workspace workspace;
  Guarded<double> gram(d, d, d);
  for (Index i = 0; i < d; ++i) {
    for (Index j = 0; j < d; ++j) gram.at(i, j) = i <= j ? 1.0 : -7.0;
  }
  for (Index tile = 0; tile < awp::gram_tiles<T>(d); ++tile) awp::gram_tile(packed, tile, gram.data(), workspace);
  bool close = true, lower = true;
  for (Index i = 0; i < d; ++i) {
    for (Index j = 0; j < d; ++j) {
      double sum = 1.0, size = 1.0;
      for (Index t = 0; t < n; ++t) {
        const double term = Case<T>::operand(x[t * d + i]) * Case<T>::operand(x[t * d + j]);
        sum += term, size += std::abs(term);
      }
      if (i <= j) close &= std::abs(gram.at(i, j) - sum) <= static_cast<double>(n + 2) * Case<T>::unit * size;
      if (i > j) lower &= gram.at(i, j) == -7.0;
    }
  }
  check(close, "gram", Case<T>::name, n, n, d);
  check(lower && gram.intact(), "gram writes outside", Case<T>::name, n, n, d);
}

// Sums of integers are exact, at the limits of what the factors may hold too.
void test_integers(Index m, Index k, Index n) {
  std::mt19937 random(static_cast<unsigned>(m + k + n));
  const auto draw = [&](Index size, int limit) {
    std::uniform_int_distribution<int> middle(-limit, limit), end(0, 1);
    std::vector<std::int8_t> values(static_cast<std::size_t>(size));
    for (std::int8_t& value : values) value = static_cast<std::int8_t>(m % 2 ? middle(random) : limit - 2 * limit * end(random));
    return values;
  };
  const auto a = draw(m * k, awp::kLeftLimit), b = draw(k * n, awp::kRightLimit);
  awp::PackedIntegers packed(k, n);
  for (Index panel = packed.panels(); panel-- > 0;) packed.pack(b.data(), n, panel, panel + 1);
  awp::Workspace workspace;
  Guarded<std::int32_t> out(m, n, n + 5);
  awp::multiply<std::int8_t>(a.data(), m, k, packed, out.data(), n + 5, workspace);
  bool equal = true;
  for (Index i = 0; i < m; ++i) {
    for (Index j = 0; j < n; ++j) {
      std::int32_t sum = 0;
      for (Index p = 0; p < k; ++p) sum += a[i * k + p] * b[p * n + j];
      equal &= out.at(i, j) == sum;
    }
  }
  check(equal, "multiply", "int8", m, k, n);
  check(out.intact(), "multiply writes outside", "int8", m, k, n);
}

template <class T> void test_all() {
  const Index sizes[] = {1, 2, 3, 5, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97};
  for (Index m : sizes) {
    for (Index k : sizes) {
      for (Index n : sizes) test_multiply<T>(m, k, n);
    }
  }
  for (Index k : {255, 256, 257, 511, 512, 513, 576, 1025}) test_multiply<T>(17, k, 49), test_multiply<T>(9, k, 33);
  test_multiply<T>(97, 576, 576);
  for (Index n : sizes) {
    for (Index d : sizes) test_gram<T>(n, d);
  }
  test_gram<T>(300, 576);
  for (Index n : {1535, 1536, 1537, 3100}) test_gram<T>(n, 50);
}

}  // namespace

int main() {
  test_all<float>();
  test_all<double>();
  for (Index m : {1, 2, 3, 4, 7, 8, 9, 33, 96}) {
    for (Index k : {1, 2, 3, 4, 5, 7, 8, 9, 63, 383, 384, 385, 511, 512, 513, 520, 1537}) {
      for (Index n : {1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 65}) test_integers(m, k, n);
    }
  }
  if (awp::amx_request_permission()) test_all<awp::bfloat16>();
  std::printf(failures == 0 ? "gemm: all checks passed\n" : "gemm: %d checks failed\n", failures);
  return failures != 0;
}
