// The bfloat16 dot product as a step of the products: two rows of b at once, each word of a a pair of bf16.
#pragma once

#include "blocks.h"

namespace {

struct Dot {
  typedef uint32_t Word;
  typedef __m512i Factor;
  static constexpr int kDepth = 2;
  static Factor spread(uint32_t x) { return _mm512_set1_epi32((int)x); }

  // Pairs (row 0, row 1) of 16 C columns. Two lanes of columns are zipped in one go, which leaves them in another
  // order within the 32: sums live in that order and are put right where they are loaded and stored.
  template <int C>
  static void get(const Bf16* b, int64_t stride, Factor* to) {
    if constexpr (C == 1) {
      const __m512i first = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)b));
      const __m512i second = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(b + stride)));
      to[0] = _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
    } else {
      for (int c = 0; c < C; c += 2) {
        const __m512i first = _mm512_loadu_si512(b + 16 * c), second = _mm512_loadu_si512(b + 16 * c + stride);
        to[c] = _mm512_unpacklo_epi16(first, second);
        to[c + 1] = _mm512_unpackhi_epi16(first, second);
      }
    }
  }
  static Lanes step(Factor a, Factor b, Lanes sum) { return {_mm512_dpbf16_ps(sum.v, (__m512bh)a, (__m512bh)b)}; }

  template <int C>
  static void load_sums(const float* p, Lanes* sums) {
    if constexpr (C == 1) sums[0] = load(p);
    else
      for (int c = 0; c < C; c += 2) {
        const __m512 x = _mm512_loadu_ps(p + 16 * c), y = _mm512_loadu_ps(p + 16 * c + 16);
        const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        const __m512i high = _mm512_setr_epi32(4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        sums[c] = {_mm512_permutex2var_ps(x, low, y)};
        sums[c + 1] = {_mm512_permutex2var_ps(x, high, y)};
      }
  }
  template <int C>
  static void store_sums(float* p, const Lanes* sums) {
    if constexpr (C == 1) store(p, sums[0]);
    else
      for (int c = 0; c < C; c += 2) {
        const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
        _mm512_storeu_ps(p + 16 * c, _mm512_permutex2var_ps(sums[c].v, low, sums[c + 1].v));
        _mm512_storeu_ps(p + 16 * c + 16, _mm512_permutex2var_ps(sums[c].v, high, sums[c + 1].v));
      }
  }

  static Lanes single(Lanes a, Lanes b, Lanes sum) { return fma(a, b, sum); }
  static const Bf16* elements(const uint32_t* words) { return (const Bf16*)words; }

  // Queries were not scaled, so logits are; probabilities become bf16 in place, never overtaking what is still read.
  static float softmax(float* logits, int64_t n, RowState& state, const specvlm_tree_attention& p) {
    const Lanes scale = broadcast(p.scale);
    return softmax_row(logits, n, state, false, [=](Lanes x) { return x * scale; }, [](Lanes x) { return fast_exp(x); },
                       [=](int64_t i, Lanes x) {
                         _mm256_storeu_si256((__m256i*)((uint16_t*)logits + i), (__m256i)_mm512_cvtneps_pbh(x.v));
                       });
  }
};

}  // namespace
