// A small pool of threads that lives as long as one call, so that nothing is left behind to break after a fork.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>

namespace awp {

// What a caller wants looked at while a run lasts; may throw to stop it.
using Checkpoint = std::function<void()>;

class ThreadPool {
 public:
  // checkpoint: called by the calling thread, thread 0, after every tile of its own and while it waits for the others.
  explicit ThreadPool(std::size_t threads, Checkpoint checkpoint = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::size_t threads() const;

  // Calls f(tile, thread) for every tile in [0, tiles), thread in [0, threads()); returns when all are done.
  // The first exception (by time), be it a tile's or the checkpoint's, is rethrown here; tiles not yet begun are then
  // skipped.
  void parallel_for(std::size_t tiles, const std::function<void(std::size_t, std::size_t)>& f);

  // Whether such an exception has been thrown since parallel_for was called: nobody wants the rest of a tile.
  bool cancelled() const;
  // Between the steps of a long tile, by its thread: calls the checkpoint on thread 0, and leaves the tile by an
  // exception where the others' work is cancelled.
  void check(std::size_t thread) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace awp
