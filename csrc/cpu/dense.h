// The tree's own keys and values: few, token-major, outside the paged cache, seen through 128-bit ancestor masks.
#pragma once

#include "../abi/tree_attention.h"
#include "cache.h"

namespace {

constexpr int kDense = 128;

// The dense rows that some row of an item sees, numbered 0.. in order.
template <class T>
class DenseRows {
 public:
  int64_t count = 0;

  DenseRows(const specvlm_tree_attention& p, const specvlm_item& item) : p_(p), request_(p.requests[item.request]) {
    const int64_t group = p.query_heads / p.heads;
    uint64_t seen[2] = {0, 0};
    for (int64_t token = item.first_row / group; token <= (item.last_row - 1) / group; token++)
      for (int w = 0; w < 2; w++) seen[w] |= p.ancestors[2 * (request_.first_listed + token) + w];
    each_bit(seen, [&](int bit) {
      number_[bit] = (uint8_t)count;
      bit_[count++] = (uint8_t)bit;
    });
    keys_ = (const T*)p.dense_key + request_.dense_start * p.dense_key_row_stride + item.head * p.dense_key_head_stride;
    values_ = (const T*)p.dense_value + request_.dense_start * p.dense_value_row_stride +
              item.head * p.dense_value_head_stride;
  }

  // Keys of the rows numbered [first, first + n) as a run in `tile`.
  Run<T> keys(int64_t first, int64_t n, T* tile) const {
    for (int64_t k = 0; k < n; k++) {
      const T* from = keys_ + bit_[first + k] * p_.dense_key_row_stride;
      for (int64_t d = 0; d < p_.head_size; d++) tile[d * kRun + k] = from[d];
    }
    return {tile, kRun, n};
  }

  // logits, one for each of the `count` rows, become those of the listed token's ancestors, side by side.
  void keep_ancestors(int64_t listed, float* logits) const {
    int64_t kept = 0;
    each_bit(p_.ancestors + 2 * listed, [&](int bit) { logits[kept++] = logits[number_[bit]]; });
  }

  // Where the values of the listed token's ancestors lie.
  void values(int64_t listed, const T** rows) const {
    each_bit(p_.ancestors + 2 * listed, [&](int bit) { *rows++ = values_ + bit * p_.dense_value_row_stride; });
  }

 private:
  template <class F>
  static void each_bit(const uint64_t* words, const F& f) {
    for (int w = 0; w < 2; w++)
      for (uint64_t left = words[w]; left; left &= left - 1) f(64 * w + __builtin_ctzll(left));
  }

  const specvlm_tree_attention& p_;
  const specvlm_request& request_;
  const T *keys_, *values_;
  uint8_t number_[kDense], bit_[kDense];
};

}  // namespace
