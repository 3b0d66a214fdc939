// Products of small integers (std::int8_t): sums are exact, so every instruction set gives the same.
#pragma once

#include "gemm_tiles.hpp"

namespace awp {

// Four neighbours along the inner dimension, a byte each, those of A plus Shift.
template <int Shift> struct QuadOperand {
  using Source = std::int8_t;
  using Operand = std::uint32_t;
  using Sum = std::int32_t;
  static constexpr Index kDepth = 4;
  static constexpr int kShift = Shift;

  static void from_row(const std::int8_t* row, Index count, Operand* out) {
    auto* to = reinterpret_cast<std::uint8_t*>(out);
    for (Index k = 0; k < count; ++k) to[k] = static_cast<std::uint8_t>(row[k] + kShift);
    for (Index k = count; k % kDepth != 0; ++k) to[k] = 0;  // B is zero there
  }

  static void from_columns(const std::int8_t* rows, Index stride, Index available, Index count, Operand* out) {
    const auto byte = [&](Index p, Index j) { return Operand{static_cast<std::uint8_t>(rows[p * stride + j])}; };
    if (available >= kDepth) {
      for (Index j = 0; j < count; ++j) {
        out[j] = byte(0, j) | byte(1, j) << 8 | byte(2, j) << 16 | byte(3, j) << 24;
      }
      return;
    }
    for (Index j = 0; j < count; ++j) {
      out[j] = 0;
      for (Index p = 0; p < available; ++p) out[j] |= byte(p, j) << (8 * p);
    }
  }
};

// The matrix unit takes signed bytes.
struct TileQuads : QuadOperand<0> {
  template <class Unit, int Sum, int A, int B> static void dot() { Unit::template dot_bytes<Sum, A, B>(); }
};

#if defined(__AVX2__)

// One register of bytes or of 32-bit sums.
namespace bytes {
#if defined(__AVX512F__)
using Register = __m512i;
inline Register zero() { return _mm512_setzero_si512(); }
inline Register load(const void* from) { return _mm512_loadu_si512(from); }
inline void store(void* to, Register x) { _mm512_storeu_si512(to, x); }
inline Register broadcast(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
inline Register add(Register a, Register b) { return _mm512_add_epi32(a, b); }
#else
using Register = __m256i;
inline Register zero() { return _mm256_setzero_si256(); }
inline Register load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store(void* to, Register x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }
inline Register broadcast(std::uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
inline Register add(Register a, Register b) { return _mm256_add_epi32(a, b); }
#endif

// sum + a0 b0 + a1 b1, four products a lane each, a unsigned. Without a dot product pairs are added up in 16 bits,
// which four products of at most 63 x 127 do not leave.
inline Register multiply_add(Register a0, Register b0, Register a1, Register b1, Register sum) {
#if defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, a0, b0), a1, b1);
#elif defined(__AVX512F__)
  const Register pairs = _mm512_add_epi16(_mm512_maddubs_epi16(a0, b0), _mm512_maddubs_epi16(a1, b1));
  return add(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#else
  const Register pairs = _mm256_add_epi16(_mm256_maddubs_epi16(a0, b0), _mm256_maddubs_epi16(a1, b1));
  return add(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}
}  // namespace bytes

// Vector instructions multiply unsigned by signed bytes: A is shifted to be positive, and multiply() takes the share
// that the shift has in the sums out of them.
struct IntegerKernel : QuadOperand<kLeftLimit + 1> {
  static_assert(4 * (kLeftLimit + kShift) * kRightLimit <= 32767, "four products are added up in 16 bits");
  static constexpr Index kLanes = sizeof(bytes::Register) / sizeof(Sum);
  static constexpr int kVectors = 2;  // kRows x 2 sums, 2 x 2 of B, 2 broadcasts of A, 2 on the way to the sums
  static constexpr Index kBlockRows = kRows;
  static constexpr Index kPanel = kVectors * kLanes;
  static constexpr Index kPanelUnit = kLanes;
  static constexpr Index kDepthBlock = 128;  // a slice of B (8 or 16 KB) stays in L1
  static constexpr Index kDepthUnit = 2;
  static constexpr bool kReadsPackedColumns = false;

  struct Session {};

  template <Index RowStride>
  static void run(Slice<Operand> a, Slice<Operand> b, Index depth, Index width, const OutBlock<Sum>& out,
                  const Ahead& ahead) {
    if (width == kPanel) return run_vectors<kVectors, RowStride>(a, b, depth, out, ahead);
    run_vectors<1, RowStride>(a, b, depth, out, ahead);
  }

 private:
  template <int Vectors, Index RowStride>
  static void run_vectors(Slice<Operand> a, Slice<Operand> b, Index depth, const OutBlock<Sum>& out,
                          const Ahead& ahead) {
    bytes::Register sums[kRows][Vectors];
    for (auto& row : sums) std::fill_n(row, Vectors, bytes::zero());
    for (Index k = 0; k < depth; k += 2, a.data += 2, b.data += 2 * b.stride) {
      prefetch(ahead, k);
      bytes::Register first[Vectors], second[Vectors];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        first[v] = bytes::load(b.data + v * kLanes);
        second[v] = bytes::load(b.data + b.stride + v * kLanes);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const auto left = bytes::broadcast(a.data[r * RowStride]);
        const auto right = bytes::broadcast(a.data[r * RowStride + 1]);
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
          sums[r][v] = bytes::multiply_add(left, first[v], right, second[v], sums[r][v]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; r < out.rows && v < Vectors; ++v) {
        store(out.data + r * out.stride + v * kLanes, sums[r][v], out.columns - v * kLanes, out.accumulate);
      }
    }
  }

  // Writes the first `count` lanes.
  static void store(Sum* to, bytes::Register sum, Index count, bool accumulate) {
    if (count >= kLanes) return bytes::store(to, accumulate ? bytes::add(bytes::load(to), sum) : sum);
    Sum lanes[kLanes];
    bytes::store(lanes, sum);
    for (Index j = 0; j < count; ++j) to[j] = accumulate ? to[j] + lanes[j] : lanes[j];
  }
};

#else

// Without byte products: the same integers multiplied as floats, whose sums over one slice are exact.
struct IntegerKernel : PlainOperand<float> {
  using Floats = VectorKernel<PlainOperand<float>>;
  using Source = std::int8_t;
  using Sum = std::int32_t;
  static constexpr int kShift = 0;
  static constexpr Index kLanes = Floats::kLanes;
  static constexpr Index kBlockRows = Floats::kBlockRows;
  static constexpr Index kPanel = Floats::kPanel;
  static constexpr Index kPanelUnit = Floats::kPanelUnit;
  static constexpr Index kDepthBlock = Floats::kDepthBlock;
  static constexpr Index kDepthUnit = Floats::kDepthUnit;
  static constexpr bool kReadsPackedColumns = false;
  static_assert(kDepthBlock * kLeftLimit * kRightLimit < 1 << 24, "float adds up these integers exactly");

  struct Session {};

  static void from_row(const std::int8_t* row, Index count, float* out) { std::copy_n(row, count, out); }
  static void from_columns(const std::int8_t* rows, Index, Index, Index count, float* out) {
    std::copy_n(rows, count, out);
  }

  template <Index RowStride>
  static void run(Slice<float> a, Slice<float> b, Index depth, Index width, const OutBlock<Sum>& out,
                  const Ahead& ahead) {
    float block[kBlockRows * kPanel];
    Floats::run<RowStride>(a, b, depth, width, {block, kPanel, kBlockRows, width, false}, ahead);
    for (Index r = 0; r < out.rows; ++r) {
      Sum* to = out.data + r * out.stride;
      for (Index j = 0; j < out.columns; ++j) {
        const Sum sum = static_cast<Sum>(block[r * kPanel + j]);
        to[j] = out.accumulate ? to[j] + sum : sum;
      }
    }
  }
};

#endif

}  // namespace awp
