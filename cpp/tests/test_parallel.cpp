// Checks the thread pool: every tile once, reuse, exceptions, more threads than tiles.
#include <atomic>
#include <stdexcept>

#include "awp/parallel.hpp"
#include "check.hpp"

namespace {

using awp_test::check;

void test_coverage(std::size_t threads, std::size_t tiles) {
  awp::ThreadPool pool(threads);
  check(pool.threads() == threads, "threads", static_cast<long>(threads));
  for (int round = 0; round < 50; ++round) {
    std::vector<int> seen(tiles);
    std::atomic<bool> in_range{true};
    pool.parallel_for(tiles, [&](std::size_t tile, std::size_t thread) {
      ++seen[tile];
      if (thread >= threads) in_range = false;
    });
    for (int count : seen) check(count == 1, "every tile once", static_cast<long>(threads), static_cast<long>(tiles));
    check(in_range, "thread index");
  }
}

void test_exception(std::size_t threads) {
  awp::ThreadPool pool(threads);
  for (int round = 0; round < 20; ++round) {
    bool caught = false;
    try {
      pool.parallel_for(40, [](std::size_t tile, std::size_t) {
        if (tile % 7 == 3) throw std::runtime_error("tile");
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    check(caught, "exception", static_cast<long>(threads));
    std::atomic<int> done{0};
    pool.parallel_for(5, [&](std::size_t, std::size_t) { ++done; });
    check(done == 5, "usable after an exception", static_cast<long>(threads));
  }
}

}  // namespace

int main() {
  for (std::size_t threads : {1, 2, 3, 8}) {
    for (std::size_t tiles : {0, 1, 2, 7, 100}) test_coverage(threads, tiles);
    test_exception(threads);
  }
  return awp_test::result("parallel");
}
