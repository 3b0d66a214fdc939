// AVX-512 that uses neither VBMI2 nor VNNI (Skylake, Cascade Lake). Products of one row of inputs with at most 32 codes a block are
// those of avx2_ranks.inc with four rows at a time: a lane holds the 16 nibbles of a row's mask, and no address depends
// on a mask. Other blocks, and the expansion before a product of many rows, are left to AVX2. Tests compile this file
// against an emulation of the intrinsics.
#if defined(AWP_EMULATED_INTRINSICS)
#include AWP_EMULATED_INTRINSICS
#else
#include <immintrin.h>
#endif

#include "table.h"

namespace awp::kernels {
namespace {

#include "avx512.inc"
#include "places.inc"

static_assert(kRun / 2 * 15 * 127 < 1 << 15, "a run adds half of its products to each sum of 16 bits");
inline __m512i begin_run(__m512i) { return zero(); }
inline __m512i add_products(__m512i run, __m512i weights, __m512i values) {
  return _mm512_add_epi16(run, _mm512_maddubs_epi16(weights, values));
}
inline __m512i end_run(__m512i sum, __m512i run) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(run, _mm512_set1_epi16(1)));
}

inline __m128i load128(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
inline __m512i on_lanes(__m128i v) { return _mm512_broadcast_i32x4(v); }
inline __m512i low_nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }

// 16 bytes of four rows that are `stride` bytes apart.
inline __m512i load_lanes(const std::uint8_t* row, std::size_t stride) {
  __m512i v = _mm512_castsi128_si512(load128(row));
  v = _mm512_inserti32x4(v, load128(row + stride), 1);
  v = _mm512_inserti32x4(v, load128(row + 2 * stride), 2);
  return _mm512_inserti32x4(v, load128(row + 3 * stride), 3);
}

// Codes and masks are fetched this far ahead: processors of this kind do not run ahead by enough on their own.
constexpr std::size_t kAhead = 2048;

inline void fetch(const void* here) { _mm_prefetch(static_cast<const char*>(here) + kAhead, _MM_HINT_T0); }

// Tables of ternary logic: (a & b) ^ c, (a | b) ^ c.
constexpr int kAndXor = 0x6a, kOrXor = 0x56;

// Four rows' masks, i, i + 2, i + 4, i + 6: their nibbles, and the bits that are set in the nibbles before.
struct Ranks {
  __m512i nibbles, before;
};

// Of eight rows: the even ones, then the odd ones.
inline void rank(const std::uint64_t* masks, Ranks* out) {
  const __m512i counts = on_lanes(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m512i to_upper = on_lanes(_mm_setr_epi8(-1, -1, -1, -1, 3, 3, 3, 3, -1, -1, -1, -1, 11, 11, 11, 11));
  const __m512i mask = _mm512_loadu_si512(masks);
  const __m512i low = low_nibbles(mask), high = low_nibbles(_mm512_srli_epi16(mask, 4));
  const __m512i in_low = _mm512_shuffle_epi8(counts, low);
  const __m512i in_byte = _mm512_add_epi8(in_low, _mm512_shuffle_epi8(counts, high));
  // Sums over the bytes up to each, first within 4 bytes, then the lower four's total on the upper four.
  const __m512i pairs = _mm512_add_epi8(in_byte, _mm512_slli_epi32(in_byte, 8));
  const __m512i sums = _mm512_add_epi8(pairs, _mm512_slli_epi32(pairs, 16));
  const __m512i before = _mm512_add_epi8(_mm512_sub_epi8(sums, in_byte), _mm512_shuffle_epi8(sums, to_upper));
  const __m512i before_high = _mm512_add_epi8(before, in_low);
  out[0] = {_mm512_unpacklo_epi8(low, high), _mm512_unpacklo_epi8(before, before_high)};
  out[1] = {_mm512_unpackhi_epi8(low, high), _mm512_unpackhi_epi8(before, before_high)};
}

// 64 inputs by their place in a nibble: out[j] has the inputs j, j + 4, j + 8, ... in every lane.
inline void spread(const std::int8_t* values, __m512i* out) {
  const __m512i turn = on_lanes(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m512i turned = _mm512_shuffle_epi8(_mm512_loadu_si512(values), turn);
  for (int j = 0; j < 4; ++j)
    out[j] = _mm512_permutexvar_epi32(on_lanes(_mm_setr_epi32(j, 4 + j, 8 + j, 12 + j)), turned);
}

// The zero points of rows i, i + 2, i + 4, i + 6, each on every byte of a lane.
inline __m512i fill_lanes(const Fills& fills, std::size_t i) {
  const __m512i rows = _mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6);
  const __m512i from = _mm512_add_epi32(rows, _mm512_set1_epi32(static_cast<int>(i)));
  return _mm512_permutexvar_epi32(from, _mm512_loadu_si512(fills.of));
}

// A block's codes of four rows, one a byte: the first 16 and the others.
struct Codes {
  __m512i first, second;
};

// Pairs of products of a block of four rows, below 2^15 - 1 also where two blocks are added: 16 products of 15 and 127.
template <bool Short> inline __m512i products(const Ranks& ranks, Codes codes, __m512i fill, const __m512i* inputs) {
  const __m512i fifteen = _mm512_set1_epi8(15);
  // Exclusive or with the fill: a lookup that gives 0 gives the fill when this is undone.
  const __m512i first = _mm512_ternarylogic_epi32(codes.first, fifteen, fill, kAndXor);
  const __m512i second = _mm512_ternarylogic_epi32(codes.second, fifteen, fill, kAndXor);
  const __m512i lower = _mm512_xor_si512(ranks.before, _mm512_set1_epi8(-128));  // for the places from 16 on
  __m512i sum = zero();
  for (int bit = 0; bit < 4; ++bit) {
    const __m512i place = _mm512_shuffle_epi8(on_lanes(load128(kPlaces.of[bit])), ranks.nibbles);
    const __m512i early = _mm512_shuffle_epi8(first, _mm512_add_epi8(ranks.before, place));
    const __m512i late = Short ? zero() : _mm512_shuffle_epi8(second, _mm512_adds_epi8(lower, place));
    const __m512i weights = _mm512_ternarylogic_epi32(early, late, fill, kOrXor);
    sum = _mm512_add_epi16(sum, _mm512_maddubs_epi16(weights, inputs[bit]));
  }
  return sum;
}

// Sums of the lanes' four int32, for rows in ascending order; of eight rows, v[0] has the even and v[1] the odd ones.
inline __m512i sum_rows(const __m512i* v) {
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
  const __m512i sums = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), sums);
}

// The odd last block: its codes lie two in order in a byte.
template <bool Short>
__m512 add_last(__m512 total, const Weights& w, std::size_t tile, const std::uint64_t* masks, const std::uint8_t* codes,
                const Quantized& input) {
  const std::size_t block = w.blocks() - 1, bytes = (w.kept + 1) / 2;
  Fills fills;
  fills.set(zeros_of(w, tile, block));
  __m512i inputs[4], lanes[kTile / 4];
  spread(input.values + block * kBlock, inputs);
  for (std::size_t row = 0; row < kTile; row += 8, codes += 8 * bytes) {
    Ranks ranks[2];
    rank(masks + row, ranks);
    for (std::size_t i = 0; i < 2; ++i) {
      const __m512i packed = load_lanes(codes + i * bytes, 2 * bytes);
      const __m512i even = low_nibbles(packed), odd = low_nibbles(_mm512_srli_epi16(packed, 4));
      const Codes both{_mm512_unpacklo_epi8(even, odd), _mm512_unpackhi_epi8(even, odd)};
      lanes[row / 4 + i] = end_run(zero(), products<Short>(ranks[i], both, fill_lanes(fills, row + i), inputs));
    }
  }
  return add_group(total, sum_rows(lanes), fills, w, tile, block, input);
}

// Short: at most 16 codes a block, else 32. Wide: two blocks a group.
template <bool Wide, bool Short> void decode_tile(const Weights& w, std::size_t tile, const Quantized& input, float* y) {
  const std::size_t blocks = w.blocks();
  const std::uint64_t* masks = w.masks + tile * blocks * kTile;
  const std::uint8_t* codes = w.tile_codes(tile);
  __m512 total = _mm512_setzero_ps();
  for (std::size_t block = 0; block + 1 < blocks; block += 2, masks += 2 * kTile) {
    const std::size_t group = Wide ? block / 2 : block;
    Fills fills[Wide ? 1 : 2];
    for (std::size_t i = 0; i < (Wide ? 1 : 2); ++i) fills[i].set(zeros_of(w, tile, group + i));
    const Fills &low = fills[0], &high = fills[Wide ? 0 : 1];
    __m512i inputs[2][4], lanes[2][kTile / 4];
    for (std::size_t i = 0; i < 2; ++i) spread(input.values + (block + i) * kBlock, inputs[i]);
    for (std::size_t row = 0; row < kTile; row += 8, codes += 8 * w.kept) {
      Ranks ranks[2][2];
      for (std::size_t i = 0; i < 2; ++i) rank(masks + i * kTile + row, ranks[i]);
      for (std::size_t line = 0; line < 8 * w.kept; line += 64) fetch(codes + line);
      for (std::size_t i = 0; i < 2; ++i) fetch(masks + i * kTile + row);
      for (std::size_t i = 0; i < 2; ++i) {
        const std::uint8_t* here = codes + i * w.kept;
        const Codes both{load_lanes(here, 2 * w.kept), Short ? zero() : load_lanes(here + 16, 2 * w.kept)};
        const Codes upper{_mm512_srli_epi16(both.first, 4), _mm512_srli_epi16(both.second, 4)};
        const __m512i first = products<Short>(ranks[0][i], both, fill_lanes(low, row + i), inputs[0]);
        const __m512i second = products<Short>(ranks[1][i], upper, fill_lanes(high, row + i), inputs[1]);
        if (Wide) {
          lanes[0][row / 4 + i] = end_run(zero(), _mm512_add_epi16(first, second));
        } else {
          lanes[0][row / 4 + i] = end_run(zero(), first);
          lanes[1][row / 4 + i] = end_run(zero(), second);
        }
      }
    }
    total = add_group(total, sum_rows(lanes[0]), low, w, tile, group, input);
    if (!Wide) total = add_group(total, sum_rows(lanes[1]), high, w, tile, group + 1, input);
  }
  if (blocks % 2 != 0) total = add_last<Short>(total, w, tile, masks, codes, input);
  _mm512_storeu_ps(y, total);
}

void decode(const Weights& w, std::size_t tile, const Quantized& input, float* y) {
  if (w.offsets != nullptr || w.kept > 32)
    kAvx2.decode(w, tile, input, y);
  else if (w.group == 2 * kBlock)
    w.kept > 16 ? decode_tile<true, false>(w, tile, input, y) : decode_tile<true, true>(w, tile, input, y);
  else
    w.kept > 16 ? decode_tile<false, false>(w, tile, input, y) : decode_tile<false, true>(w, tile, input, y);
}

void expand(const Weights& w, std::size_t tile, Expanded* out) { kAvx2.expand(w, tile, out); }

}  // namespace

constexpr Table kAvx512{"avx512", quantize, decode, expand, dense, dense_float};

}  // namespace awp::kernels
