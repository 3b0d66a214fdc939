// AVX-512 that uses neither VBMI2 nor VNNI (Skylake, Cascade Lake). Products of one row of inputs are those of
// avx2_ranks.inc with four rows at a time: a lane holds the 16 nibbles of a row's mask, and codes are looked up in as
// many tables of 16 as a block needs. The expansion before a product of many rows and products of weights that were
// expanded beforehand, which memory binds, are left to AVX2. Tests compile this file against an emulation of the
// intrinsics.
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

inline __m512i load_lanes(const std::uint8_t* a, const std::uint8_t* b, const std::uint8_t* c, const std::uint8_t* d) {
  __m512i v = _mm512_castsi128_si512(load128(a));
  v = _mm512_inserti32x4(v, load128(b), 1);
  v = _mm512_inserti32x4(v, load128(c), 2);
  return _mm512_inserti32x4(v, load128(d), 3);
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

// A block's codes of four rows, one a byte and 16 a register.
template <std::size_t Tables> struct Codes {
  __m512i of[Tables];
};

// The codes of one bit of every nibble, from tables marked with the fill, or the fill. A table gives 0 for places that
// it does not hold.
template <std::size_t Tables>
inline __m512i look_up(const Codes<Tables>& marked, __m512i before, __m512i place, __m512i fill) {
  const __m512i early = _mm512_shuffle_epi8(marked.of[0], _mm512_add_epi8(before, place));
  if (Tables == 1) return _mm512_ternarylogic_epi32(early, zero(), fill, kOrXor);
  __m512i found = early, late = zero();
  // Places less 16, and 16 less for every further table: negative before its first, above 15 behind its last.
  __m512i from = _mm512_adds_epi8(_mm512_xor_si512(before, _mm512_set1_epi8(-128)), place);
  for (std::size_t table = 1; table < Tables; ++table) {
    if (table > 1) {
      found = _mm512_or_si512(found, late);
      from = _mm512_subs_epi8(from, _mm512_set1_epi8(16));
    }
    const bool last = table + 1 == Tables;
    late = _mm512_shuffle_epi8(marked.of[table], last ? from : _mm512_adds_epu8(from, _mm512_set1_epi8(0x70)));
  }
  return _mm512_ternarylogic_epi32(found, late, fill, kOrXor);
}

// Pairs of products of a block of four rows, below 2^15 - 1 also where two blocks are added: 16 products of 15 and 127.
template <std::size_t Tables>
inline __m512i products(const Ranks& ranks, const Codes<Tables>& codes, __m512i fill, const __m512i* inputs) {
  Codes<Tables> marked;  // exclusive or with the fill: a lookup that gives 0 gives the fill when this is undone
  for (std::size_t i = 0; i < Tables; ++i)
    marked.of[i] = _mm512_ternarylogic_epi32(codes.of[i], _mm512_set1_epi8(15), fill, kAndXor);
  __m512i sum = zero();
  for (int bit = 0; bit < 4; ++bit) {
    const __m512i place = _mm512_shuffle_epi8(on_lanes(load128(kPlaces.of[bit])), ranks.nibbles);
    const __m512i weights = look_up<Tables>(marked, ranks.before, place, fill);
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

inline std::size_t count(std::uint64_t mask) { return static_cast<std::size_t>(__builtin_popcountll(mask)); }

// Where the codes of eight rows of two blocks lie, or of one with two codes in order in a byte. Fixed: as many in every
// block.
template <bool Fixed> struct Rows {
  const std::uint8_t* codes;
  std::size_t stride = 0, most = 0;  // most: codes of one block
  std::uint32_t starts[9] = {};

  Rows(const Weights& w, const std::uint8_t* at, const std::uint64_t* first, const std::uint64_t* second) : codes(at) {
    most = w.kept;
    stride = second ? w.kept : (w.kept + 1) / 2;
    for (std::size_t i = 0; i < (Fixed ? 0 : 8); ++i) {
      const std::size_t a = count(first[i]), b = second ? count(second[i]) : 0, length = a > b ? a : b;
      most = length > most ? length : most;
      starts[i + 1] = starts[i] + static_cast<std::uint32_t>(second ? length : (length + 1) / 2);
    }
  }
  const std::uint8_t* row(std::size_t i) const { return codes + (Fixed ? i * stride : starts[i]); }
  // 16 bytes of the rows i, i + 2, i + 4, i + 6.
  __m512i lanes(std::size_t i, std::size_t offset) const {
    return load_lanes(row(i) + offset, row(i + 2) + offset, row(i + 4) + offset, row(i + 6) + offset);
  }
};

// What two blocks of a tile share: their zero points and inputs and, for every four rows, a register of sums.
template <bool Wide> struct Pair {
  Fills fills[Wide ? 1 : 2];
  __m512i inputs[2][4], lanes[Wide ? 1 : 2][kTile / 4];

  template <std::size_t Tables, bool Fixed>
  void multiply(const Ranks (&ranks)[2][2], const Rows<Fixed>& rows, std::size_t row) {
    for (std::size_t i = 0; i < 2; ++i) {
      Codes<Tables> both, upper;
      for (std::size_t table = 0; table < Tables; ++table) {
        both.of[table] = rows.lanes(i, 16 * table);
        upper.of[table] = _mm512_srli_epi16(both.of[table], 4);
      }
      const __m512i first = products<Tables>(ranks[0][i], both, fill_lanes(fills[0], row + i), inputs[0]);
      const __m512i second = products<Tables>(ranks[1][i], upper, fill_lanes(fills[Wide ? 0 : 1], row + i), inputs[1]);
      const std::size_t lane = row / 4 + i;
      lanes[0][lane] = end_run(zero(), Wide ? _mm512_add_epi16(first, second) : first);
      if (!Wide) lanes[1][lane] = end_run(zero(), second);
    }
  }
};

// The odd last block: its codes lie two in order in a byte.
template <std::size_t Tables, bool Fixed>
__m512 add_last(__m512 total, const Weights& w, std::size_t tile, const std::uint64_t* masks, const std::uint8_t* codes,
                const Quantized& input) {
  const std::size_t block = w.blocks() - 1;
  Fills fills;
  fills.set(zeros_of(w, tile, block));
  __m512i inputs[4], lanes[kTile / 4];
  spread(input.values + block * kBlock, inputs);
  for (std::size_t row = 0; row < kTile; row += 8) {
    const Rows<Fixed> rows(w, codes, masks + row, nullptr);
    Ranks ranks[2];
    rank(masks + row, ranks);
    for (std::size_t i = 0; i < 2; ++i) {
      Codes<Tables> all;
      for (std::size_t table = 0; table < Tables; ++table) {
        const __m512i packed = rows.lanes(i, table / 2 * 16);
        const __m512i even = low_nibbles(packed), odd = low_nibbles(_mm512_srli_epi16(packed, 4));
        all.of[table] = table % 2 == 0 ? _mm512_unpacklo_epi8(even, odd) : _mm512_unpackhi_epi8(even, odd);
      }
      lanes[row / 4 + i] = end_run(zero(), products<Tables>(ranks[i], all, fill_lanes(fills, row + i), inputs));
    }
    codes = rows.row(8);
  }
  return add_group(total, sum_rows(lanes), fills, w, tile, block, input);
}

// Tables of 16 codes that a block needs; 0: two to four, as the masks of eight rows ask. Wide: two blocks a group.
template <std::size_t Tables, bool Wide>
void decode_tile(const Weights& w, std::size_t tile, const Quantized& input, float* y) {
  constexpr bool kFixed = Tables != 0;
  const std::size_t blocks = w.blocks();
  const std::uint64_t* masks = w.masks + tile * blocks * kTile;
  const std::uint8_t* codes = w.tile_codes(tile);
  __m512 total = _mm512_setzero_ps();
  for (std::size_t block = 0; block + 1 < blocks; block += 2, masks += 2 * kTile) {
    const std::size_t group = Wide ? block / 2 : block;
    Pair<Wide> pair;
    for (std::size_t i = 0; i < (Wide ? 1 : 2); ++i) pair.fills[i].set(zeros_of(w, tile, group + i));
    for (std::size_t i = 0; i < 2; ++i) spread(input.values + (block + i) * kBlock, pair.inputs[i]);
#pragma GCC unroll 2
    for (std::size_t row = 0; row < kTile; row += 8) {
      const Rows<kFixed> rows(w, codes, masks + row, masks + kTile + row);
      Ranks ranks[2][2];
      for (std::size_t i = 0; i < 2; ++i) rank(masks + i * kTile + row, ranks[i]);
      for (const std::uint8_t* line = codes; line < rows.row(8); line += 64) fetch(line);
      for (std::size_t i = 0; i < 2; ++i) fetch(masks + i * kTile + row);
      if (kFixed)
        pair.template multiply<kFixed ? Tables : 1>(ranks, rows, row);
      else if (rows.most <= 32)
        pair.template multiply<2>(ranks, rows, row);
      else if (rows.most <= 48)
        pair.template multiply<3>(ranks, rows, row);
      else
        pair.template multiply<4>(ranks, rows, row);
      codes = rows.row(8);
    }
    for (std::size_t i = 0; i < (Wide ? 1 : 2); ++i)
      total = add_group(total, sum_rows(pair.lanes[i]), pair.fills[i], w, tile, group + i, input);
  }
  if (blocks % 2 != 0) total = add_last<kFixed ? Tables : 4, kFixed>(total, w, tile, masks, codes, input);
  _mm512_storeu_ps(y, total);
}

template <bool Wide> void decode_groups(const Weights& w, std::size_t tile, const Quantized& input, float* y) {
  if (w.offsets != nullptr)
    decode_tile<0, Wide>(w, tile, input, y);
  else if (w.kept <= 16)
    decode_tile<1, Wide>(w, tile, input, y);
  else if (w.kept <= 32)
    decode_tile<2, Wide>(w, tile, input, y);
  else if (w.kept <= 48)
    decode_tile<3, Wide>(w, tile, input, y);
  else
    decode_tile<4, Wide>(w, tile, input, y);
}

void decode(const Weights& w, std::size_t tile, const Quantized& input, float* y) {
  w.group == 2 * kBlock ? decode_groups<true>(w, tile, input, y) : decode_groups<false>(w, tile, input, y);
}

void expand(const Weights& w, std::size_t tile, Expanded* out) { kAvx2.expand(w, tile, out); }

void decode_nibbles(const Weights& w, std::size_t tile, const Quantized& input, float* y) {
  kAvx2.decode_nibbles(w, tile, input, y);
}

}  // namespace

constexpr Table kAvx512{"avx512", quantize, decode, expand, dense, dense_float, decode_nibbles};

}  // namespace awp::kernels
