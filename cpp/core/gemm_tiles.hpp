// Micro-kernel on a matrix unit of two-dimensional tile registers (AMX): 32 x 32 sums in four tiles, fed by two tiles
// of A and two of B, so that each load is used twice.
#pragma once

#include "gemm_kernels.hpp"

namespace awp {

constexpr Index kTileRows = 16;   // rows of every tile
constexpr Index kTileBytes = 64;  // bytes of a row: 16 sums or 16 operands

// out (16 x 16) = transpose of in.
inline void transpose_16x16(const std::uint32_t* in, Index in_stride, std::uint32_t* out, Index out_stride) {
#if defined(__AVX512F__)
  __m512i rows[16];
  for (int i = 0; i < 16; ++i) rows[i] = _mm512_loadu_si512(in + i * in_stride);
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 4
  for (int half = 8; half > 0; half /= 2) {  // swap the off-diagonal quarters of ever smaller blocks
    const __m512i shift = _mm512_set1_epi32(half), other = _mm512_set1_epi32(16);
    const __mmask16 upper = _mm512_test_epi32_mask(lane, shift);
    const __m512i low = _mm512_mask_add_epi32(lane, upper, _mm512_sub_epi32(lane, shift), other);
    const __m512i high = _mm512_mask_add_epi32(_mm512_add_epi32(lane, shift), upper, lane, other);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i & half) continue;
      const __m512i first = rows[i], second = rows[i + half];
      rows[i] = _mm512_permutex2var_epi32(first, low, second);
      rows[i + half] = _mm512_permutex2var_epi32(first, high, second);
    }
  }
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * out_stride, rows[i]);
#else
  for (Index i = 0; i < 16; ++i) {
    for (Index j = 0; j < 16; ++j) out[i * out_stride + j] = in[j * in_stride + i];
  }
#endif
}

struct TilePairs : PairOperand {
  template <class Unit, int Sum, int A, int B> static void dot() { Unit::template dot<Sum, A, B>(); }
};

// Unit: static configure(), release(), and templates on tile numbers load<T>, store<T>, zero<T>, dot<Sum, A, B> (pairs
// of bfloat16) and dot_bytes<Sum, A, B> (four signed bytes).
template <class Unit, class Operands = TilePairs> struct TileKernel : Operands {
  using typename Operands::Operand;
  using typename Operands::Sum;
  static constexpr Index kBlockRows = 2 * kTileRows;
  static constexpr Index kPanel = 32;
  static constexpr Index kPanelUnit = kPanel;
  static constexpr Index kDepthBlock = 256;  // slices of 32 KB on both sides
  static constexpr Index kDepthUnit = kTileRows;
  static constexpr bool kReadsPackedColumns = false;

  // Tile registers are configured per thread and given back, so that context switches stay cheap afterwards.
  struct Session {
    Session() { Unit::configure(); }
    ~Session() { Unit::release(); }
    Session(const Session&) = delete;
  };

  template <Index RowStride>
  static void run(Slice<Operand> a, Slice<Operand> b, Index depth, Index, const OutBlock<Sum>& out,
                  const Ahead& ahead) {
    if (out.rows == kBlockRows && out.columns == kPanel) return run_full<RowStride>(a, b, depth, out, ahead);
    // Tiles have no masks: the edges of the output go through a full block.
    alignas(64) Sum block[kBlockRows * kPanel];
    for (Index r = 0; out.accumulate && r < kBlockRows; ++r) {
      const Index columns = r < out.rows ? out.columns : 0;
      std::copy_n(out.data + (columns > 0 ? r * out.stride : 0), columns, block + r * kPanel);
      std::fill(block + r * kPanel + columns, block + (r + 1) * kPanel, Sum{0});
    }
    run_full<RowStride>(a, b, depth, {block, kPanel, kBlockRows, kPanel, out.accumulate}, ahead);
    for (Index r = 0; r < out.rows; ++r) std::copy_n(block + r * kPanel, out.columns, out.data + r * out.stride);
  }

 private:
  // Tiles 0 to 3: sums, row by row; 4 and 5: A; 6 and 7: B.
  template <Index RowStride>
  static void run_full(Slice<Operand> a, Slice<Operand> b, Index depth, const OutBlock<Sum>& out,
                       const Ahead& ahead) {
    constexpr Index a_bytes = RowStride * Index{sizeof(Operand)};
    const Index b_bytes = b.stride * Index{sizeof(Operand)};
    start_sums(out);
    for (Index k = 0; k < depth; k += kTileRows, b.data += kTileRows * b.stride) {
      for (Index p = 0; p < kTileRows; p += 4) prefetch(ahead, k + p);
      Unit::template load<4>(a.data + k, a_bytes);
      Unit::template load<6>(b.data, b_bytes);
      Operands::template dot<Unit, 0, 4, 6>();
      Unit::template load<7>(b.data + 16, b_bytes);
      Operands::template dot<Unit, 1, 4, 7>();
      Unit::template load<5>(a.data + kTileRows * RowStride + k, a_bytes);
      Operands::template dot<Unit, 2, 5, 6>();
      Operands::template dot<Unit, 3, 5, 7>();
    }
    const Index bytes = out.stride * Index{sizeof(Sum)};
    Sum* lower = out.data + kTileRows * out.stride;
    Unit::template store<0>(out.data, bytes);
    Unit::template store<1>(out.data + 16, bytes);
    Unit::template store<2>(lower, bytes);
    Unit::template store<3>(lower + 16, bytes);
  }

  static void start_sums(const OutBlock<Sum>& out) {
    if (!out.accumulate) {
      Unit::template zero<0>();
      Unit::template zero<1>();
      Unit::template zero<2>();
      Unit::template zero<3>();
      return;
    }
    const Index bytes = out.stride * Index{sizeof(Sum)};
    const Sum* lower = out.data + kTileRows * out.stride;
    Unit::template load<0>(out.data, bytes);
    Unit::template load<1>(out.data + 16, bytes);
    Unit::template load<2>(lower, bytes);
    Unit::template load<3>(lower + 16, bytes);
  }
};

}  // namespace awp
