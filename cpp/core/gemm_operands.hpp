// Operands: what a kernel multiplies, and how matrix elements become operands. An operand holds kDepth neighbours along
// the inner dimension: one float or double, or two bfloat16 of which the lower half is the earlier.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "simd.hpp"

namespace awp {

// float and double enter the product unchanged.
template <class T> struct PlainOperand {
  using Source = T;
  using Operand = T;
  using Sum = T;
  static constexpr Index kDepth = 1;

  static simd::Vector<T> load(const T* from) { return simd::load(from); }
  static simd::Vector<T> broadcast(T x) { return simd::broadcast(x); }
  static void multiply_add(simd::Vector<T> a, simd::Vector<T> b, simd::Vector<T>& sum) {
    sum = simd::multiply_add(a, b, sum);
  }
  // Operands of a piece of one row of A.
  static void from_row(const T* row, Index count, T* out) { std::copy_n(row, count, out); }
  // Operands of `count` columns of the first row of B at `rows`.
  static void from_columns(const T* rows, Index, Index, Index count, T* out) { std::copy_n(rows, count, out); }
};

// Nearest bfloat16, ties to even; NaN stays NaN.
inline std::uint32_t round_to_bfloat16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded;
}

// float rounded to bfloat16 and multiplied as float: for instruction sets without bfloat16 products.
struct RoundedOperand : PlainOperand<float> {
  static float round(float x) {
    const std::uint32_t bits = round_to_bfloat16(x) << 16;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
  static void from_row(const float* row, Index count, float* out) { std::transform(row, row + count, out, round); }
  static void from_columns(const float* rows, Index, Index, Index count, float* out) { from_row(rows, count, out); }
};

// Two bfloat16; multiply_add is absent where only the tile unit (or a test) reads the operands.
struct PairOperand {
  using Source = float;
  using Operand = std::uint32_t;
  using Sum = float;
  static constexpr Index kDepth = 2;

#if defined(__AVX512BF16__)
  static __m512bh load(const Operand* from) { return (__m512bh)_mm512_loadu_si512(from); }
  static __m512bh broadcast(Operand x) { return (__m512bh)_mm512_set1_epi32(static_cast<int>(x)); }
  static void multiply_add(__m512bh a, __m512bh b, __m512& sum) { sum = _mm512_dpbf16_ps(sum, a, b); }
#endif

  static void from_row(const float* row, Index count, Operand* out) {
    Index k = 0;
#if defined(__AVX512BF16__)
    for (; k + 32 <= count; k += 32) {
      const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + k + 16), _mm512_loadu_ps(row + k));
      _mm512_storeu_si512(out + k / 2, (__m512i)both);
    }
#endif
    for (; k + 1 < count; k += 2) out[k / 2] = pair(row[k], row[k + 1]);
    if (k < count) out[k / 2] = pair(row[k], 0.0f);
  }

  // Operands of `count` columns of the first kDepth of the `available` rows of B, missing rows being zero.
  static void from_columns(const float* rows, Index stride, Index available, Index count, Operand* out) {
    Index j = 0;
#if defined(__AVX512BF16__)
    for (; j < count; j += 16) {
      const Index lanes = std::min<Index>(16, count - j);
      const __m512 first = simd::load(rows + j, lanes);
      const __m512 second = available > 1 ? simd::load(rows + stride + j, lanes) : _mm512_setzero_ps();
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second, first);  // 16 of the first row, 16 of the second
      const __m512i pairs = _mm512_maskz_permutexvar_epi16(~__mmask32{0}, interleave(), both);
      _mm512_mask_storeu_epi32(out + j, static_cast<__mmask16>((1u << lanes) - 1), pairs);
    }
#endif
    for (; j < count; ++j) out[j] = pair(rows[j], available > 1 ? rows[stride + j] : 0.0f);
  }

#if defined(__AVX512BF16__)
  // 0, 16, 1, 17, ...: neighbours along the inner dimension side by side.
  static __m512i interleave() {
    return _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                            23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  }
#endif

  static Operand pair(float first, float second) {
    return round_to_bfloat16(first) | round_to_bfloat16(second) << 16;
  }
};

}  // namespace awp
