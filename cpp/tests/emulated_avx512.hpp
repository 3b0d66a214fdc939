// The instructions of kernels/avx512vnni.cpp and avx512.cpp in plain C++, under their own names. What an instruction leaves
// undefined is filled with rubbish.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

struct __m256i {
  std::uint8_t b[32];
};
struct __m512i {
  std::uint8_t b[64];
};
struct __m512 {
  float f[16];
};

namespace emulated {

template <class T, class V> T get(const V& v, int i) {
  T value;
  std::memcpy(&value, v.b + i * static_cast<int>(sizeof(T)), sizeof value);
  return value;
}
template <class T, class V> void put(V& v, int i, T value) {
  std::memcpy(v.b + i * static_cast<int>(sizeof(T)), &value, sizeof value);
}
template <class T, class F> __m512i make(F f) {
  __m512i v;
  for (int i = 0; i < 64 / static_cast<int>(sizeof(T)); ++i) put<T>(v, i, static_cast<T>(f(i)));
  return v;
}
template <class F> __m512 floats(F f) {
  __m512 v;
  for (int i = 0; i < 16; ++i) v.f[i] = f(i);
  return v;
}
template <class V> __m512i widened(const V& v) {
  __m512i wide;
  std::memset(&wide, 0xee, sizeof wide);
  std::memcpy(&wide, &v, sizeof v);
  return wide;
}
// Lanes of 128 bits: two from a, two from b, each chosen by two bits.
template <class T> __m512i unpack(const __m512i& a, const __m512i& b, int high) {
  constexpr int n = 16 / static_cast<int>(sizeof(T));
  return make<T>([&](int i) {
    const int at = i / n * n + high * n / 2 + i % n / 2;
    return i % 2 ? get<T>(b, at) : get<T>(a, at);
  });
}

}  // namespace emulated

inline __m256i _mm256_loadu_si256(const __m256i* from) {
  __m256i v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
inline __m512i _mm512_loadu_si512(const void* from) {
  __m512i v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
inline void _mm512_storeu_si512(void* to, __m512i v) { std::memcpy(to, &v, sizeof v); }
inline void _mm512_storeu_ps(void* to, __m512 v) { std::memcpy(to, &v, sizeof v); }
inline __m512i _mm512_setzero_si512() { return __m512i{}; }
inline __m512 _mm512_setzero_ps() { return __m512{}; }
inline __m512i _mm512_set1_epi8(char x) {
  return emulated::make<char>([x](int) { return x; });
}
inline __m512i _mm512_set1_epi32(int x) {
  return emulated::make<int>([x](int) { return x; });
}
inline __m512i _mm512_set1_epi64(long long x) {
  return emulated::make<long long>([x](int) { return x; });
}
inline __m512i _mm512_setr_epi64(long long a, long long b, long long c, long long d, long long e, long long f, long long g,
                                 long long h) {
  const long long all[8] = {a, b, c, d, e, f, g, h};
  return emulated::make<long long>([&](int i) { return all[i]; });
}
inline __m512 _mm512_set1_ps(float x) {
  return emulated::floats([x](int) { return x; });
}
inline __m512i _mm512_castsi256_si512(__m256i v) { return emulated::widened(v); }
inline __m512i _mm512_cvtepu8_epi16(__m256i v) {
  return emulated::make<std::uint16_t>([&](int i) { return v.b[i]; });
}
inline __m512i _mm512_and_si512(__m512i a, __m512i b) {
  return emulated::make<std::uint8_t>([&](int i) { return a.b[i] & b.b[i]; });
}
inline __m512i _mm512_or_si512(__m512i a, __m512i b) {
  return emulated::make<std::uint8_t>([&](int i) { return a.b[i] | b.b[i]; });
}
inline __m512i _mm512_srli_epi16(__m512i a, unsigned n) {
  return emulated::make<std::uint16_t>([&](int i) { return emulated::get<std::uint16_t>(a, i) >> n; });
}
inline __m512i _mm512_slli_epi16(__m512i a, unsigned n) {
  return emulated::make<std::uint16_t>([&](int i) { return emulated::get<std::uint16_t>(a, i) << n; });
}
inline __m512i _mm512_srli_epi32(__m512i a, unsigned n) {
  return emulated::make<std::uint32_t>([&](int i) { return emulated::get<std::uint32_t>(a, i) >> n; });
}
inline __m512i _mm512_srlv_epi32(__m512i a, __m512i n) {
  using emulated::get;
  return emulated::make<std::uint32_t>([&](int i) { return get<std::uint32_t>(a, i) >> get<std::uint32_t>(n, i); });
}
inline __m512i _mm512_srlv_epi64(__m512i a, __m512i n) {
  using emulated::get;
  return emulated::make<std::uint64_t>([&](int i) { return get<std::uint64_t>(a, i) >> get<std::uint64_t>(n, i); });
}
// Bytes of a lane of 128 bits by four bits each; 0 where the highest is set.
inline __m512i _mm512_shuffle_epi8(__m512i v, __m512i from) {
  return emulated::make<std::uint8_t>([&](int i) { return from.b[i] & 128 ? 0 : v.b[i / 16 * 16 + (from.b[i] & 15)]; });
}
inline __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  using emulated::get;
  return emulated::make<std::uint32_t>([&](int i) { return get<std::uint32_t>(a, i) + get<std::uint32_t>(b, i); });
}
inline __m512i _mm512_sub_epi32(__m512i a, __m512i b) {
  using emulated::get;
  return emulated::make<std::uint32_t>([&](int i) { return get<std::uint32_t>(a, i) - get<std::uint32_t>(b, i); });
}
inline __m512i _mm512_mullo_epi32(__m512i a, __m512i b) {
  using emulated::get;
  return emulated::make<std::uint32_t>([&](int i) { return get<std::uint32_t>(a, i) * get<std::uint32_t>(b, i); });
}
inline __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) { return emulated::unpack<std::uint32_t>(a, b, 0); }
inline __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) { return emulated::unpack<std::uint32_t>(a, b, 1); }
inline __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) { return emulated::unpack<std::uint64_t>(a, b, 0); }
inline __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) { return emulated::unpack<std::uint64_t>(a, b, 1); }
inline __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, int how) {
  __m512i v;
  for (int lane = 0; lane < 4; ++lane)
    std::memcpy(v.b + 16 * lane, (lane < 2 ? a : b).b + 16 * (how >> 2 * lane & 3), 16);
  return v;
}
// The bytes of `v`, one after the other, where the mask has bits; those of `other` elsewhere.
inline __m512i _mm512_mask_expand_epi8(__m512i other, std::uint64_t mask, __m512i v) {
  int next = 0;
  return emulated::make<std::uint8_t>([&](int i) { return mask >> i & 1 ? v.b[next++] : other.b[i]; });
}
// Four products of an unsigned and a signed byte, added to 32 bits.
inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  return emulated::make<std::int32_t>([&](int i) {
    std::int32_t total = emulated::get<std::int32_t>(sum, i);
    for (int j = 4 * i; j < 4 * i + 4; ++j) total += a.b[j] * emulated::get<std::int8_t>(b, j);
    return total;
  });
}
inline __m512 _mm512_cvtepi32_ps(__m512i v) {
  return emulated::floats([&](int i) { return static_cast<float>(emulated::get<std::int32_t>(v, i)); });
}
inline __m512 _mm512_cvtph_ps(__m256i v) {
  return emulated::floats([&](int i) {
    const int half = emulated::get<std::uint16_t>(v, i), exponent = half >> 10 & 31, digits = half & 1023;
    const float size = exponent == 0 ? std::ldexp(static_cast<float>(digits), -24)
                                     : std::ldexp(static_cast<float>(1024 + digits), exponent - 25);
    return half >> 15 ? -size : size;
  });
}
inline __m512 _mm512_add_ps(__m512 a, __m512 b) {
  return emulated::floats([&](int i) { return a.f[i] + b.f[i]; });
}
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) {
  return emulated::floats([&](int i) { return a.f[i] * b.f[i]; });
}
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return emulated::floats([&](int i) { return std::fma(a.f[i], b.f[i], c.f[i]); });
}

// What kernels/avx512.cpp uses beyond that.
struct __m128i {
  std::uint8_t b[16];
};
enum { _MM_HINT_T0 };

namespace emulated {

// a and b by an operation on lanes of T.
template <class T, class F> __m512i pairwise(const __m512i& a, const __m512i& b, F f) {
  return make<T>([&](int i) { return f(get<T>(a, i), get<T>(b, i)); });
}

}  // namespace emulated

inline void _mm_prefetch(const char*, int) {}
inline __m128i _mm_loadu_si128(const __m128i* from) {
  __m128i v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class... Bytes> __m128i _mm_setr_epi8(Bytes... bytes) { return {{static_cast<std::uint8_t>(bytes)...}}; }
inline __m128i _mm_setr_epi32(int a, int b, int c, int d) {
  const int all[] = {a, b, c, d};
  __m128i v;
  std::memcpy(&v, all, sizeof v);
  return v;
}
template <class... Words> __m512i _mm512_setr_epi32(Words... words) {
  const int all[] = {words...};
  return emulated::make<int>([&](int i) { return all[i]; });
}
inline __m512i _mm512_set1_epi16(short x) {
  return emulated::make<short>([x](int) { return x; });
}
inline __m512i _mm512_castsi128_si512(__m128i v) { return emulated::widened(v); }
inline __m512i _mm512_broadcast_i32x4(__m128i v) {
  return emulated::make<std::uint8_t>([&](int i) { return v.b[i % 16]; });
}
inline __m512i _mm512_inserti32x4(__m512i v, __m128i lane, int at) {
  std::memcpy(v.b + 16 * at, &lane, sizeof lane);
  return v;
}
inline __m512i _mm512_xor_si512(__m512i a, __m512i b) {
  return emulated::pairwise<std::uint8_t>(a, b, [](int x, int y) { return x ^ y; });
}
// Every bit from those of a, b and c, by a table of eight.
inline __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
  return emulated::make<std::uint8_t>([&](int i) {
    int bits = 0;
    for (int bit = 0; bit < 8; ++bit)
      bits |= (table >> ((a.b[i] >> bit & 1) << 2 | (b.b[i] >> bit & 1) << 1 | (c.b[i] >> bit & 1)) & 1) << bit;
    return bits;
  });
}
inline __m512i _mm512_slli_epi32(__m512i a, unsigned n) {
  return emulated::make<std::uint32_t>([&](int i) { return emulated::get<std::uint32_t>(a, i) << n; });
}
inline __m512i _mm512_add_epi8(__m512i a, __m512i b) {
  return emulated::pairwise<std::uint8_t>(a, b, [](int x, int y) { return x + y; });
}
inline __m512i _mm512_sub_epi8(__m512i a, __m512i b) {
  return emulated::pairwise<std::uint8_t>(a, b, [](int x, int y) { return x - y; });
}
inline __m512i _mm512_adds_epi8(__m512i a, __m512i b) {
  return emulated::pairwise<std::int8_t>(a, b, [](int x, int y) { return std::clamp(x + y, -128, 127); });
}
inline __m512i _mm512_subs_epi8(__m512i a, __m512i b) {
  return emulated::pairwise<std::int8_t>(a, b, [](int x, int y) { return std::clamp(x - y, -128, 127); });
}
inline __m512i _mm512_adds_epu8(__m512i a, __m512i b) {
  return emulated::pairwise<std::uint8_t>(a, b, [](int x, int y) { return std::min(x + y, 255); });
}
inline __m512i _mm512_add_epi16(__m512i a, __m512i b) {
  return emulated::pairwise<std::uint16_t>(a, b, [](int x, int y) { return x + y; });
}
// Two products of an unsigned and a signed byte, saturated to 16 bits.
inline __m512i _mm512_maddubs_epi16(__m512i a, __m512i b) {
  return emulated::make<std::int16_t>([&](int i) {
    int total = 0;
    for (int j = 2 * i; j < 2 * i + 2; ++j) total += a.b[j] * emulated::get<std::int8_t>(b, j);
    return std::clamp(total, -32768, 32767);
  });
}
inline __m512i _mm512_madd_epi16(__m512i a, __m512i b) {
  using emulated::get;
  return emulated::make<std::int32_t>([&](int i) {
    return get<std::int16_t>(a, 2 * i) * get<std::int16_t>(b, 2 * i) +
           get<std::int16_t>(a, 2 * i + 1) * get<std::int16_t>(b, 2 * i + 1);
  });
}
inline __m512i _mm512_unpacklo_epi8(__m512i a, __m512i b) { return emulated::unpack<std::uint8_t>(a, b, 0); }
inline __m512i _mm512_unpackhi_epi8(__m512i a, __m512i b) { return emulated::unpack<std::uint8_t>(a, b, 1); }
inline __m512i _mm512_permutexvar_epi32(__m512i from, __m512i v) {
  return emulated::make<std::uint32_t>([&](int i) { return emulated::get<std::uint32_t>(v, emulated::get<int>(from, i) & 15); });
}
inline __m512i _mm512_permutexvar_epi64(__m512i from, __m512i v) {
  return emulated::make<std::uint64_t>([&](int i) { return emulated::get<std::uint64_t>(v, emulated::get<int>(from, 2 * i) & 7); });
}
