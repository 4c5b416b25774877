// Races of one law each (vllm_specvlm/tree/race.py) on one thread.
#pragma once

#include <algorithm>
#include <math.h>

#include "../abi/acceptance.h"
#include "../common/noise.h"

namespace {

// The greatest speed so far, and whose it is.
struct Leader {
  float speed = 0.0f;
  int32_t token = -1;
  bool law = true;

  void meet(float prob, int64_t key, int32_t token_met) {
    const float mine = specvlm::race_speed(prob, key, token_met);
    law = law && mine < INFINITY && prob == prob;
    if (mine > 0.0f && specvlm::runs_ahead(mine, token_met, speed, token)) speed = mine, token = token_met;
  }

  // Tokens at least as fast have a probability above this times the upper 24 bits of their noise: for v = bits / 2^32
  // the exponential variable -log(1 - v) is at least v, and rounding costs it less than the tenth of a thousandth.
  float bound() const { return speed * (0.9999f * 0x1p-24f); }
};

inline bool may_lead(float prob, float bound, int64_t key, int32_t token) {
  return !(prob <= bound * static_cast<float>(static_cast<int32_t>(specvlm::noise_bits(key, token) >> 8)));
}

// Whether any token of [first, last) may lead; no branches, for wide registers. NaN may.
inline bool any_may_lead(const float* probs, float bound, int64_t key, int32_t first, int32_t last) {
  int32_t any = 0;
  for (int32_t t = first; t < last; t++) any |= may_lead(probs[t], bound, key, t);
  return any;
}

// Rows [first, last): the logarithm is computed for the few tokens only that may win.
void race_rows(const specvlm_race* p, int64_t first, int64_t last) {
  constexpr int32_t kBlock = 256;
  for (int64_t row = first; row < last; row++) {
    const float* const probs = p->probs + row * p->row_stride;
    const int64_t key = p->keys[row];
    Leader leader;
    for (int32_t t = 0; t < p->vocabulary; t += kBlock) {
      const int32_t end = std::min(t + kBlock, p->vocabulary);
      if (!any_may_lead(probs, leader.bound(), key, t, end)) continue;
      for (int32_t i = t; i < end; i++)
        if (may_lead(probs[i], leader.bound(), key, i)) leader.meet(probs[i], key, i);
    }
    p->winners[row] = leader.law ? leader.token : -1;
  }
}

}  // namespace
