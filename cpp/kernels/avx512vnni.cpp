// AVX-512 with VBMI2 and VNNI: one expansion puts the codes of a block in their places, over its zero point, and one
// instruction multiplies four inputs of 16 lanes. Tests compile this file against an emulation of the intrinsics.
#if defined(AWP_EMULATED_INTRINSICS)
#include AWP_EMULATED_INTRINSICS
#else
#include <immintrin.h>
#endif

#include "table.h"

namespace awp::kernels {
namespace {

inline std::size_t count(std::uint64_t mask) { return static_cast<std::size_t>(__builtin_popcountll(mask)); }

inline std::uint64_t zeros_of(const Weights& w, std::size_t tile, std::size_t group) {
  return w.zeros ? w.zeros[tile * w.groups() + group] : 0x8888888888888888u;
}

inline __m512i zero() { return _mm512_setzero_si512(); }

// The zero points of 16 rows: one an int32, and on every byte of it, since an int32 is broadcast from memory by the load
// alone, where a byte takes the port that places codes.
struct Fills {
  __m512i wide;
  alignas(64) std::int32_t of[kTile];
  void set(std::uint64_t zeros) {
    const __m512i bytes = _mm512_srlv_epi64(_mm512_set1_epi64(static_cast<long long>(zeros)),
                                            _mm512_setr_epi64(0, 8, 16, 24, 32, 40, 48, 56));
    constexpr long long kFirst = 0, kEighth = 0x0808080808080808;
    const __m512i lowest = _mm512_setr_epi64(kFirst, kEighth, kFirst, kEighth, kFirst, kEighth, kFirst, kEighth);
    const __m512i pairs = _mm512_shuffle_epi8(bytes, lowest);
    const __m512i nibbles = _mm512_srlv_epi32(pairs, _mm512_set1_epi64(4ll << 32));
    _mm512_storeu_si512(of, _mm512_and_si512(nibbles, _mm512_set1_epi8(15)));
    __asm__("" : "+m"(of));  // or gcc takes them from the register again, by that port
    wide = _mm512_and_si512(nibbles, _mm512_set1_epi32(15));
  }
  __m512i row(std::size_t i) const { return _mm512_set1_epi32(of[i]); }
};

// One code a byte, both nibbles; Half: no block keeps more than 32.
template <bool Half> inline __m512i load_codes(const std::uint8_t* codes) {
  if (Half) return _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
  return _mm512_loadu_si512(codes);
}

inline __m512i low_nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline __m512i high_nibbles(__m512i v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }

// The codes of an odd last block lie two in order in a byte.
inline __m512i load_unpaired(const std::uint8_t* codes) {
  const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
  return low_nibbles(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)));
}

inline __m512i place(__m512i codes, std::uint64_t mask, __m512i fill) {
  return _mm512_mask_expand_epi8(fill, mask, codes);
}

template <bool Fixed> inline std::size_t step(const Weights& w, std::uint64_t low, std::uint64_t high) {
  if (Fixed) return w.kept;
  const std::size_t a = count(low), b = count(high);
  return a > b ? a : b;
}

template <bool Fixed> inline std::size_t last_step(const Weights& w, std::uint64_t mask) {
  return ((Fixed ? w.kept : count(mask)) + 1) / 2;
}

// Sums of the 16 lanes of 16 registers.
inline __m512i sum_lanes(const __m512i* v) {
  __m512i t[8], u[4], s[2];
  for (int i = 0; i < 8; ++i)
    t[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
  for (int i = 0; i < 4; ++i)
    u[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(t[2 * i], t[2 * i + 1]), _mm512_unpackhi_epi64(t[2 * i], t[2 * i + 1]));
  for (int i = 0; i < 2; ++i)
    s[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(u[2 * i], u[2 * i + 1], 0x44),
                            _mm512_shuffle_i32x4(u[2 * i], u[2 * i + 1], 0xee));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(s[0], s[1], 0x88), _mm512_shuffle_i32x4(s[0], s[1], 0xdd));
}

inline __m512 scales_of(const Weights& w, std::size_t tile, std::size_t group) {
  const std::uint16_t* scales = w.scales + (tile * w.groups() + group) * kTile;
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
}

// total + float(sum - zero * sum of inputs) * (weight scale * input scale), for 16 rows.
inline __m512 add_group(__m512 total, __m512i sums, const Fills& zeros, const Weights& w, std::size_t tile,
                        std::size_t group, const Quantized& input) {
  const __m512i whole = _mm512_sub_epi32(sums, _mm512_mullo_epi32(zeros.wide, _mm512_set1_epi32(input.sums[group])));
  const __m512 scale = _mm512_mul_ps(scales_of(w, tile, group), _mm512_set1_ps(input.scales[group]));
  return _mm512_add_ps(total, _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale));
}

template <bool Fixed, bool Wide, bool Half>
void decode_tile(const Weights& w, std::size_t tile, const Quantized& input, float* y) {
  const std::size_t blocks = w.blocks();
  const std::uint64_t* masks = w.masks + tile * blocks * kTile;
  const std::uint8_t* codes = w.tile_codes(tile);
  __m512 total = _mm512_setzero_ps();
  __m512i lanes[2][kTile];
  for (std::size_t block = 0; block + 1 < blocks; block += 2, masks += 2 * kTile) {
    const std::size_t group = Wide ? block / 2 : block;
    Fills fills[Wide ? 1 : 2];
    for (std::size_t i = 0; i < (Wide ? 1 : 2); ++i) fills[i].set(zeros_of(w, tile, group + i));
    const Fills &low = fills[0], &high = fills[Wide ? 0 : 1];
    const __m512i first = _mm512_loadu_si512(input.values + block * kBlock);
    const __m512i second = _mm512_loadu_si512(input.values + (block + 1) * kBlock);
    for (std::size_t row = 0; row < kTile; ++row) {
      const __m512i packed = load_codes<Half>(codes);
      const __m512i a = place(low_nibbles(packed), masks[row], low.row(row));
      const __m512i b = place(high_nibbles(packed), masks[kTile + row], high.row(row));
      lanes[0][row] = _mm512_dpbusd_epi32(zero(), a, first);
      lanes[Wide ? 0 : 1][row] = _mm512_dpbusd_epi32(Wide ? lanes[0][row] : zero(), b, second);
      codes += step<Fixed>(w, masks[row], masks[kTile + row]);
    }
    total = add_group(total, sum_lanes(lanes[0]), low, w, tile, group, input);
    if (!Wide) total = add_group(total, sum_lanes(lanes[1]), high, w, tile, group + 1, input);
  }
  if (blocks % 2 != 0) {
    Fills fills;
    fills.set(zeros_of(w, tile, blocks - 1));
    const __m512i values = _mm512_loadu_si512(input.values + (blocks - 1) * kBlock);
    for (std::size_t row = 0; row < kTile; ++row) {
      const __m512i weights = place(load_unpaired(codes), masks[row], fills.row(row));
      lanes[0][row] = _mm512_dpbusd_epi32(zero(), weights, values);
      codes += last_step<Fixed>(w, masks[row]);
    }
    total = add_group(total, sum_lanes(lanes[0]), fills, w, tile, blocks - 1, input);
  }
  _mm512_storeu_ps(y, total);
}

template <bool Fixed, bool Half> void decode_some(const Weights& w, std::size_t tile, const Quantized& input, float* y) {
  if (w.group == 2 * kBlock)
    decode_tile<Fixed, true, Half>(w, tile, input, y);
  else
    decode_tile<Fixed, false, Half>(w, tile, input, y);
}

void decode(const Weights& w, std::size_t tile, const Quantized& input, float* y) {
  if (w.offsets != nullptr)
    decode_some<false, false>(w, tile, input, y);
  else if (w.kept <= 32)
    decode_some<true, true>(w, tile, input, y);
  else
    decode_some<true, false>(w, tile, input, y);
}

// Writes a block of 16 rows: four bytes of each row side by side, 16 times.
inline void put_rows(const __m512i* rows, Expanded* out) {
  __m512i t[16], u[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
  }
  // u[4 i + j]: in 128-bit lane l the words 4 l + j of rows 4 i to 4 i + 3.
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 2; ++j) {
      u[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
      u[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
    }
  for (int j = 0; j < 4; ++j) {
    const __m512i even[2] = {_mm512_shuffle_i32x4(u[j], u[4 + j], 0x88), _mm512_shuffle_i32x4(u[8 + j], u[12 + j], 0x88)};
    const __m512i odd[2] = {_mm512_shuffle_i32x4(u[j], u[4 + j], 0xdd), _mm512_shuffle_i32x4(u[8 + j], u[12 + j], 0xdd)};
    _mm512_storeu_si512(out + j * 64, _mm512_shuffle_i32x4(even[0], even[1], 0x88));
    _mm512_storeu_si512(out + (j + 4) * 64, _mm512_shuffle_i32x4(odd[0], odd[1], 0x88));
    _mm512_storeu_si512(out + (j + 8) * 64, _mm512_shuffle_i32x4(even[0], even[1], 0xdd));
    _mm512_storeu_si512(out + (j + 12) * 64, _mm512_shuffle_i32x4(odd[0], odd[1], 0xdd));
  }
}

template <bool Fixed> void expand_tile(const Weights& w, std::size_t tile, Expanded* out) {
  const std::size_t blocks = w.blocks();
  const std::uint64_t* masks = w.masks + tile * blocks * kTile;
  const std::uint8_t* codes = w.tile_codes(tile);
  __m512i first[kTile], second[kTile];
  for (std::size_t block = 0; block + 1 < blocks; block += 2, masks += 2 * kTile) {
    Fills low, high;
    low.set(zeros_of(w, tile, block * kBlock / w.group));
    high.set(zeros_of(w, tile, (block + 1) * kBlock / w.group));
    for (std::size_t row = 0; row < kTile; ++row) {
      const __m512i packed = load_codes<false>(codes);
      first[row] = place(low_nibbles(packed), masks[row], low.row(row));
      second[row] = place(high_nibbles(packed), masks[kTile + row], high.row(row));
      codes += step<Fixed>(w, masks[row], masks[kTile + row]);
    }
    put_rows(first, out + block * kBlock * kTile);
    put_rows(second, out + (block + 1) * kBlock * kTile);
  }
  if (blocks % 2 == 0) return;
  Fills fills;
  fills.set(zeros_of(w, tile, blocks - 1));
  for (std::size_t row = 0; row < kTile; ++row) {
    first[row] = place(load_unpaired(codes), masks[row], fills.row(row));
    codes += last_step<Fixed>(w, masks[row]);
  }
  put_rows(first, out + (blocks - 1) * kBlock * kTile);
}

void expand(const Weights& w, std::size_t tile, Expanded* out) {
  w.offsets == nullptr ? expand_tile<true>(w, tile, out) : expand_tile<false>(w, tile, out);
}

inline __m512i broadcast4(const std::int8_t* values) {
  int four;
  __builtin_memcpy(&four, values, sizeof four);
  return _mm512_set1_epi32(four);
}

// Rows of inputs that one load of weights serves.
constexpr std::size_t kInputs = 8;

template <std::size_t Count>
void dense_some(const Weights& w, std::size_t tile, const Expanded* expanded, const Quantized* inputs, float* y,
                std::size_t stride) {
  __m512 total[Count];
  for (__m512& t : total) t = _mm512_setzero_ps();
  for (std::size_t group = 0; group < w.groups(); ++group) {
    Fills zeros;
    zeros.set(zeros_of(w, tile, group));
    __m512i sums[Count];
    for (__m512i& sum : sums) sum = zero();
    for (std::size_t k = group * w.group; k < (group + 1) * w.group; k += 4) {
      const __m512i weights = _mm512_loadu_si512(expanded + k * kTile);
      for (std::size_t i = 0; i < Count; ++i)
        sums[i] = _mm512_dpbusd_epi32(sums[i], weights, broadcast4(inputs[i].values + k));
    }
    for (std::size_t i = 0; i < Count; ++i) total[i] = add_group(total[i], sums[i], zeros, w, tile, group, inputs[i]);
  }
  for (std::size_t i = 0; i < Count; ++i) _mm512_storeu_ps(y + i * stride, total[i]);
}

void dense(const Weights& w, std::size_t tile, const Expanded* expanded, const Quantized* inputs, std::size_t rows,
           float* y, std::size_t stride) {
  std::size_t i = 0;
  for (; i + kInputs <= rows; i += kInputs) dense_some<kInputs>(w, tile, expanded, inputs + i, y + i * stride, stride);
  for (; i < rows; ++i) dense_some<1>(w, tile, expanded, inputs + i, y + i * stride, stride);
}

template <std::size_t Count>
void float_some(const Weights& w, std::size_t tile, const Expanded* expanded, const float* x, float* y,
                std::size_t stride) {
  __m512 total[Count];
  for (__m512& t : total) t = _mm512_setzero_ps();
  for (std::size_t group = 0; group < w.groups(); ++group) {
    Fills zeros;
    zeros.set(zeros_of(w, tile, group));
    __m512 sums[Count];
    for (__m512& sum : sums) sum = _mm512_setzero_ps();
    for (std::size_t k = group * w.group; k < (group + 1) * w.group; k += 4) {
      __m512i bytes = _mm512_loadu_si512(expanded + k * kTile);
      for (std::size_t j = k; j < k + 4; ++j, bytes = _mm512_srli_epi32(bytes, 8)) {
        const __m512i code = _mm512_and_si512(bytes, _mm512_set1_epi32(255));
        const __m512 weight = _mm512_cvtepi32_ps(_mm512_sub_epi32(code, zeros.wide));
        for (std::size_t i = 0; i < Count; ++i)
          sums[i] = _mm512_fmadd_ps(weight, _mm512_set1_ps(x[i * w.inputs + j]), sums[i]);
      }
    }
    const __m512 scale = scales_of(w, tile, group);
    for (std::size_t i = 0; i < Count; ++i) total[i] = _mm512_fmadd_ps(sums[i], scale, total[i]);
  }
  for (std::size_t i = 0; i < Count; ++i) _mm512_storeu_ps(y + i * stride, total[i]);
}

void dense_float(const Weights& w, std::size_t tile, const Expanded* expanded, const float* x, std::size_t rows,
                 float* y, std::size_t stride) {
  std::size_t i = 0;
  for (; i + kInputs <= rows; i += kInputs) float_some<kInputs>(w, tile, expanded, x + i * w.inputs, y + i * stride, stride);
  for (; i < rows; ++i) float_some<1>(w, tile, expanded, x + i * w.inputs, y + i * stride, stride);
}

}  // namespace

constexpr Table kAvx512Vnni{"avx512vnni", decode, expand, dense, dense_float};

}  // namespace awp::kernels
