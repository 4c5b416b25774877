// Sixteen float lanes: one 512-bit register, two 256-bit ones, or an array. All three give the same bits.
//
// Nothing here or in the other headers of this folder may come from the C++ library: these files are compiled for
// several instruction sets, and a template shared by name could be linked from the wrong one.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

inline float as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t as_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

#if defined(__AVX512F__)

struct Lanes {
  __m512 v;
};
inline Lanes broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes fnma(Lanes a, Lanes b, Lanes c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes floor(Lanes a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
// 2^k for whole k in [-127, 127]; 0 for k = -127.
inline Lanes power_of_two(Lanes k) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(k.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
// value where x >= least, else 0.
inline Lanes where_at_least(Lanes x, float least, Lanes value) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(least), _CMP_GE_OQ), value.v)};
}
inline Lanes load(const Bf16* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
inline Lanes load(const Half* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }

#elif defined(__AVX2__)

struct Lanes {
  __m256 a, b;
};
inline Lanes broadcast(float x) {
  const __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
inline Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Lanes x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline Lanes fma(Lanes x, Lanes y, Lanes z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline Lanes fnma(Lanes x, Lanes y, Lanes z) {
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
inline Lanes operator*(Lanes x, Lanes y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Lanes operator+(Lanes x, Lanes y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Lanes operator-(Lanes x, Lanes y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Lanes max(Lanes x, Lanes y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Lanes min(Lanes x, Lanes y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Lanes floor(Lanes x) { return {_mm256_floor_ps(x.a), _mm256_floor_ps(x.b)}; }
inline __m256 power_of_two(__m256 k) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127)), 23));
}
inline Lanes power_of_two(Lanes k) { return {power_of_two(k.a), power_of_two(k.b)}; }
inline Lanes where_at_least(Lanes x, float least, Lanes value) {
  const __m256 bound = _mm256_set1_ps(least);
  return {_mm256_and_ps(_mm256_cmp_ps(x.a, bound, _CMP_GE_OQ), value.a),
          _mm256_and_ps(_mm256_cmp_ps(x.b, bound, _CMP_GE_OQ), value.b)};
}
inline __m256i words(const void* p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline Lanes load(const Bf16* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(words(p), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(words(p + 8), 16))};
}
inline Lanes load(const Half* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}

#else

struct Lanes {
  float x[16];
};
#define SPECVLM_EACH(expression)             \
  Lanes r;                                   \
  for (int i = 0; i < 16; i++) r.x[i] = (expression); \
  return r
inline Lanes broadcast(float x) { SPECVLM_EACH(x); }
inline Lanes load(const float* p) { SPECVLM_EACH(p[i]); }
inline void store(float* p, Lanes a) { memcpy(p, a.x, sizeof a.x); }
inline Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) { SPECVLM_EACH(__builtin_fmaf(a.x[i], b.x[i], c.x[i])); }
inline Lanes fnma(const Lanes& a, const Lanes& b, const Lanes& c) {
  SPECVLM_EACH(__builtin_fmaf(-a.x[i], b.x[i], c.x[i]));
}
inline Lanes operator*(const Lanes& a, const Lanes& b) { SPECVLM_EACH(a.x[i] * b.x[i]); }
inline Lanes operator+(const Lanes& a, const Lanes& b) { SPECVLM_EACH(a.x[i] + b.x[i]); }
inline Lanes operator-(const Lanes& a, const Lanes& b) { SPECVLM_EACH(a.x[i] - b.x[i]); }
inline Lanes max(const Lanes& a, const Lanes& b) { SPECVLM_EACH(a.x[i] > b.x[i] ? a.x[i] : b.x[i]); }
inline Lanes min(const Lanes& a, const Lanes& b) { SPECVLM_EACH(a.x[i] < b.x[i] ? a.x[i] : b.x[i]); }
inline Lanes floor(const Lanes& a) { SPECVLM_EACH(__builtin_floorf(a.x[i])); }
inline Lanes power_of_two(const Lanes& k) { SPECVLM_EACH(as_float((uint32_t)((int32_t)k.x[i] + 127) << 23)); }
inline Lanes where_at_least(const Lanes& x, float least, const Lanes& value) {
  SPECVLM_EACH(x.x[i] >= least ? value.x[i] : 0.0f);
}
inline float widen(Bf16 x) { return as_float((uint32_t)x.bits << 16); }
inline float widen(Half h) {
  const uint32_t sign = (uint32_t)(h.bits & 0x8000u) << 16, rest = h.bits & 0x7fffu;
  if (rest >= 0x7c00u) return as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  const float magnitude = rest < 0x400u ? (float)rest * 0x1p-24f : as_float((rest << 13) + 0x38000000u);
  return as_float(sign | as_bits(magnitude));
}
inline Lanes load(const Bf16* p) { SPECVLM_EACH(widen(p[i])); }
inline Lanes load(const Half* p) { SPECVLM_EACH(widen(p[i])); }
#undef SPECVLM_EACH

#endif

// The order of vLLM's AVX-512 builds: halves folded onto each other.
inline float sum_folded(Lanes a) {
  float x[16];
  store(x, a);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) x[i] = x[i] + x[i + half];
  return x[0];
}
// The order of vLLM's AVX2 build: eight lanes left to right, twice.
inline float sum_in_line(Lanes a) {
  float x[16], half[2];
  store(x, a);
  for (int h = 0; h < 2; h++) {
    half[h] = x[8 * h];
    for (int i = 1; i < 8; i++) half[h] = half[h] + x[8 * h + i];
  }
  return half[0] + half[1];
}
inline float largest(Lanes a) {
  float x[16];
  store(x, a);
  for (int i = 1; i < 16; i++) x[0] = x[0] > x[i] ? x[0] : x[i];
  return x[0];
}

// vLLM's exponential: 2^k * polynomial(x - k ln 2), arguments below -87.3 give 0. Coefficients as in its source.
inline Lanes fast_exp(Lanes x) {
  const float least = as_float(0xc2aeac50u), most = as_float(0x42b17218u);
  const Lanes clamped = max(min(x, broadcast(most)), broadcast(least));
  const Lanes k = floor(fma(clamped, broadcast(as_float(0x3fb8aa3bu)), broadcast(0.5f)));
  const Lanes rest = fnma(k, broadcast(as_float(0x3f317218u)), clamped);
  Lanes poly = fma(rest, broadcast(0.00828929059f), broadcast(0.0418978221f));
  poly = fma(rest, poly, broadcast(0.166676521f));
  poly = fma(rest, poly, broadcast(0.499991506f));
  poly = fma(rest, poly, broadcast(0.999999701f));
  poly = fma(rest, poly, broadcast(1.0f));
  const Lanes power = where_at_least(x, least, power_of_two(k - broadcast(1.0f)));
  return (poly * power) * broadcast(2.0f);
}
inline Lanes library_exp(Lanes a) {
  float x[16];
  store(x, a);
  for (int i = 0; i < 16; i++) x[i] = expf(x[i]);
  return load(x);
}

}  // namespace
