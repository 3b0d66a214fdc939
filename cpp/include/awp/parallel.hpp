// A small pool of threads that lives as long as one call, so that nothing is left behind to break after a fork.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>

namespace awp {

class ThreadPool {
 public:
  explicit ThreadPool(std::size_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::size_t threads() const;

  // Calls f(tile, thread) for every tile in [0, tiles), thread in [0, threads()); returns when all are done.
  // The first exception (by time) is rethrown here; tiles not yet begun are then skipped.
  void parallel_for(std::size_t tiles, const std::function<void(std::size_t, std::size_t)>& f);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace awp
