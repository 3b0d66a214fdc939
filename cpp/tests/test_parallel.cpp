// Checks the thread pool: every tile once, reuse, exceptions, more threads than tiles.
#include <atomic>
#include <stdexcept>
#include <thread>

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

// Every other thread is inside a tile that only a cancellation ends, while the calling thread has nothing left to do.
void test_cancellation(std::size_t threads, bool leave_by_check) {
  int left = 0;
  awp::ThreadPool pool(threads, [&] {
    if (--left == 0) throw std::runtime_error("checkpoint");
  });
  const auto stay = [&](std::size_t thread) {
    while (leave_by_check || !pool.cancelled()) {
      if (leave_by_check) pool.check(thread);
      std::this_thread::yield();
    }
  };
  for (int round = 0; round < 3; ++round) {
    left = 3;  // after the calling thread's tile, and twice while it waits
    std::atomic<std::size_t> inside{0};
    bool caught = false;
    try {
      pool.parallel_for(threads, [&](std::size_t, std::size_t thread) {
        ++inside;
        if (thread == 0) while (inside < threads) std::this_thread::yield();
        else stay(thread);
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    check(caught && left == 0 && pool.cancelled(), "cancelled", static_cast<long>(threads));
    left = 1000;
    std::atomic<int> done{0};
    pool.parallel_for(5, [&](std::size_t, std::size_t) { ++done; });
    check(done == 5 && !pool.cancelled(), "usable after a cancellation", static_cast<long>(threads));
  }
}

void test_steps() {
  int calls = 0;
  awp::ThreadPool pool(1, [&] {
    if (++calls == 5) throw std::runtime_error("checkpoint");
  });
  int steps = 0;
  try {
    pool.parallel_for(1, [&](std::size_t, std::size_t thread) {
      for (;; ++steps) pool.check(thread);
    });
  } catch (const std::runtime_error&) {
  }
  check(calls == 5 && steps == 4, "the checkpoint is called between steps", calls, steps);
}

}  // namespace

int main() {
  for (std::size_t threads : {1, 2, 3, 8}) {
    for (std::size_t tiles : {0, 1, 2, 7, 100}) test_coverage(threads, tiles);
    test_exception(threads);
    if (threads > 1)
      for (bool leave_by_check : {false, true}) test_cancellation(threads, leave_by_check);
  }
  test_steps();
  return awp_test::result("parallel");
}
