// Checks descent, projection and thread independence of projected gradient descent on small random layers.
#include <cmath>
#include <stdexcept>

#include "awp/low_rank.hpp"
#include "awp/pgd.hpp"
#include "layer.hpp"

namespace {

using namespace awp;
using awp_test::check;
using awp_test::Layer;

template <class T> struct Outcome {
  PgdRun run;
  std::vector<T> theta;
};

template <class T>
Outcome<T> solve(const Layer<T>& layer, const SparseSet<T>& set, std::size_t threads, bool bfloat16_products = false,
                 std::size_t ramp = 0) {
  std::vector<T> start(layer.weight.size()), theta(start.size());
  ProjectScratch<T> scratch;
  project<T>(set, {layer.weight.data(), layer.rows, layer.d}, {start.data(), layer.rows, layer.d}, 0, scratch);
  std::vector<Support> relaxed;
  for (std::size_t step = 1; step < ramp; ++step) relaxed.push_back(RowSparse{{layer.d - step}});
  const PgdOptions options{1 / layer.norm(layer.gram), 20, 1e-6, layer.norm(layer.weight), ramp, relaxed,
                           bfloat16_products, threads, nullptr};
  PgdRun run = pgd<T>(layer.problem(), {start.data(), layer.rows, layer.d}, set, options,
                      {theta.data(), layer.rows, layer.d});
  return {std::move(run), std::move(theta)};
}

template <class T> void test_set(const SparseSet<T>& set, std::size_t rows, std::size_t d, bool descends) {
  const Layer<T> layer(rows, d);
  const double eps = sizeof(T) == 4 ? 1e-4 : 1e-10;
  for (bool rounded : {false, true}) {
    const Outcome<T> one = solve(layer, set, 1, rounded);
    check(one.run.found, "found");
    check(std::abs(layer.objective(one.theta) - one.run.objective) <= eps * one.run.objectives[0], "objective");
    for (std::size_t t = 1; descends && !rounded && t < one.run.objectives.size(); ++t)  // step <= 1 / L
      check(one.run.objectives[t] <= one.run.objectives[t - 1] * (1 + eps), "descent", static_cast<long>(t));
    std::vector<T> again(one.theta.size());
    ProjectScratch<T> scratch;
    project<T>(set, {one.theta.data(), rows, d}, {again.data(), rows, d}, 0, scratch);
    check(again == one.theta, "feasible", static_cast<long>(set.support.index()));
    for (std::size_t threads : {2, 3}) {
      const Outcome<T> more = solve(layer, set, threads, rounded);
      check(more.theta == one.theta && more.run.objectives == one.run.objectives, "same bits for any thread count",
            static_cast<long>(threads));
    }
  }
}

template <class T> void test_sets() {
  const std::size_t rows = 200, d = 64;
  for (const Support& support : {Support{Dense{}}, Support{RowSparse{{0}}}, Support{RowSparse{{20}}}, Support{RowSparse{{64}}},
                                 Support{NM{2, 4}}, Support{BalancedBlock{32, 64}}, Support{BlockSparse{3, 40, 8}}}) {
    test_set<T>({support, std::nullopt}, rows, d, true);
    std::vector<T> scales(rows * 2, T(0.3));
    std::vector<std::uint8_t> zeros(rows * 2, 8);
    const Grid<T> grid{{scales.data(), rows, 2}, {zeros.data(), rows, 2}, 32, 15};
    test_set<T>({support, grid}, rows, d, true);
  }
}

template <class T> void test_ends() {
  const Layer<T> layer(5, 16);
  check(solve<T>(layer, {Dense{}, std::nullopt}, 2).run.reason == StopReason::gradient, "W itself is optimal");
  check(!solve<T>(layer, {RowSparse{{4}}, std::nullopt}, 2, false, 40).run.found, "a ramp longer than the run");
  check(solve<T>(layer, {RowSparse{{4}}, std::nullopt}, 2, false, 7).run.found, "a ramp");
  std::vector<T> theta(layer.weight.size());
  const View<T> best{theta.data(), 5, 16};
  PgdOptions options{1e30, 50, 0, 1, 0, {}, false, 2, nullptr};
  const auto run = pgd<T>(layer.problem(), {theta.data(), 5, 16}, {RowSparse{{4}}, std::nullopt}, options, best);
  check(sizeof(T) == 8 || run.reason == StopReason::diverged, "divergence is seen");
  options.checkpoint = [] { throw std::runtime_error("stop"); };
  bool caught = false;
  try {
    pgd<T>(layer.problem(), {theta.data(), 5, 16}, {RowSparse{{4}}, std::nullopt}, options, best);
  } catch (const std::runtime_error&) {
    caught = true;
  }
  check(caught, "a checkpoint can stop the run");
}

template <class T> void test_low_rank(std::size_t rows, std::size_t d) {
  const Layer<T> layer(rows, d);
  double last = layer.objective(std::vector<T>(rows * d));
  for (std::size_t rank : {std::size_t(1), std::size_t(3), std::min(rows, d)}) {
    std::vector<T> left(rows * rank), right(rank * d), theta(rows * d);
    low_rank<T>({layer.weight.data(), rows, d}, {layer.gram.data(), d, d}, {left.data(), rows, rank},
                {right.data(), rank, d});
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t j = 0; j < d; ++j)
        for (std::size_t r = 0; r < rank; ++r) theta[i * d + j] += left[i * rank + r] * right[r * d + j];
    const double objective = layer.objective(theta);
    check(objective <= last, "error falls with the rank", static_cast<long>(rank));
    last = objective;
  }
  check(last <= 1e-5, "full rank is exact", static_cast<long>(rows), static_cast<long>(d));
}

}  // namespace

int main() {
  test_sets<float>();
  test_sets<double>();
  test_ends<float>();
  test_ends<double>();
  test_low_rank<float>(20, 9);
  test_low_rank<double>(9, 20);
  return awp_test::result("pgd");
}
