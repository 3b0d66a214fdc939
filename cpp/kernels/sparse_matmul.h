// y = x W^T for a packed sparse INT4 weight W: checks of untrusted bytes, and the walk over rows and tiles.
#pragma once
#include "table.h"

namespace awp::kernels {

constexpr int kFormatVersion = 1;

// What somebody hands over: nothing here is trusted.
struct Packed {
  std::int64_t rows, inputs, group, kept;  // kept: codes of every block; -1: as many as its mask has bits
  const std::uint64_t* masks;
  std::size_t n_masks;
  const std::uint8_t* codes;
  std::size_t n_codes;
  const std::uint16_t* scales;
  std::size_t n_scales;
  const std::uint64_t* zeros;  // null: 8 everywhere
  std::size_t n_zeros;
  const std::uint64_t* offsets;  // null where kept >= 0
  std::size_t n_offsets;
  std::int64_t gated;  // 1: rows of a gate, then as many that it multiplies; else 0
};

// Fills `out` and returns null, or returns what is wrong: a text without numbers that lives for ever.
const char* check(const Packed&, Weights* out);

// Runs task(data, i) for all i < count, on as many threads as it likes.
struct Parallel {
  void (*run)(void* context, void (*task)(void* data, std::size_t i), std::size_t count, void* data);
  void* context;
};

enum class Level { float_inputs = 0, int8_inputs = 4 };

struct Inputs {
  const float* x;  // [rows][inputs]
  std::size_t rows;
  bool interleaved;  // block b holds the inputs b, b + n, b + 2n, ... of n blocks; else 64 b, 64 b + 1, ...
  Level level;
};

// Whether so few int8 rows are decoded tile by tile, from Weights::nibbles where there are some; more are multiplied densely.
bool decodes(const Inputs&);

// y[rows][weights.outputs()]; false where there is no memory.
bool multiply(const Weights&, const Table&, const Inputs&, float* y, const Parallel&);

// The fastest table this machine runs, or the one that a name of AWP_ISA asks for; null for an unknown or missing one.
const Table* choose(const char* isa);

}  // namespace awp::kernels
