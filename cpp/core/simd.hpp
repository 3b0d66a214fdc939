// One SIMD register of float or double, in the widest form the compiled instruction set has.
#pragma once

#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "awp/gemm.hpp"

namespace awp::simd {

template <class T> struct Register;

#if defined(__AVX512F__)
template <> struct Register<float> { typedef __m512 type; };
template <> struct Register<double> { typedef __m512d type; };
inline __m512 broadcast(float x) { return _mm512_set1_ps(x); }
inline __m512d broadcast(double x) { return _mm512_set1_pd(x); }
inline __m512 multiply_add(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512d multiply_add(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__AVX2__)
template <> struct Register<float> { typedef __m256 type; };
template <> struct Register<double> { typedef __m256d type; };
inline __m256 broadcast(float x) { return _mm256_set1_ps(x); }
inline __m256d broadcast(double x) { return _mm256_set1_pd(x); }
inline __m256 multiply_add(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
inline __m256d multiply_add(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
#elif defined(__ARM_NEON)
template <> struct Register<float> { typedef float32x4_t type; };
template <> struct Register<double> { typedef float64x2_t type; };
inline float32x4_t broadcast(float x) { return vdupq_n_f32(x); }
inline float64x2_t broadcast(double x) { return vdupq_n_f64(x); }
inline float32x4_t multiply_add(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
inline float64x2_t multiply_add(float64x2_t a, float64x2_t b, float64x2_t c) { return vfmaq_f64(c, a, b); }
#else
template <> struct Register<float> { typedef float type __attribute__((vector_size(16))); };
template <> struct Register<double> { typedef double type __attribute__((vector_size(16))); };
inline Register<float>::type broadcast(float x) { return Register<float>::type{x, x, x, x}; }
inline Register<double>::type broadcast(double x) { return Register<double>::type{x, x}; }
template <class V> V multiply_add(V a, V b, V c) { return a * b + c; }
#endif

template <class T> using Vector = typename Register<T>::type;
template <class T> constexpr int kLanes = sizeof(Vector<T>) / sizeof(T);

template <class T> inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class T> inline void store(T* to, Vector<T> v) { std::memcpy(to, &v, sizeof v); }

// The first `count` lanes, 0 < count <= kLanes<T>; memory behind them is not touched, other lanes load as zero.
#if defined(__AVX512F__)
inline __m512 load(const float* from, Index count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
}
inline __m512d load(const double* from, Index count) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from);
}
inline void store(float* to, __m512 v, Index count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), v);
}
inline void store(double* to, __m512d v, Index count) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), v);
}
#else
template <class T> inline Vector<T> load(const T* from, Index count) {
  Vector<T> v{};
  std::memcpy(&v, from, static_cast<std::size_t>(count) * sizeof(T));
  return v;
}
template <class T> inline void store(T* to, Vector<T> v, Index count) {
  std::memcpy(to, &v, static_cast<std::size_t>(count) * sizeof(T));
}
#endif

}  // namespace awp::simd
