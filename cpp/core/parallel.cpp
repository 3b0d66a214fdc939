#include "awp/parallel.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace awp {

namespace {
constexpr int kSpins = 2000;  // some ten microseconds: iterations follow each other faster than a sleeper wakes up
constexpr std::chrono::milliseconds kPatience{20};  // between two calls of the checkpoint by a thread that waits

struct Cancelled {};
}  // namespace

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable wake, done;
  std::vector<std::thread> workers;
  const std::function<void(std::size_t, std::size_t)>* job = nullptr;
  std::size_t tiles = 0;
  std::atomic<std::size_t> next{0};
  std::atomic<std::size_t> round{0};  // grows by one with every job
  std::atomic<std::size_t> active{0};
  std::atomic<bool> stop{false}, cancelled{false};
  std::exception_ptr error;
  Checkpoint checkpoint;

  template <class F> void attempt(F f) {
    try {
      f();
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
      next = tiles;
      cancelled = true;  // last: whoever leaves its tile for that finds the error set
    }
  }

  void run(std::size_t thread) {
    attempt([&] {
      for (std::size_t tile; (tile = next.fetch_add(1)) < tiles;) {
        (*job)(tile, thread);
        if (thread == 0 && checkpoint) checkpoint();
      }
    });
  }

  template <class Ready> static bool soon(Ready ready) {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (ready()) return true;
      if (spin % 64 == 63) std::this_thread::yield();
    }
    return false;
  }

  void await_others() {
    const auto ready = [&] { return active.load() == 0; };
    if (soon(ready)) return;
    std::unique_lock<std::mutex> lock(mutex);
    while (!done.wait_for(lock, kPatience, ready)) {
      if (!checkpoint || cancelled) continue;
      lock.unlock();
      attempt([&] { checkpoint(); });
      lock.lock();
    }
  }

  void await_job(std::size_t seen) {
    const auto ready = [&] { return round.load() != seen || stop.load(); };
    if (soon(ready)) return;
    std::unique_lock<std::mutex> lock(mutex);
    wake.wait(lock, ready);
  }

  void work(std::size_t thread) {
    for (std::size_t seen = 0;; ++seen) {
      await_job(seen);
      if (stop) return;
      run(thread);
      if (active.fetch_sub(1) == 1) {
        std::lock_guard<std::mutex> lock(mutex);
        done.notify_one();
      }
    }
  }
};

ThreadPool::ThreadPool(std::size_t threads, Checkpoint checkpoint) : state_(std::make_unique<State>()) {
  state_->checkpoint = std::move(checkpoint);
  state_->workers.reserve(threads);
  try {
    for (std::size_t thread = 1; thread < threads; ++thread)
      state_->workers.emplace_back([state = state_.get(), thread] { state->work(thread); });
  } catch (const std::system_error&) {
    // The system grants no more threads; those there are give the same result.
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
  for (auto& worker : state_->workers) worker.join();
}

std::size_t ThreadPool::threads() const { return state_->workers.size() + 1; }

void ThreadPool::parallel_for(std::size_t tiles, const std::function<void(std::size_t, std::size_t)>& f) {
  State& state = *state_;
  {
    std::lock_guard<std::mutex> lock(state.mutex);
    state.job = &f;
    state.tiles = tiles;
    state.next = 0;
    state.error = nullptr;
    state.cancelled = false;
    state.active = state.workers.size();
    ++state.round;
  }
  state.wake.notify_all();
  state.run(0);
  state.await_others();
  if (state.error) std::rethrow_exception(state.error);
}

bool ThreadPool::cancelled() const { return state_->cancelled.load(); }

void ThreadPool::check(std::size_t thread) const {
  if (cancelled()) throw Cancelled{};
  if (thread == 0 && state_->checkpoint) state_->checkpoint();
}

}  // namespace awp
