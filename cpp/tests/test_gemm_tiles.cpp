// Checks the logic of the tile kernel on an emulated unit. The inputs are small integers, so every sum is exact and
// the result has to be right to the last bit.
#include <cstdio>
#include <vector>

#include "../core/gemm_integers.hpp"
#include "../core/gram_nest.hpp"
#include "emulated_tiles.hpp"

namespace {

using awp::Index;
using Pairs = awp::TileKernel<awp_test::EmulatedUnit>;
using Quads = awp::TileKernel<awp_test::EmulatedUnit, awp::TileQuads>;

int failures = 0;

void check(bool good, const char* what, Index m, Index k, Index n) {
  if (good) return;
  ++failures;
  std::printf("FAILED tile %s m=%td k=%td n=%td\n", what, m, k, n);
}

template <class T> std::vector<T> integers(Index size, unsigned seed) {
  std::vector<T> values(static_cast<std::size_t>(size));
  for (T& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<T>(static_cast<int>(seed >> 28) - 8);
  }
  return values;
}

template <class Kernel, class T>
std::vector<std::uint32_t> pack(const std::vector<T>& b, const awp::PanelLayout<Kernel>& layout) {
  std::vector<std::uint32_t> packed(static_cast<std::size_t>(layout.size()), 0x7fc07fc0u);
  for (Index panel = 0; panel < layout.panels(); ++panel) {
    awp::pack_panel<Kernel>(b.data(), layout.n, layout, panel, packed.data() + layout.offset(panel));
  }
  return packed;
}

template <class Kernel> void test_multiply(Index m, Index k, Index n) {
  using Sum = typename Kernel::Sum;
  const auto a = integers<typename Kernel::Source>(m * k, 1), b = integers<typename Kernel::Source>(k * n, 2);
  const awp::PanelLayout<Kernel> layout{k, n};
  const auto packed = pack(b, layout);
  const Index stride = n + 3;
  constexpr Sum guard = 1234567;
  std::vector<Sum> out(static_cast<std::size_t>((m + 2) * stride), guard);
  awp::Workspace workspace;
  awp::multiply_rows<Kernel>(a.data(), m, k, packed.data(), layout, out.data() + stride, stride, workspace);
  bool equal = true, inside = true;
  for (Index i = -1; i <= m; ++i) {
    for (Index j = 0; j < stride; ++j) {
      const Sum value = out[(i + 1) * stride + j];
      if (i < 0 || i >= m || j >= n) {
        inside &= value == guard;
        continue;
      }
      Sum sum = 0;
      for (Index p = 0; p < k; ++p) sum += a[i * k + p] * b[p * n + j];
      equal &= value == sum;
    }
  }
  check(equal, "multiply", m, k, n);
  check(inside, "multiply writes outside", m, k, n);
}

void test_gram(Index n, Index d) {
  using Kernel = Pairs;
  const auto x = integers<float>(n * d, 3);
  const awp::PanelLayout<Kernel> layout{n, d};
  const auto packed = pack(x, layout);
  std::vector<double> gram(static_cast<std::size_t>(d * d), 0.5);
  awp::Workspace workspace;
  const Index sides = awp::gram_sides<Kernel>(d);
  for (Index tile = 0; tile < sides * (sides + 1) / 2; ++tile) {
    awp::add_gram_tile<Kernel>(packed.data(), layout, tile, gram.data(), workspace);
  }
  bool equal = true;
  for (Index i = 0; i < d; ++i) {
    for (Index j = 0; j < d; ++j) {
      double sum = 0.5;
      for (Index t = 0; i <= j && t < n; ++t) sum += static_cast<double>(x[t * d + i]) * x[t * d + j];
      equal &= gram[i * d + j] == sum;
    }
  }
  check(equal, "gram", n, n, d);
}

}  // namespace

int main() {
  for (Index m : {1, 15, 16, 17, 31, 32, 33, 65}) {
    for (Index k : {1, 2, 31, 32, 33, 64, 97, 511, 512, 513, 1030}) {
      for (Index n : {1, 16, 31, 32, 33, 64, 97}) test_multiply<Pairs>(m, k, n), test_multiply<Quads>(m, k, n);
    }
  }
  for (Index panels : {9, 10, 11, 21}) test_multiply<Pairs>(40, 600, panels * 32 + 7);
  for (Index k : {1023, 1024, 1025, 2100}) test_multiply<Quads>(33, k, 65);
  for (Index n : {1, 2, 33, 512, 513}) {
    for (Index d : {1, 31, 32, 33, 97, 160, 161, 350}) test_gram(n, d);
  }
  test_gram(2049, 40);
  test_gram(4100, 40);
  std::printf(failures == 0 ? "tile kernel: all checks passed\n" : "tile kernel: %d checks failed\n", failures);
  return failures != 0;
}
