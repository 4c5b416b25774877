// Small dense products held in registers: c[r][16 C] (+)= a[r][k] b[k][16 C], each sum one chain over k in order.
#pragma once

#include "lanes.h"

namespace {

#if defined(__AVX512F__)
constexpr int kRows = 6, kColumns = 4;  // 24 of 32 registers accumulate
#elif defined(__AVX2__)
constexpr int kRows = 6, kColumns = 1;  // 12 of 16
#else
constexpr int kRows = 4, kColumns = 1;
#endif

// How one step of a sum is computed. A word of the dot product is a pair of bf16.
struct Fused {
  typedef float Word;
  typedef Lanes Factor;
  static Factor spread(float x) { return broadcast(x); }
  static Factor get(const float* p) { return load(p); }
  static Lanes step(const Factor& a, const Factor& b, const Lanes& sum) { return fma(a, b, sum); }
};
struct Separate : Fused {
  static Lanes step(const Factor& a, const Factor& b, const Lanes& sum) { return a * b + sum; }
};
#if defined(__AVX512BF16__)
struct Dot {
  typedef uint32_t Word;
  typedef __m512i Factor;
  static Factor spread(uint32_t x) { return _mm512_set1_epi32((int)x); }
  static Factor get(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static Lanes step(Factor a, Factor b, Lanes sum) { return {_mm512_dpbf16_ps(sum.v, (__m512bh)a, (__m512bh)b)}; }
};
#endif

template <class Step>
struct Product {
  const typename Step::Word* a;
  int64_t a_stride;
  const typename Step::Word* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int64_t depth;
  bool add;
};

template <class Step, int R, int C>
inline void block(const Product<Step>& p) {
  Lanes sum[R][C];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) sum[r][c] = p.add ? load(p.c + r * p.c_stride + 16 * c) : broadcast(0.0f);
  for (int64_t k = 0; k < p.depth; k++) {
    typename Step::Factor b[C];
    for (int c = 0; c < C; c++) b[c] = Step::get(p.b + k * p.b_stride + 16 * c);
    for (int r = 0; r < R; r++) {
      const typename Step::Factor a = Step::spread(p.a[r * p.a_stride + k]);
      for (int c = 0; c < C; c++) sum[r][c] = Step::step(a, b[c], sum[r][c]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) store(p.c + r * p.c_stride + 16 * c, sum[r][c]);
}

template <class Step, int R>
void block_of_rows(Product<Step> p, int64_t lanes) {
  while (lanes > 0) {
    const int64_t step = smaller(lanes, kColumns);
    if (step == 1) block<Step, R, 1>(p);
    if constexpr (kColumns > 1) {
      if (step == 2) block<Step, R, 2>(p);
      else if (step == 3) block<Step, R, 3>(p);
      else if (step == 4) block<Step, R, 4>(p);
    }
    p.b += 16 * step;
    p.c += 16 * step;
    lanes -= step;
  }
}

// rows <= kRows; `lanes` columns of 16.
template <class Step>
void multiply(const Product<Step>& p, int64_t rows, int64_t lanes) {
  switch (rows) {
    case 1: return block_of_rows<Step, 1>(p, lanes);
    case 2: return block_of_rows<Step, 2>(p, lanes);
    case 3: return block_of_rows<Step, 3>(p, lanes);
    case 4: return block_of_rows<Step, 4>(p, lanes);
    case 5: return block_of_rows<Step, 5>(p, lanes);
    case 6: return block_of_rows<Step, 6>(p, lanes);
  }
}

}  // namespace
