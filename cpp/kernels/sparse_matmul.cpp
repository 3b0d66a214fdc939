#include "sparse_matmul.h"

#include <atomic>
#include <cstring>
#include <limits>

#include "buffer.h"

namespace awp::kernels {
namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 31;  // rows or inputs; products of two and 16 stay below 2^63
constexpr std::size_t kFewRows = 3;                    // up to here decoding again costs less than expanding
constexpr std::size_t kTasks = 32;                     // at most: enough for threads of unequal speed
constexpr std::size_t kTaskWeights = 1 << 15;          // at least, for a thread to be worth waking

std::size_t bits(std::uint64_t mask) { return static_cast<std::size_t>(__builtin_popcountll(mask)); }

bool aligned(const void* pointer, std::size_t to) { return reinterpret_cast<std::uintptr_t>(pointer) % to == 0; }

// Bytes that a tile's codes take by its masks; SIZE_MAX where a mask disagrees with `kept`.
std::size_t tile_bytes(const Weights& w, std::size_t tile, bool fixed) {
  const std::uint64_t* masks = w.masks + tile * w.blocks() * kTile;
  std::size_t total = 0;
  for (std::size_t block = 0; block < w.blocks(); block += 2) {
    const bool paired = block + 1 < w.blocks();
    for (std::size_t row = 0; row < kTile; ++row) {
      const std::size_t low = bits(masks[block * kTile + row]);
      const std::size_t high = paired ? bits(masks[(block + 1) * kTile + row]) : low;
      if (fixed && (low != w.kept || high != w.kept)) return std::numeric_limits<std::size_t>::max();
      total += paired ? (low > high ? low : high) : (low + 1) / 2;
    }
  }
  return total;
}

const char* check_codes(const Packed& packed, const Weights& w) {
  const std::size_t available = packed.n_codes - 2 * kGuard;
  const bool fixed = packed.offsets == nullptr;
  std::size_t at = 0;
  for (std::size_t tile = 0; tile < w.tiles(); ++tile) {
    if (!fixed && w.offsets[tile] != at) return "an entry of the offset table does not follow from the masks";
    const std::size_t bytes = tile_bytes(w, tile, fixed);
    if (bytes == std::numeric_limits<std::size_t>::max()) return "a mask keeps another number of weights than `kept`";
    if (bytes > available - at) return "the codes are fewer than the masks keep";
    at += bytes;
  }
  if (!fixed && w.offsets[w.tiles()] != at) return "an entry of the offset table does not follow from the masks";
  return at == available ? nullptr : "the codes are more than the masks keep";
}

void reorder(const Weights& w, const float* x, bool interleaved, float* out) {
  if (!interleaved) {
    std::memcpy(out, x, w.inputs * sizeof *out);
    return;
  }
  const std::size_t blocks = w.blocks();
  for (std::size_t i = 0; i < kBlock; ++i)
    for (std::size_t block = 0; block < blocks; ++block) out[block * kBlock + i] = x[i * blocks + block];
}

// y[16] = silu(gate) up, silu(x) = x / (1 + e^-x): plain operations in a fixed order, so that every compiler and
// export/sparse_reference.py get the same bits. The exponential is Cephes' expf: 2^n e^r with r = x - n ln 2. Gates below
// -88 count as -88, whose product is 0 but for 37 digits.
void apply_gate(const float* gate, const float* up, float* y) {
  constexpr float kRound = 12582912;  // 1.5 2^23: adding it leaves the nearest whole number in the low bits
  float product[kTile];  // y may be where the gate is
  for (std::size_t i = 0; i < kTile; ++i) {
    const float g = gate[i] < -88.0f ? -88.0f : gate[i], x = -g < -87.0f ? -87.0f : -g;
    const float shifted = x * 1.44269504f + kRound, n = shifted - kRound;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    std::uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;  // the exponent of 2^n
    float power;
    std::memcpy(&power, &bits, sizeof power);
    product[i] = g / (1.0f + (p * (r * r) + r + 1.0f) * power) * up[i];
  }
  std::memcpy(y, product, sizeof product);
}

struct Job {
  const Weights& w;
  const Table& table;
  const Inputs& in;
  float* y;
  std::size_t tiles_per_task = 1;
  std::int8_t* values = nullptr;
  float* scales = nullptr;
  std::int32_t* sums = nullptr;
  Quantized* rows = nullptr;
  float* ordered = nullptr;
  std::atomic<bool> failed{false};

  void prepare(std::size_t row) {
    const float* x = in.x + row * w.inputs;
    if (in.level == Level::float_inputs) return reorder(w, x, in.interleaved, ordered + row * w.inputs);
    std::int8_t* to = values + row * w.inputs;
    const std::size_t group = row * w.groups();
    table.quantize(w, x, in.interleaved, to, scales + group, sums + group);
    rows[row] = {to, scales + group, sums + group};
  }

  std::size_t output_tiles() const { return (w.outputs() + kTile - 1) / kTile; }

  void tiles(std::size_t task) {
    const std::size_t first = task * tiles_per_task;
    const std::size_t last = first + tiles_per_task < output_tiles() ? first + tiles_per_task : output_tiles();
    if (decodes(in)) {
      for (std::size_t tile = first; tile < last; ++tile) decode(tile);
      return;
    }
    const Buffer<Expanded> expanded = allocate<Expanded>(w.inputs * kTile);
    const Buffer<float> last_tile = allocate<float>(w.rows % kTile != 0 ? in.rows * kTile : 0);
    const Buffer<float> up = allocate<float>(w.gated ? in.rows * kTile : 0);
    if (!expanded || !last_tile || !up) {
      failed = true;
      return;
    }
    for (std::size_t tile = first; tile < last; ++tile) {
      const bool whole = (tile + 1) * kTile <= w.rows;
      float* to = whole ? y + tile * kTile : last_tile.get();
      const std::size_t stride = whole ? w.outputs() : kTile;
      expand_and_multiply(tile, expanded.get(), to, stride);
      if (w.gated) {
        expand_and_multiply(output_tiles() + tile, expanded.get(), up.get(), kTile);
        for (std::size_t row = 0; row < in.rows; ++row)
          apply_gate(to + row * stride, up.get() + row * kTile, to + row * stride);
      }
      for (std::size_t row = 0; !whole && row < in.rows; ++row) put(tile, row, to + row * kTile);
    }
  }

  void expand_and_multiply(std::size_t tile, Expanded* expanded, float* to, std::size_t stride) {
    table.expand(w, tile, expanded);
    if (in.level == Level::int8_inputs)
      table.dense(w, tile, expanded, rows, in.rows, to, stride);
    else
      table.dense_float(w, tile, expanded, ordered, in.rows, to, stride);
  }

  void decode_row(std::size_t tile, std::size_t row, float* sixteen) const {
    (w.nibbles ? table.decode_nibbles : table.decode)(w, tile, rows[row], sixteen);
  }

  void decode(std::size_t tile) {
    float sixteen[kTile], up[kTile];
    for (std::size_t row = 0; row < in.rows; ++row) {
      decode_row(tile, row, sixteen);
      if (w.gated) {
        decode_row(output_tiles() + tile, row, up);
        apply_gate(sixteen, up, sixteen);
      }
      put(tile, row, sixteen);
    }
  }

  void put(std::size_t tile, std::size_t row, const float* sixteen) {
    const std::size_t left = w.outputs() - tile * kTile, count = left < kTile ? left : kTile;
    std::memcpy(y + row * w.outputs() + tile * kTile, sixteen, count * sizeof *y);
  }
};

}  // namespace

const char* check(const Packed& packed, Weights* out) {
  if (packed.rows < 1 || packed.inputs < 1 || packed.rows > kMost || packed.inputs > kMost)
    return "N and K must be at least 1 and at most 2^31";
  if (packed.group != 64 && packed.group != 128) return "block_size must be 64 or 128";
  if (packed.inputs % packed.group != 0) return "block_size must divide K";
  if (packed.kept < -1 || packed.kept > 64) return "kept must lie between 0 and 64, or be -1";
  if (packed.gated != 0 && (packed.gated != 1 || packed.rows % (2 * static_cast<std::int64_t>(kTile)) != 0))
    return "a gate and what it multiplies must have equally many rows, a multiple of 16";
  if (packed.codes == nullptr || packed.n_codes < 2 * kGuard) return "the codes lack their guard bytes";
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  const std::size_t kept = packed.kept < 0 ? 0 : size(packed.kept);
  const Weights w{packed.masks,      packed.codes + kGuard, packed.scales,      packed.zeros, packed.offsets,
                  size(packed.rows), size(packed.inputs),   size(packed.group), kept,         packed.gated == 1};
  if (packed.masks == nullptr || packed.n_masks != w.tiles() * w.blocks() * kTile) return "masks have the wrong size";
  if (packed.scales == nullptr || packed.n_scales != w.tiles() * w.groups() * kTile) return "scales have the wrong size";
  if (packed.zeros != nullptr && packed.n_zeros != w.tiles() * w.groups()) return "zeros have the wrong size";
  if ((packed.offsets == nullptr) != (packed.kept >= 0)) return "offsets belong to kept = -1 and to nothing else";
  if (packed.offsets != nullptr && packed.n_offsets != w.tiles() + 1) return "offsets have the wrong size";
  if (!aligned(packed.masks, 8) || !aligned(packed.scales, 2) || !aligned(packed.zeros, 8) || !aligned(packed.offsets, 8))
    return "a tensor is not aligned to its elements";
  *out = w;
  return check_codes(packed, w);
}

bool decodes(const Inputs& in) { return in.level == Level::int8_inputs && in.rows <= kFewRows; }

bool multiply(const Weights& w, const Table& table, const Inputs& in, float* y, const Parallel& parallel) {
  if (in.rows == 0) return true;
  const bool whole = in.level == Level::int8_inputs;
  const Buffer<std::int8_t> values = allocate<std::int8_t>(whole ? in.rows * w.inputs : 0);
  const Buffer<float> scales = allocate<float>(whole ? in.rows * w.groups() : 0);
  const Buffer<std::int32_t> sums = allocate<std::int32_t>(whole ? in.rows * w.groups() : 0);
  const Buffer<Quantized> rows = allocate<Quantized>(whole ? in.rows : 0);
  const Buffer<float> ordered = allocate<float>(whole ? 0 : in.rows * w.inputs);
  if (!values || !scales || !sums || !rows || !ordered) return false;
  Job job{w, table, in, y, 1, values.get(), scales.get(), sums.get(), rows.get(), ordered.get(), {}};
  const auto prepare = [](void* data, std::size_t row) { static_cast<Job*>(data)->prepare(row); };
  if (in.rows == 1)
    job.prepare(0);
  else
    parallel.run(parallel.context, prepare, in.rows, &job);
  const std::size_t least = kTaskWeights / (kTile * w.inputs * in.rows) + 1;
  const std::size_t even = (job.output_tiles() + kTasks - 1) / kTasks;
  job.tiles_per_task = least > even ? least : even;
  const auto tiles = [](void* data, std::size_t task) { static_cast<Job*>(data)->tiles(task); };
  const std::size_t tasks = (job.output_tiles() + job.tiles_per_task - 1) / job.tiles_per_task;
  if (tasks == 1)
    job.tiles(0);
  else
    parallel.run(parallel.context, tiles, tasks, &job);
  return !job.failed;
}

}  // namespace awp::kernels
