// The kernels in plain C++: what the others are compared with.
#include <cstring>
#include <limits>

#include "table.h"

namespace awp::kernels {
namespace {

float widen(std::uint16_t half) {
  const std::uint32_t sign = half >> 15, exponent = half >> 10 & 31, digits = half & 1023;
  if (exponent == 0) {
    const float small = static_cast<float>(digits) * 5.9604644775390625e-8f;  // 2^-24, subnormal
    return sign != 0 ? -small : small;
  }
  const std::uint32_t bits = sign << 31 | (exponent == 31 ? 255 : exponent + 112) << 23 | digits << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

int zero_of(const Weights& w, std::size_t tile, std::size_t group, std::size_t row) {
  return w.zeros ? static_cast<int>(w.zeros[tile * w.groups() + group] >> 4 * row & 15) : 8;
}

float scale_of(const Weights& w, std::size_t tile, std::size_t group, std::size_t row) {
  return widen(w.scales[(tile * w.groups() + group) * kTile + row]);
}

std::size_t count(std::uint64_t mask) {
  std::size_t bits = 0;
  for (; mask != 0; mask &= mask - 1) ++bits;
  return bits;
}

// The largest magnitude of a group by its bits: NaN is above infinity, infinity above every number.
float largest(const float* x, std::size_t count) {
  std::uint32_t most = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t magnitude;
    std::memcpy(&magnitude, x + i, sizeof magnitude);
    magnitude &= 0x7fffffffu;
    most = magnitude > most ? magnitude : most;
  }
  float value;
  std::memcpy(&value, &most, sizeof value);
  return value;
}

void quantize(const Weights& w, const float* x, bool interleaved, std::int8_t* values, float* scales,
              std::int32_t* sums) {
  constexpr float kRound = 12582912;  // 1.5 2^23: adding and taking it off rounds half to even
  constexpr float kHighest = std::numeric_limits<float>::max();
  constexpr float kTiny = std::numeric_limits<float>::min() * 128;  // below, the quotient overflows: counts as zero
  for (std::size_t group = 0; group < w.groups(); ++group, values += w.group) {
    float ordered[2 * kBlock];
    for (std::size_t i = 0; i < w.group; ++i) {
      const std::size_t at = group * w.group + i;
      ordered[i] = x[interleaved ? at % kBlock * w.blocks() + at / kBlock : at];
    }
    const float most = largest(ordered, w.group);
    const bool usable = most <= kHighest;
    const float inverse = most < kTiny || !usable ? 0.0f : 127.0f / most;
    sums[group] = 0;
    for (std::size_t i = 0; i < w.group; ++i) {
      const float step = usable ? ordered[i] * inverse : 0.0f;
      values[i] = static_cast<std::int8_t>((step + kRound) - kRound);
      sums[group] += values[i];
    }
    scales[group] = usable ? most / 127.0f : std::numeric_limits<float>::quiet_NaN();
  }
}

// Calls put(block, row, mask, code of rank) for every row of a pair of blocks (or the odd last one), then done(block).
template <class Put, class Done> void for_blocks(const Weights& w, std::size_t tile, Put put, Done done) {
  const std::size_t blocks = w.blocks();
  const std::uint64_t* masks = w.masks + tile * blocks * kTile;
  const std::uint8_t* codes = w.tile_codes(tile);
  for (std::size_t block = 0; block + 1 < blocks; block += 2) {
    for (std::size_t row = 0; row < kTile; ++row) {
      const std::uint64_t low = masks[block * kTile + row], high = masks[(block + 1) * kTile + row];
      put(block, row, low, [codes](std::size_t rank) { return codes[rank] & 15; });
      put(block + 1, row, high, [codes](std::size_t rank) { return codes[rank] >> 4; });
      codes += count(low) > count(high) ? count(low) : count(high);
    }
    done(block);
  }
  if (blocks % 2 == 0) return;
  for (std::size_t row = 0; row < kTile; ++row) {
    const std::uint64_t mask = masks[(blocks - 1) * kTile + row];
    put(blocks - 1, row, mask, [codes](std::size_t rank) { return codes[rank / 2] >> 4 * (rank % 2) & 15; });
    codes += (count(mask) + 1) / 2;
  }
  done(blocks - 1);
}

void expand(const Weights& w, std::size_t tile, Expanded* out) {
  for_blocks(w, tile, [&](std::size_t block, std::size_t row, std::uint64_t mask, auto code) {
    const int zero = zero_of(w, tile, block * kBlock / w.group, row);
    std::size_t rank = 0;
    for (std::size_t i = 0; i < kBlock; ++i) {
      const std::size_t input = block * kBlock + i;
      const int value = mask >> i & 1 ? code(rank++) : zero;
      out[(input / 4 * kTile + row) * 4 + input % 4] = static_cast<Expanded>(value);
    }
  }, [](std::size_t) {});
}

void dense(const Weights& w, std::size_t tile, const Expanded* expanded, const Quantized* inputs, std::size_t rows,
           float* y, std::size_t stride) {
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t row = 0; row < kTile; ++row) {
      float total = 0;
      for (std::size_t group = 0; group < w.groups(); ++group) {
        std::int32_t sum = -zero_of(w, tile, group, row) * inputs[i].sums[group];
        for (std::size_t k = group * w.group; k < (group + 1) * w.group; ++k)
          sum += expanded[(k / 4 * kTile + row) * 4 + k % 4] * inputs[i].values[k];
        const float scale = scale_of(w, tile, group, row) * inputs[i].scales[group];
        total += static_cast<float>(sum) * scale;
      }
      y[i * stride + row] = total;
    }
  }
}

void decode(const Weights& w, std::size_t tile, const Quantized& input, float* y) {
  std::int32_t sums[2][kTile] = {};
  float totals[kTile] = {};
  for_blocks(w, tile, [&](std::size_t block, std::size_t row, std::uint64_t mask, auto code) {
    const std::size_t group = block * kBlock / w.group;
    const int zero = zero_of(w, tile, group, row);
    std::size_t rank = 0;
    for (std::size_t i = 0; i < kBlock; ++i)
      if (mask >> i & 1) sums[group % 2][row] += (code(rank++) - zero) * input.values[block * kBlock + i];
  }, [&](std::size_t block) {
    const std::size_t last = block + 2 < w.blocks() ? block + 2 : w.blocks();
    for (std::size_t group = block * kBlock / w.group; group < last * kBlock / w.group; ++group)
      for (std::size_t row = 0; row < kTile; ++row) {
        const float scale = scale_of(w, tile, group, row) * input.scales[group];
        totals[row] += static_cast<float>(sums[group % 2][row]) * scale;
        sums[group % 2][row] = 0;
      }
  });
  std::memcpy(y, totals, sizeof totals);
}

void dense_float(const Weights& w, std::size_t tile, const Expanded* expanded, const float* x, std::size_t rows,
                 float* y, std::size_t stride) {
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t row = 0; row < kTile; ++row) {
      float total = 0;
      for (std::size_t group = 0; group < w.groups(); ++group) {
        const int zero = zero_of(w, tile, group, row);
        float sum = 0;
        for (std::size_t k = group * w.group; k < (group + 1) * w.group; ++k)
          sum += static_cast<float>(expanded[(k / 4 * kTile + row) * 4 + k % 4] - zero) * x[i * w.inputs + k];
        total += sum * scale_of(w, tile, group, row);
      }
      y[i * stride + row] = total;
    }
  }
}

}  // namespace

constexpr Table kReference{"base", quantize, decode, expand, dense, dense_float};

}  // namespace awp::kernels
