// The noise of vllm_specvlm/tree/noise.py: the same 32 bits for each key and token, and their exponential variable.
#pragma once

#include "both.h"

namespace specvlm {

SPECVLM_BOTH inline uint32_t noise_bits(int64_t key, int32_t token) {
  uint32_t word = static_cast<uint32_t>(token) * 0x9e3779b9u + static_cast<uint32_t>(key);
  word = (word ^ word >> 17) * 0xed5ad4bbu;
  word = (word ^ word >> 11) + static_cast<uint32_t>(static_cast<uint64_t>(key) >> 32);
  word *= 0xac4c1b51u;
  word = (word ^ word >> 15) * 0x31848babu;
  return word ^ word >> 14;
}

// s + s^3 / 3 + s^5 / 5 + ..., for |s| up to 1/3 to a few units in the last place.
SPECVLM_BOTH inline float atanh_series(float s) {
  const float square = s * s;
  float sum = 1.0f / 17.0f;
  for (int n = 15; n >= 3; n -= 2) sum = fmaf(sum, square, 1.0f / static_cast<float>(n));
  return fmaf(s * square, sum, s);
}

// -log(1 - v) for v = (bits + 1/2) / 2^32 rounded to float32, at most 1 - 2^-24; written so that small values keep
// their relative precision, which is where races are won by improbable tokens.
SPECVLM_BOTH inline float exponential(uint32_t bits) {
  const float v = fminf((static_cast<float>(bits) + 0.5f) * 2.3283064365386963e-10f, 1.0f - 5.9604644775390625e-8f);
  if (v <= 0.5f) return 2.0f * atanh_series(v / (2.0f - v));
  int exponent;  // 1 - v is exact here: mantissa in [1/2, 1) times 2^exponent
  const float mantissa = frexpf(1.0f - v, &exponent);
  const bool low = mantissa < 0.70710678f;
  const float m = low ? 2.0f * mantissa : mantissa, e = static_cast<float>(exponent - (low ? 1 : 0));
  const float log_m = 2.0f * atanh_series((m - 1.0f) / (m + 1.0f));
  // ln 2 in two parts, the first of few bits: its product with e is exact.
  return -fmaf(e, 0.693359375f, fmaf(e, -2.12194440e-4f, log_m));
}

// When the token arrives, as a speed: the greatest one wins, of equal ones the lower token.
SPECVLM_BOTH inline float race_speed(float prob, int64_t key, int32_t token) {
  return prob > 0.0f ? prob / exponential(noise_bits(key, token)) : 0.0f;
}

SPECVLM_BOTH inline bool runs_ahead(float speed, int32_t token, float other_speed, int32_t other_token) {
  return speed > other_speed || (speed == other_speed && token < other_token);
}

}  // namespace specvlm
