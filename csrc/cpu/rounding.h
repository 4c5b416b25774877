// From float sums to the dtype of the output.
#pragma once

#include "lanes.h"

namespace {

// Results, 16 at a time. bf16: to nearest even with denormals flushed, as vcvtneps2bf16 does, or cut off.
inline void narrow(float* p, Lanes a, bool) { store(p, a); }
inline uint16_t nearest_bf16(uint32_t bits) {
  const uint32_t magnitude = bits & 0x7fffffffu, top = bits >> 16;
  const uint32_t rounded = (bits + 0x7fffu + (top & 1u)) >> 16;
  return (uint16_t)(magnitude > 0x7f800000u ? top | 0x40u : magnitude < 0x00800000u ? top & 0x8000u : rounded);
}
inline void narrow(Bf16* p, Lanes a, bool nearest) {
#if defined(__AVX512BF16__)
  if (nearest) return _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(a.v));
#endif
  float x[16];
  store(x, a);
  if (nearest)
    for (int i = 0; i < 16; i++) p[i].bits = nearest_bf16(as_bits(x[i]));
  else
    for (int i = 0; i < 16; i++) p[i].bits = (uint16_t)(as_bits(x[i]) >> 16);
}
inline void narrow(Half* p, Lanes a, bool) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(a.b, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < 16; i++) {
    const uint32_t bits = as_bits(a.x[i]), magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
    else if (magnitude >= 0x477ff000u) half = 0x7c00u;
    else if (magnitude < 0x38800000u) half = (uint32_t)nearbyintf(as_float(magnitude) * 0x1p24f);
    else half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    p[i].bits = (uint16_t)((bits >> 16 & 0x8000u) | half);
  }
#endif
}

}  // namespace
