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

#include "avx512.inc"

inline __m512i begin_run(__m512i sum) { return sum; }
inline __m512i add_products(__m512i run, __m512i weights, __m512i values) {
  return _mm512_dpbusd_epi32(run, weights, values);
}
inline __m512i end_run(__m512i, __m512i run) { return run; }

inline std::size_t count(std::uint64_t mask) { return static_cast<std::size_t>(__builtin_popcountll(mask)); }

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

}  // namespace

constexpr Table kAvx512Vnni{"avx512vnni", quantize, decode, expand, dense, dense_float};

}  // namespace awp::kernels
