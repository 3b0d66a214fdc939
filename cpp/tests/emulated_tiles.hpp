// The tile unit in plain C++, for machines without AMX: same operations, same shapes, same checks of alignment.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "../core/gemm_tiles.hpp"

namespace awp_test {

using awp::Index;

class EmulatedUnit {
 public:
  static void configure() { ready() = true; }
  static void release() { ready() = false; }

  template <int T> static void zero() { std::memset(tile(T), 0, sizeof(Tile)); }
  template <int T> static void load(const void* from, Index stride) {
    const char* rows = static_cast<const char*>(from);
    for (Index r = 0; r < awp::kTileRows; ++r) std::memcpy(tile(T)[r], rows + r * stride, awp::kTileBytes);
  }
  template <int T> static void store(void* to, Index stride) {
    char* rows = static_cast<char*>(to);
    for (Index r = 0; r < awp::kTileRows; ++r) std::memcpy(rows + r * stride, tile(T)[r], awp::kTileBytes);
  }
  template <int Sum, int A, int B> static void dot() {
    static_assert(Sum != A && Sum != B && A != B, "the instruction wants three different tiles");
    for (int m = 0; m < awp::kTileRows; ++m) {
      for (int n = 0; n < awp::kTileRows; ++n) {
        float even = 0, odd = 0, sum;
        for (int k = 0; k < awp::kTileRows; ++k) {
          even += value(A, m, 2 * k) * value(B, k, 2 * n);
          odd += value(A, m, 2 * k + 1) * value(B, k, 2 * n + 1);
        }
        std::memcpy(&sum, &tile(Sum)[m][4 * n], sizeof sum);
        sum += even + odd;
        std::memcpy(&tile(Sum)[m][4 * n], &sum, sizeof sum);
      }
    }
  }

  template <int Sum, int A, int B> static void dot_bytes() {
    static_assert(Sum != A && Sum != B && A != B, "the instruction wants three different tiles");
    for (int m = 0; m < awp::kTileRows; ++m) {
      for (int n = 0; n < awp::kTileRows; ++n) {
        std::int32_t sum;
        std::memcpy(&sum, &tile(Sum)[m][4 * n], sizeof sum);
        for (int k = 0; k < awp::kTileBytes; ++k) {
          sum += static_cast<std::int8_t>(tile(A)[m][k]) * static_cast<std::int8_t>(tile(B)[k / 4][4 * n + k % 4]);
        }
        std::memcpy(&tile(Sum)[m][4 * n], &sum, sizeof sum);
      }
    }
  }

 private:
  using Tile = unsigned char[awp::kTileRows][awp::kTileBytes];
  static bool& ready() {
    static thread_local bool ready = false;
    return ready;
  }
  static unsigned char (*tile(int number))[awp::kTileBytes] {
    static thread_local Tile tiles[8];
    if (!ready()) std::abort();  // the real unit faults when it is not configured
    return tiles[number];
  }
  static float value(int number, int row, int column) {
    std::uint16_t half;
    std::memcpy(&half, &tile(number)[row][2 * column], sizeof half);
    const std::uint32_t bits = std::uint32_t{half} << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
};

}  // namespace awp_test
