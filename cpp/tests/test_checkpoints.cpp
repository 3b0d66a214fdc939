// Checks that a checkpoint which throws stops every function that takes one.
#include <numeric>
#include <stdexcept>

#include "awp/admm.hpp"
#include "awp/inverse.hpp"
#include "awp/quantize.hpp"
#include "awp/swap.hpp"
#include "layer.hpp"

namespace {

using awp_test::check;
using namespace awp;

constexpr std::size_t kRows = 3, kSize = 130, kGroup = 65;

template <class F> void check_stops(const char* what, F f) {
  for (std::size_t threads : {1, 2}) {
    bool caught = false;
    try {
      f(threads, [] { throw std::runtime_error("stop"); });
      caught = threads > 1;  // the other thread may have been quick enough to leave nothing
    } catch (const std::runtime_error&) {
      caught = true;
    }
    check(caught, what, static_cast<long>(threads));
  }
}

template <class T> struct Case {
  awp_test::Layer<T> layer{kRows, kSize};
  std::vector<T> out = std::vector<T>(layer.gram), scales = std::vector<T>(kRows * 2, T(0.3)), importance = scales;
  std::vector<std::uint8_t> zeros = std::vector<std::uint8_t>(kRows * 2, 8), mask = zeros;
  std::vector<std::int32_t> index = std::vector<std::int32_t>(kRows * 2);
  std::vector<std::int64_t> labels = std::vector<std::int64_t>(kSize);
  std::vector<double> rows = std::vector<double>(kRows);
  Order order = Order(kSize);

  Case() {
    importance.resize(kSize, T(1));
    mask.resize(kRows * kSize, 1);
    std::iota(order.begin(), order.end(), std::size_t{0});
  }

  View<const T> weight() const { return {layer.weight.data(), kRows, kSize}; }
  View<const T> gram() const { return {layer.gram.data(), kSize, kSize}; }
  View<const std::uint8_t> inside() const { return {mask.data(), kRows, kSize}; }
  View<T> theta() { return {out.data(), kRows, kSize}; }
  View<T> square() { return {out.data(), kSize, kSize}; }
  Grid<T> grid() const { return {{scales.data(), kRows, 2}, {zeros.data(), kRows, 2}, kGroup, 15}; }
};

template <class T> void test_supports() {
  Case<T> c;
  check_stops("search", [&](std::size_t threads, const Checkpoint& stop) {
    admm<T>(c.weight(), c.gram(), {RowSparse{{kSize / 2}}, 3, 2.0, 0.2, threads, stop}, c.theta());
  });
  check_stops("refit", [&](std::size_t threads, const Checkpoint& stop) {
    refit<T>(c.weight(), c.gram(), c.inside(), c.theta(), c.rows.data(), {1, threads, stop});
  });
  check_stops("swap", [&](std::size_t threads, const Checkpoint& stop) {
    swap<T>({c.gram(), c.weight(), c.inside(), {c.labels.data(), 1, kSize}, {c.rows.data(), 1, kRows}}, c.theta(),
            {5, 4, threads, stop});
  });
  check_stops("inverse", [&](std::size_t threads, const Checkpoint& stop) {
    c.out = c.layer.gram;
    invert<T>(c.square(), threads, stop);
  });
}

template <class T> void test_grids() {
  Case<T> c;
  check_stops("ranges", [&](std::size_t threads, const Checkpoint& stop) {
    cheapest_range<T>(c.weight(), {c.importance.data(), 1, kSize}, c.grid(), {c.index.data(), kRows, 2}, threads, stop);
  });
  check_stops("factor", [&](std::size_t threads, const Checkpoint& stop) {
    factor<T>(c.gram(), c.order, c.square(), threads, stop);
  });
  check_stops("nearest plane", [&](std::size_t threads, const Checkpoint& stop) {
    nearest_plane<T>(c.weight(), c.gram(), c.order, c.grid(), c.theta(), threads, stop);
  });
  check_stops("masked plane", [&](std::size_t threads, const Checkpoint& stop) {
    const Mask mask{c.mask.data(), kRows, kSize};
    masked_nearest_plane<T>(c.layer.problem(), c.weight(), mask, c.order, c.grid(), c.theta(), threads, stop);
  });
  check_stops("descent", [&](std::size_t threads, const Checkpoint& stop) {
    std::vector<T> scales = c.scales;
    descend<T>(c.layer.problem(), c.theta(), {scales.data(), kRows, 2}, c.grid(), {}, {1, true, false, threads, stop});
  });
}

}  // namespace

int main() {
  test_supports<float>();
  test_supports<double>();
  test_grids<float>();
  test_grids<double>();
  return awp_test::result("checkpoints");
}
