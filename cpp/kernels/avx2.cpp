// AVX2: masks are expanded a byte at a time. Two tables give, for 8 mask bits, where the kept codes lie in a window of
// 16 bytes: codes of an even byte end at the window's middle, those of the odd byte after it begin there. So one
// population count places a window for 16 inputs, and no count has to be added to the indices. Products of one row of
// inputs have other ways: avx2_nibbles.inc for weights expanded beforehand, avx2_ranks.inc for at most 32 codes a block.
#include <immintrin.h>

#include "table.h"

namespace awp::kernels {
namespace {

#include "quantize.inc"

struct Indices {
  std::uint64_t even[256] = {}, odd[256] = {};
};

constexpr Indices make_indices() {
  Indices table;
  for (unsigned mask = 0; mask < 256; ++mask) {
    unsigned kept = 0, rank = 0;
    for (unsigned bit = 0; bit < 8; ++bit) kept += mask >> bit & 1;
    for (unsigned bit = 0; bit < 8; ++bit) {
      const bool keeps = mask >> bit & 1;
      table.even[mask] |= std::uint64_t{keeps ? 8 - kept + rank : 0x80u} << 8 * bit;
      table.odd[mask] |= std::uint64_t{keeps ? 8 + rank : 0x80u} << 8 * bit;
      rank += keeps;
    }
  }
  return table;
}

alignas(64) constexpr Indices kIndices = make_indices();

inline __m128i load128(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
inline __m256i load256(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store256(void* to, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
inline __m256i join(__m128i low, __m128i high) { return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1); }

// Shuffle indices of 16 inputs, from the two bytes of their mask.
inline __m128i indices(std::size_t first, std::size_t second) {
  const __m128i even = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kIndices.even[first]));
  const __m64* odd = reinterpret_cast<const __m64*>(&kIndices.odd[second]);
  return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(even), odd));
}

struct Bytes64 {
  __m256i low, high;
};

enum class Nibble { low, high };

// The 64 weights of a block: `codes` holds one code a byte, in the nibble asked for; pruned ones become `fill`.
template <Nibble N> inline Bytes64 expand_block(const std::uint8_t* codes, const std::uint64_t* mask, __m256i fill) {
  // Half of the mask's bytes come from the register, half from memory: loads are what this loop is short of.
  const std::uint64_t m = *mask, upper = m >> 32;
  const std::uint8_t* bytes = reinterpret_cast<const std::uint8_t*>(mask);
  const std::uint8_t* middle = codes - 8;
  const __m256i where[2] = {join(indices(m & 255, m >> 8 & 255), indices(bytes[2], bytes[3])),
                            join(indices(upper & 255, upper >> 8 & 255), indices(bytes[6], bytes[7]))};
  __m256i w[2] = {join(load128(middle + _mm_popcnt_u64(_bzhi_u64(m, 8))), load128(middle + _mm_popcnt_u64(_bzhi_u64(m, 24)))),
                  join(load128(middle + _mm_popcnt_u64(_bzhi_u64(m, 40))), load128(middle + _mm_popcnt_u64(_bzhi_u64(m, 56))))};
  for (int i = 0; i < 2; ++i) {
    w[i] = _mm256_shuffle_epi8(w[i], where[i]);
    if (N == Nibble::high) w[i] = _mm256_srli_epi16(w[i], 4);
    w[i] = _mm256_blendv_epi8(_mm256_and_si256(w[i], _mm256_set1_epi8(15)), fill, where[i]);
  }
  return {w[0], w[1]};
}

// The codes of an odd last block, two in order in a byte: one a byte, with a guard of 8 on either side.
struct Unpaired {
  alignas(32) std::uint8_t bytes[8 + kBlock + 8 + 16];
  void set(const std::uint8_t* codes) {
    for (int half = 0; half < 2; ++half) {
      const __m256i wide = _mm256_cvtepu8_epi16(load128(codes + 16 * half));
      const __m256i both = _mm256_or_si256(wide, _mm256_slli_epi16(wide, 4));
      store256(bytes + 8 + 32 * half, _mm256_and_si256(both, _mm256_set1_epi8(15)));
    }
  }
  const std::uint8_t* codes() const { return bytes + 8; }
};

inline std::size_t count(std::uint64_t mask) { return static_cast<std::size_t>(_mm_popcnt_u64(mask)); }

// What a pair of blocks of one row takes in the stream of codes.
template <bool Fixed> inline std::size_t step(const Weights& w, std::uint64_t low, std::uint64_t high) {
  if (Fixed) return w.kept;
  const std::size_t a = count(low), b = count(high);
  return a > b ? a : b;
}

// The odd last block of a tile's rows. All are written before one is read: a load waits for the stores just before it.
template <bool Fixed>
inline void unpair(const Weights& w, const std::uint64_t* masks, const std::uint8_t* codes, Unpaired* rows) {
  for (std::size_t row = 0; row < kTile; ++row) {
    rows[row].set(codes);
    codes += ((Fixed ? w.kept : count(masks[row])) + 1) / 2;
  }
}

inline std::uint64_t zeros_of(const Weights& w, std::size_t tile, std::size_t group) {
  return w.zeros ? w.zeros[tile * w.groups() + group] : 0x8888888888888888u;
}

struct Fills {
  alignas(16) std::uint8_t of[kTile];
  explicit Fills(std::uint64_t zeros) {
    const __m128i packed = _mm_cvtsi64_si128(static_cast<long long>(zeros));
    const __m128i both = _mm_unpacklo_epi8(packed, _mm_srli_epi16(packed, 4));
    _mm_store_si128(reinterpret_cast<__m128i*>(of), _mm_and_si128(both, _mm_set1_epi8(15)));
  }
  __m256i row(std::size_t i) const { return _mm256_set1_epi8(static_cast<char>(of[i])); }
};

// Eight rows' zero points as int32, from their nibbles.
inline __m256i zeros32(std::uint64_t zeros, int half) {
  const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  const __m256i nibbles = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(zeros >> 32 * half)), shifts);
  return _mm256_and_si256(nibbles, _mm256_set1_epi32(15));
}

// Sums of the eight lanes of eight registers.
inline __m256i sum_lanes(const __m256i* v) {
  __m256i t[4];
  for (int i = 0; i < 4; ++i)
    t[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
  const __m256i a = _mm256_add_epi32(_mm256_unpacklo_epi64(t[0], t[1]), _mm256_unpackhi_epi64(t[0], t[1]));
  const __m256i b = _mm256_add_epi32(_mm256_unpacklo_epi64(t[2], t[3]), _mm256_unpackhi_epi64(t[2], t[3]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

struct Floats16 {
  __m256 half[2];
};

// total += float(sum - zero * sum of inputs) * (weight scale * input scale), for 16 rows.
inline void add_group(Floats16& total, const __m256i* sums, const Weights& w, std::size_t tile, std::size_t group,
                      const Quantized& input) {
  const std::uint16_t* scales = w.scales + (tile * w.groups() + group) * kTile;
  const std::uint64_t zeros = zeros_of(w, tile, group);
  const __m256i inputs = _mm256_set1_epi32(input.sums[group]);
  for (int half = 0; half < 2; ++half) {
    const __m256i whole = _mm256_sub_epi32(sums[half], _mm256_mullo_epi32(zeros32(zeros, half), inputs));
    const __m256 scale = _mm256_mul_ps(_mm256_cvtph_ps(load128(scales + 8 * half)), _mm256_set1_ps(input.scales[group]));
    total.half[half] = _mm256_add_ps(total.half[half], _mm256_mul_ps(_mm256_cvtepi32_ps(whole), scale));
  }
}

inline __m256i multiply(Bytes64 weights, __m256i low, __m256i high) {
  return _mm256_add_epi16(_mm256_maddubs_epi16(weights.low, low), _mm256_maddubs_epi16(weights.high, high));
}

inline void store(float* y, const Floats16& total) {
  _mm256_storeu_ps(y, total.half[0]);
  _mm256_storeu_ps(y + 8, total.half[1]);
}

// The odd last block.
template <bool Fixed>
void add_last(Floats16& total, const Weights& w, std::size_t tile, const std::uint64_t* masks, const std::uint8_t* codes,
              const Quantized& input) {
  const std::size_t block = w.blocks() - 1;
  const Fills fills(zeros_of(w, tile, block));
  const std::int8_t* values = input.values + block * kBlock;
  __m256i lanes[kTile];
  Unpaired rows[kTile];
  unpair<Fixed>(w, masks, codes, rows);
  for (std::size_t row = 0; row < kTile; ++row) {
    const Bytes64 weights = expand_block<Nibble::low>(rows[row].codes(), masks + row, fills.row(row));
    lanes[row] = _mm256_madd_epi16(multiply(weights, load256(values), load256(values + 32)), _mm256_set1_epi16(1));
  }
  const __m256i sums[2] = {sum_lanes(lanes), sum_lanes(lanes + 8)};
  add_group(total, sums, w, tile, block, input);
}

#include "avx2_nibbles.inc"
#include "avx2_ranks.inc"

template <bool Fixed, bool Wide> void decode_tile(const Weights& w, std::size_t tile, const Quantized& input, float* y) {
  const std::size_t blocks = w.blocks();
  const std::uint64_t* masks = w.masks + tile * blocks * kTile;
  const std::uint8_t* codes = w.tile_codes(tile);
  const __m256i ones = _mm256_set1_epi16(1);
  Floats16 total{{_mm256_setzero_ps(), _mm256_setzero_ps()}};
  __m256i lanes[2][kTile];
  for (std::size_t block = 0; block + 1 < blocks; block += 2, masks += 2 * kTile) {
    const std::size_t group = Wide ? block / 2 : block;
    const Fills low(zeros_of(w, tile, group)), high(zeros_of(w, tile, Wide ? group : group + 1));
    const std::int8_t* values = input.values + block * kBlock;
    const __m256i a[4] = {load256(values), load256(values + 32), load256(values + 64), load256(values + 96)};
    for (std::size_t row = 0; row < kTile; ++row) {
      // Sums of pairs stay below 2^15: at most 4 products of 15 and 127 each way.
      const __m256i first = multiply(expand_block<Nibble::low>(codes, masks + row, low.row(row)), a[0], a[1]);
      const __m256i second = multiply(expand_block<Nibble::high>(codes, masks + kTile + row, high.row(row)), a[2], a[3]);
      if (Wide) {
        lanes[0][row] = _mm256_madd_epi16(_mm256_add_epi16(first, second), ones);
      } else {
        lanes[0][row] = _mm256_madd_epi16(first, ones);
        lanes[1][row] = _mm256_madd_epi16(second, ones);
      }
      codes += step<Fixed>(w, masks[row], masks[kTile + row]);
    }
    for (int part = 0; part < (Wide ? 1 : 2); ++part) {
      const __m256i sums[2] = {sum_lanes(lanes[part]), sum_lanes(lanes[part] + 8)};
      add_group(total, sums, w, tile, group + static_cast<std::size_t>(part), input);
    }
  }
  if (blocks % 2 != 0) add_last<Fixed>(total, w, tile, masks, codes, input);
  store(y, total);
}

template <bool Wide> void decode_any(const Weights& w, std::size_t tile, const Quantized& input, float* y) {
  if (w.offsets != nullptr)
    decode_tile<false, Wide>(w, tile, input, y);
  else if (w.kept > 32)
    decode_tile<true, Wide>(w, tile, input, y);
  else if (w.kept > 16)
    decode_ranked<Wide, false>(w, tile, input, y);
  else
    decode_ranked<Wide, true>(w, tile, input, y);
}

void decode(const Weights& w, std::size_t tile, const Quantized& input, float* y) {
  w.group == 2 * kBlock ? decode_any<true>(w, tile, input, y) : decode_any<false>(w, tile, input, y);
}

// Writes 32 inputs of 8 rows: four bytes of each row side by side.
inline void put_rows(const __m256i* rows, Expanded* out) {
  __m256i t[8], u[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      u[4 * i + 2 * j] = _mm256_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
      u[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
    }
  for (int i = 0; i < 4; ++i) {
    store256(out + i * 4 * kTile, _mm256_permute2x128_si256(u[i], u[i + 4], 0x20));
    store256(out + (i + 4) * 4 * kTile, _mm256_permute2x128_si256(u[i], u[i + 4], 0x31));
  }
}

struct Rows {
  __m256i low[kTile], high[kTile];
  void set(std::size_t row, Bytes64 weights) {
    low[row] = weights.low;
    high[row] = weights.high;
  }
  void put(Expanded* out) const {
    for (std::size_t half = 0; half < 2; ++half) {
      put_rows(low + 8 * half, out + 32 * half);
      put_rows(high + 8 * half, out + 32 * half + 32 * kTile);
    }
  }
};

template <bool Fixed> void expand_tile(const Weights& w, std::size_t tile, Expanded* out) {
  const std::size_t blocks = w.blocks();
  const std::uint64_t* masks = w.masks + tile * blocks * kTile;
  const std::uint8_t* codes = w.tile_codes(tile);
  Rows first, second;
  for (std::size_t block = 0; block + 1 < blocks; block += 2, masks += 2 * kTile) {
    const Fills low(zeros_of(w, tile, block * kBlock / w.group)), high(zeros_of(w, tile, (block + 1) * kBlock / w.group));
    for (std::size_t row = 0; row < kTile; ++row) {
      first.set(row, expand_block<Nibble::low>(codes, masks + row, low.row(row)));
      second.set(row, expand_block<Nibble::high>(codes, masks + kTile + row, high.row(row)));
      codes += step<Fixed>(w, masks[row], masks[kTile + row]);
    }
    first.put(out + block * kBlock * kTile);
    second.put(out + (block + 1) * kBlock * kTile);
  }
  if (blocks % 2 == 0) return;
  const Fills fills(zeros_of(w, tile, blocks - 1));
  Unpaired rows[kTile];
  unpair<Fixed>(w, masks, codes, rows);
  for (std::size_t row = 0; row < kTile; ++row)
    first.set(row, expand_block<Nibble::low>(rows[row].codes(), masks + row, fills.row(row)));
  first.put(out + (blocks - 1) * kBlock * kTile);
}

void expand(const Weights& w, std::size_t tile, Expanded* out) {
  w.offsets == nullptr ? expand_tile<true>(w, tile, out) : expand_tile<false>(w, tile, out);
}

inline __m256i broadcast4(const std::int8_t* values) {
  int four;
  __builtin_memcpy(&four, values, sizeof four);
  return _mm256_set1_epi32(four);
}

// Rows of inputs that one load of weights serves.
constexpr std::size_t kInputs = 4;

template <std::size_t Count>
void dense_some(const Weights& w, std::size_t tile, const Expanded* expanded, const Quantized* inputs, float* y,
                std::size_t stride) {
  const __m256i ones = _mm256_set1_epi16(1);
  Floats16 total[Count];
  for (Floats16& t : total) t = {{_mm256_setzero_ps(), _mm256_setzero_ps()}};
  for (std::size_t group = 0; group < w.groups(); ++group) {
    __m256i sums[Count][2];
    for (auto& sum : sums) sum[0] = sum[1] = _mm256_setzero_si256();
    for (std::size_t k = group * w.group; k < (group + 1) * w.group; k += 32) {
      // 8 steps of two products of 15 and 127 stay below 2^15.
      __m256i pairs[Count][2];
      for (auto& pair : pairs) pair[0] = pair[1] = _mm256_setzero_si256();
      for (std::size_t j = k; j < k + 32; j += 4) {
        const __m256i low = load256(expanded + j * kTile), high = load256(expanded + j * kTile + 32);
        for (std::size_t i = 0; i < Count; ++i) {
          const __m256i values = broadcast4(inputs[i].values + j);
          pairs[i][0] = _mm256_add_epi16(pairs[i][0], _mm256_maddubs_epi16(low, values));
          pairs[i][1] = _mm256_add_epi16(pairs[i][1], _mm256_maddubs_epi16(high, values));
        }
      }
      for (std::size_t i = 0; i < Count; ++i)
        for (int half = 0; half < 2; ++half)
          sums[i][half] = _mm256_add_epi32(sums[i][half], _mm256_madd_epi16(pairs[i][half], ones));
    }
    for (std::size_t i = 0; i < Count; ++i) add_group(total[i], sums[i], w, tile, group, inputs[i]);
  }
  for (std::size_t i = 0; i < Count; ++i) store(y + i * stride, total[i]);
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
  Floats16 total[Count];
  for (Floats16& t : total) t = {{_mm256_setzero_ps(), _mm256_setzero_ps()}};
  for (std::size_t group = 0; group < w.groups(); ++group) {
    const std::uint64_t packed = zeros_of(w, tile, group);
    const std::uint16_t* scales = w.scales + (tile * w.groups() + group) * kTile;
    for (int half = 0; half < 2; ++half) {
      const __m256i zeros = zeros32(packed, half);
      __m256 sums[Count];
      for (__m256& sum : sums) sum = _mm256_setzero_ps();
      for (std::size_t k = group * w.group; k < (group + 1) * w.group; k += 4) {
        __m256i bytes = load256(expanded + k * kTile + 32 * static_cast<std::size_t>(half));
        for (std::size_t j = k; j < k + 4; ++j, bytes = _mm256_srli_epi32(bytes, 8)) {
          const __m256i code = _mm256_and_si256(bytes, _mm256_set1_epi32(255));
          const __m256 weight = _mm256_cvtepi32_ps(_mm256_sub_epi32(code, zeros));
          for (std::size_t i = 0; i < Count; ++i)
            sums[i] = _mm256_fmadd_ps(weight, _mm256_set1_ps(x[i * w.inputs + j]), sums[i]);
        }
      }
      const __m256 scale = _mm256_cvtph_ps(load128(scales + 8 * half));
      for (std::size_t i = 0; i < Count; ++i)
        total[i].half[half] = _mm256_fmadd_ps(sums[i], scale, total[i].half[half]);
    }
  }
  for (std::size_t i = 0; i < Count; ++i) store(y + i * stride, total[i]);
}

void dense_float(const Weights& w, std::size_t tile, const Expanded* expanded, const float* x, std::size_t rows,
                 float* y, std::size_t stride) {
  std::size_t i = 0;
  for (; i + kInputs <= rows; i += kInputs) float_some<kInputs>(w, tile, expanded, x + i * w.inputs, y + i * stride, stride);
  for (; i < rows; ++i) float_some<1>(w, tile, expanded, x + i * w.inputs, y + i * stride, stride);
}

}  // namespace

constexpr Table kAvx2{"avx2", quantize, decode, expand, dense, dense_float, decode_nibbles};

}  // namespace awp::kernels
