// Weights that are expanded once, for single tokens, and when that pays.
//
// A weight can be decoded as it is stored: fewer bytes, more arithmetic. Or it can be multiplied from a copy with four bits
// for every input, as a dense weight is. Which is sooner depends on how many cores share the memory: decoding grows with
// them, reading does not. Both give the same bits, so the first products try both and the sooner form stays.
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
bool fill_nibbles(const Weights&, const Table&, std::uint8_t* out, const Parallel&);

// The contest of the two forms, from any number of threads. They do not simply take turns, or two weights of a shape in
// every layer would be one of them always stored and the other always expanded.
class Trial {
 public:
  enum class Form { stored, expanded };
  static constexpr std::size_t kSkipped = 16;  // first products of each form, whose weights lie where others left them
  static constexpr std::size_t kTimed = 32;    // and those that decide, by the mean of their second quarter

  bool decided() const { return decided_.load(std::memory_order_acquire); }
  Form next();  // the winner, once there is one
  void took(Form, std::int64_t nanoseconds);

 private:
  std::mutex lock_;
  std::atomic<bool> decided_{false};
  Form form_ = Form::stored;  // the winner
  std::size_t products_ = 0, count_[2] = {};
  std::int64_t times_[2][kTimed] = {};
};

// The one trial of all weights of a shape in this process: layers of a model decide together. Null without memory.
Trial* trial_of(const Weights&, const Table&);

// Whether single tokens are multiplied by weights of this shape from the copy: 1 or 0; -1 until that is decided.
int expands(const Weights&, const Table&);

// The copy of one weight, from the first product that wants it until it has lost.
class Expansion {
 public:
  void prepare(const Weights&, const Table&);

  // As the function `multiply`, in either form; always expanded where AWP_EXPAND=1, as stored where there is no memory.
  bool multiply(const Weights&, const Table&, const Inputs&, float* y, const Parallel&);

  bool held() const { return held_.load(std::memory_order_acquire); }

 private:
  bool make(const Weights&, const Table&, const Parallel&);
  void drop();

  std::size_t bytes_ = 0;  // of the copy; 0: none is ever made
  Trial* trial_ = nullptr;
  Pages nibbles_;
  bool refused_ = false;  // there was no memory
  std::atomic<bool> held_{false};
  std::shared_mutex lock_;  // of the three above; shared by products that read the copy
};

}  // namespace awp::kernels
