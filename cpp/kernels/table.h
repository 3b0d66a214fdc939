// Sparse INT4 products: what the kernels of every instruction set share. Depends on nothing.
//
// The byte layout is defined in export/sparse_packing.py. Rows are handled in tiles of 16; a tile's float results are
// sums over groups in ascending order, each product and sum rounded once, so that every table gives the same bits.
#pragma once
#include <cstddef>
#include <cstdint>

namespace awp::kernels {

constexpr std::size_t kTile = 16;   // rows
constexpr std::size_t kBlock = 64;  // inputs that share a mask
constexpr std::size_t kGuard = 64;  // bytes before the first code and behind the last that a kernel may read

// Inlined everywhere: a copy compiled for one instruction set must never be the one that another calls.
#define AWP_INLINE __attribute__((always_inline)) inline

// A checked weight: (code - zero) scale where the mask has a bit, 0 elsewhere.
struct Weights {
  const std::uint64_t* masks;    // [tiles][blocks][16]
  const std::uint8_t* codes;     // first code, kGuard bytes into its buffer
  const std::uint16_t* scales;   // [tiles][groups][16], float16
  const std::uint64_t* zeros;    // [tiles][groups], nibble r of row r; null: 8 everywhere
  const std::uint64_t* offsets;  // [tiles + 1], a tile's first code; null: every block keeps `kept`
  std::size_t rows, inputs, group, kept;  // group: kBlock or 2 kBlock
  bool gated = false;  // the first half of the rows is a gate of the second: y = silu(x G^T) (x U^T), as in SwiGLU
  const std::uint8_t* nibbles = nullptr;  // all weights as `decode_nibbles` reads them, or null

  AWP_INLINE std::size_t tiles() const { return (rows + kTile - 1) / kTile; }
  AWP_INLINE std::size_t outputs() const { return gated ? rows / 2 : rows; }
  AWP_INLINE std::size_t blocks() const { return inputs / kBlock; }
  // A tile with every weight in four bits, pruned ones at their zero point: [blocks][16 rows][32], the inputs j and
  // j + 32 of a block in byte j, the first in the low nibble.
  AWP_INLINE std::size_t tile_nibbles() const { return blocks() * kTile * (kBlock / 2); }
  // Without a division, which the kernels would wait for in every group.
  AWP_INLINE std::size_t groups() const { return group == kBlock ? blocks() : blocks() / 2; }
  // The codes of a tile where every block keeps the same number.
  AWP_INLINE std::size_t tile_bytes() const { return kTile * (blocks() / 2 * kept + blocks() % 2 * ((kept + 1) / 2)); }
  AWP_INLINE const std::uint8_t* tile_codes(std::size_t tile) const {
    return codes + (offsets ? offsets[tile] : tile * tile_bytes());
  }
};

// One row of inputs in the order of the blocks: int8 steps of `scales`, and their sums, per group.
struct Quantized {
  const std::int8_t* values;
  const float* scales;
  const std::int32_t* sums;
};

// A tile with every weight in a byte, pruned ones at their zero point: [inputs / 4][16 rows][4].
using Expanded = std::uint8_t;

struct Table {
  const char* name;
  // One row of float inputs as `Quantized` has it; an infinite or undefined input makes its group's scale NaN.
  void (*quantize)(const Weights&, const float* x, bool interleaved, std::int8_t* values, float* scales,
                   std::int32_t* sums);
  // y[16] = the tile times one row of inputs, straight from the packed bytes.
  void (*decode)(const Weights&, std::size_t tile, const Quantized&, float* y);
  void (*expand)(const Weights&, std::size_t tile, Expanded* out);
  // y[i * stride + 0..15] = the tile times inputs[i], i < count.
  void (*dense)(const Weights&, std::size_t tile, const Expanded*, const Quantized* inputs, std::size_t count,
                float* y, std::size_t stride);
  // The same for float inputs, x[i * inputs + ...] in the order of the blocks; sums are not rounded alike everywhere.
  void (*dense_float)(const Weights&, std::size_t tile, const Expanded*, const float* x, std::size_t count, float* y,
                      std::size_t stride);
  // As `decode`, from Weights::nibbles; null where `decode` should keep up with memory on any number of cores.
  void (*decode_nibbles)(const Weights&, std::size_t tile, const Quantized&, float* y) = nullptr;
};

extern const Table kReference, kAvx2, kAvx512, kAvx512Vnni, kNeon, kNeonDot;

}  // namespace awp::kernels
