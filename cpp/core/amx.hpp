// The tile unit of x86: one instruction each. gcc's intrinsics take tile numbers only as literals and do not tell the
// compiler that they read memory, hence the assembly.
#pragma once

#include "gemm_tiles.hpp"

namespace awp {

struct AmxUnit {
  // All eight tiles have 16 rows of 64 bytes.
  static void configure() {
    struct alignas(64) Configuration {
      std::uint8_t palette = 1;
      std::uint8_t start_row = 0;
      std::uint8_t reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } configuration;
    static_assert(sizeof configuration == 64, "ldtilecfg reads 64 bytes");
    std::fill_n(configuration.row_bytes, 8, std::uint16_t{kTileBytes});
    std::fill_n(configuration.rows, 8, std::uint8_t{kTileRows});
    __asm__ volatile("ldtilecfg %0" : : "m"(configuration) : "memory");
  }
  static void release() { __asm__ volatile("tilerelease" : : : "memory"); }

  template <int Tile> static void zero() { __asm__ volatile("tilezero %%tmm%c0" : : "i"(Tile)); }
  template <int Tile> static void load(const void* from, Index stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
  }
  template <int Tile> static void store(void* to, Index stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile) : "memory");
  }
  // Sum += A B for pairs of bfloat16.
  template <int Sum, int A, int B> static void dot() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(A), "i"(B));
  }
  // Sum += A B for four signed bytes.
  template <int Sum, int A, int B> static void dot_bytes() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(A), "i"(B));
  }
};

}  // namespace awp
