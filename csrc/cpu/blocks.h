// Small dense products held in registers: c[r][16 C] (+)= a[r][k] b[k][16 C], each sum one chain over k in order.
#pragma once

#include "softmax.h"

namespace {

// Rows of a register block, and lanes of 16 columns beside each other: with few rows more lanes, so that enough sums
// are under way to hide the latency of one.
#if defined(__AVX512F__)
constexpr int kRows = 12;
constexpr int lanes_at_once(int rows) { return rows <= 5 ? 4 : 2; }
#elif defined(__AVX2__)
constexpr int kRows = 6;
constexpr int lanes_at_once(int rows) { return rows <= 2 ? 2 : 1; }
#else
constexpr int kRows = 4;
constexpr int lanes_at_once(int) { return 1; }
#endif

// How one step of a sum is computed: a word of `a` times a row of `b`, which is widened as it is loaded. Fused follows
// vLLM's AVX-512 builds, Separate its AVX2 build.
struct Fused {
  typedef float Word;
  typedef Lanes Factor;
  static constexpr int kDepth = 1;  // rows of b that one step takes
  static Factor spread(float x) { return broadcast(x); }
  template <int C, class T>
  static void get(const T* b, int64_t, Factor* to) {
    for (int c = 0; c < C; c++) to[c] = load(b + 16 * c);
  }
  static Lanes step(const Factor& a, const Factor& b, const Lanes& sum) { return fma(a, b, sum); }
  template <int C>
  static void load_sums(const float* p, Lanes* sums) {
    for (int c = 0; c < C; c++) sums[c] = load(p + 16 * c);
  }
  template <int C>
  static void store_sums(float* p, const Lanes* sums) {
    for (int c = 0; c < C; c++) store(p + 16 * c, sums[c]);
  }
  // The same step outside of products, and the elements that words hold.
  static Lanes single(const Lanes& a, const Lanes& b, const Lanes& sum) { return fma(a, b, sum); }
  static const float* elements(const float* words) { return words; }

  static float softmax(float* logits, int64_t n, RowState& state, const specvlm_tree_attention&) {
    return softmax_row(logits, n, state, false, [](const Lanes& x) { return x; },
                       [](const Lanes& x) { return fast_exp(x); },
                       [=](int64_t i, const Lanes& x) { store(logits + i, x); });
  }
};

struct Separate : Fused {
  static Lanes step(const Factor& a, const Factor& b, const Lanes& sum) { return a * b + sum; }
  static Lanes single(const Lanes& a, const Lanes& b, const Lanes& sum) { return a * b + sum; }
  static float softmax(float* logits, int64_t n, RowState& state, const specvlm_tree_attention&) {
    return softmax_row(logits, n, state, true, [](const Lanes& x) { return x; },
                       [](const Lanes& x) { return library_exp(x); },
                       [=](int64_t i, const Lanes& x) { store(logits + i, x); });
  }
};

// rows x depth words of a, either kRows-wise side by side (word k of row r at a[k * rows + r]) or row by row.
template <class Step, class T>
struct Product {
  const typename Step::Word* a;
  int64_t a_stride;  // 0: side by side
  const T* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int64_t depth;     // in words
  bool add;
};

template <class Step, class T, int R, int C, bool kBeside>
__attribute__((noinline)) void block(const Product<Step, T>& p) {
  Lanes sums[R][C];
  for (int r = 0; r < R; r++) {
    if (p.add) Step::template load_sums<C>(p.c + r * p.c_stride, sums[r]);
    else
      for (int c = 0; c < C; c++) sums[r][c] = broadcast(0.0f);
  }
  const int64_t stride = p.a_stride, b_stride = p.b_stride;
  const T* b = p.b;
  const typename Step::Word *a = p.a, *half = p.a + (kBeside ? 0 : 6 * stride);
  for (int64_t k = p.depth; k > 0; k--) {
    typename Step::Factor row[C];
    Step::template get<C>(b, b_stride, row);
    b += Step::kDepth * b_stride;
    for (int r = 0; r < R; r++) {
      const typename Step::Word word = kBeside ? a[r] : r < 6 ? a[r * stride] : half[(r - 6) * stride];
      const typename Step::Factor factor = Step::spread(word);
      for (int c = 0; c < C; c++) sums[r][c] = Step::step(factor, row[c], sums[r][c]);
    }
    a += kBeside ? R : 1;
    half += 1;
  }
  for (int r = 0; r < R; r++) Step::template store_sums<C>(p.c + r * p.c_stride, sums[r]);
}

template <class Step, class T, int R, int C>
void strip(Product<Step, T>& p, int64_t& lanes) {
  for (; lanes >= C; lanes -= C) {
    if (p.a_stride) block<Step, T, R, C, false>(p);
    else block<Step, T, R, C, true>(p);
    p.b += 16 * C;
    p.c += 16 * C;
  }
}

template <class Step, class T, int R>
void block_of_rows(Product<Step, T> p, int64_t lanes) {
  constexpr int most = lanes_at_once(R);
  if constexpr (most >= 4) strip<Step, T, R, 4>(p, lanes);
  if constexpr (most >= 2) strip<Step, T, R, 2>(p, lanes);
  strip<Step, T, R, 1>(p, lanes);
}

// rows <= kRows; `lanes` columns of 16.
template <class Step, class T, int R = kRows>
void multiply(const Product<Step, T>& p, int64_t rows, int64_t lanes) {
  if (rows == R) block_of_rows<Step, T, R>(p, lanes);
  else if constexpr (R > 1) multiply<Step, T, R - 1>(p, rows, lanes);
}

}  // namespace
