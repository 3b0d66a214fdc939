// Weights that are expanded once, for single tokens, and when that pays.
//
// A weight can be decoded as it is stored: fewer bytes, more arithmetic. Or it can be multiplied from a copy with four bits
// for every input, as a dense weight is. Which is sooner depends on how many cores share the memory: decoding grows with
// them, reading does not. Both give the same bits, so the first products take turns and the sooner form stays.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <shared_mutex>

#include "buffer.h"
#include "sparse_matmul.h"

namespace awp::kernels {

// Bytes of the copy; 0 where a table has no use for it, at few codes a block, and where AWP_EXPAND=0 forbids it.
std::size_t nibble_bytes(const Weights&, const Table&);

// Fills them in for Weights::nibbles; false where there is no memory.
bool fill_nibbles(const Weights&, const Table&, std::uint8_t* out);

// The contest of the two forms, from any number of threads.
class Trial {
 public:
  enum class Form { stored, expanded };
  static constexpr std::size_t kSkipped = 16;  // first products of each form, whose weights lie where others left them
  static constexpr std::size_t kTimed = 32;    // products of each form after those; their medians decide

  bool decided() const { return decided_.load(std::memory_order_acquire); }
  Form next();  // the winner, once there is one
  void took(Form, std::int64_t nanoseconds);

 private:
  std::mutex lock_;
  std::atomic<bool> decided_{false};
  Form form_ = Form::stored;  // of the last product, then the winner
  std::size_t count_[2] = {};
  std::int64_t times_[2][kTimed] = {};
};

// The one trial of all weights of a shape in this process: layers of a model decide together. Null without memory.
Trial* trial_of(const Weights&, const Table&);

// Whether single tokens are multiplied by weights of this shape from the copy: 1 or 0; -1 until that is decided.
int expands(const Weights&, const Table&);

// The copy of one weight, until it has lost.
class Expansion {
 public:
  // Makes the copy where it may pay, for good where AWP_EXPAND=1; false where there is no memory.
  bool make(const Weights&, const Table&);

  // As the function `multiply`.
  bool multiply(const Weights&, const Table&, const Inputs&, float* y, const Parallel&);

  bool held() const { return held_.load(std::memory_order_acquire); }

 private:
  void drop();

  Buffer<std::uint8_t> nibbles_;
  std::atomic<bool> held_{false};
  std::shared_mutex lock_;  // shared by products that read the copy
  Trial* trial_ = nullptr;  // null: the copy is used whatever it takes
};

}  // namespace awp::kernels
