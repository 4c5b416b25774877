// The tree's own keys and values: few, token-major, outside the paged cache, seen through 128-bit ancestor masks.
#pragma once

#include "../abi/tree_attention.h"
#include "blocks.h"
#include "cache.h"

namespace {

constexpr int kDense = 128;

// sums[0, D) += weights[k] * value k, keys in order.
template <class Step, class T>
void add_values(const float* weights, const Slot<T>* slots, int64_t count, float* sums, int64_t D) {
  if (count <= 0) return;
  for (int64_t d = 0; d < D;) {
    if (d + 64 <= D) {
      Lanes sum[4];
      for (int c = 0; c < 4; c++) sum[c] = load(sums + d + 16 * c);
      for (int64_t k = 0; k < count; k++)
        for (int c = 0; c < 4; c++)
          sum[c] = Step::step(broadcast(weights[k]), load_channels(slots[k], d + 16 * c), sum[c]);
      for (int c = 0; c < 4; c++) store(sums + d + 16 * c, sum[c]);
      d += 64;
    } else {
      Lanes sum = load(sums + d);
      for (int64_t k = 0; k < count; k++) sum = Step::step(broadcast(weights[k]), load_channels(slots[k], d), sum);
      store(sums + d, sum);
      d += 16;
    }
  }
}

// The dense rows that some row of an item sees, in order.
template <class T>
class DenseKeys {
 public:
  int64_t count = 0;

  DenseKeys(const specvlm_tree_attention& p, const specvlm_item& item) : p_(p), request_(p.requests[item.request]) {
    const int64_t group = p.query_heads / p.heads;
    uint64_t seen[2] = {0, 0};
    for (int64_t token = item.first_row / group; token <= (item.last_row - 1) / group; token++)
      for (int w = 0; w < 2; w++) seen[w] |= p.ancestors[2 * (request_.first_listed + token) + w];
    for (int w = 0; w < 2; w++)
      for (uint64_t left = seen[w]; left; left &= left - 1) {
        const int bit = 64 * w + __builtin_ctzll(left);
        number_[bit] = (uint8_t)count;
        bits_[count++] = (uint8_t)bit;
      }
    keys_ = (const T*)p.dense_key + request_.dense_start * p.dense_key_row_stride + item.head * p.dense_key_head_stride;
    values_ = (const T*)p.dense_value + request_.dense_start * p.dense_value_row_stride +
              item.head * p.dense_value_head_stride;
  }

  int64_t ancestors(int64_t listed) const {
    const uint64_t* mask = p_.ancestors + 2 * listed;
    return __builtin_popcountll(mask[0]) + __builtin_popcountll(mask[1]);
  }

  // K of the rows numbered [first, first + n) as tile[channel][kTile].
  void pack_keys(int64_t first, int64_t n, float* tile) const {
    for (int64_t k = 0; k < n; k++) {
      const T* from = key(first + k);
      for (int64_t d = 0; d < p_.head_size; d += 16) {
        float channels[16];
        store(channels, load(from + d));
        for (int i = 0; i < 16; i++) tile[(d + i) * kTile + k] = channels[i];
      }
    }
  }

  const T* key(int64_t number) const { return keys_ + bits_[number] * p_.dense_key_row_stride; }

  // logits, one for each of the `count` rows, become those of the listed token's ancestors, side by side.
  void keep_ancestors(int64_t listed, float* logits) const {
    int64_t kept = 0;
    for (int w = 0; w < 2; w++)
      for (uint64_t left = p_.ancestors[2 * listed + w]; left; left &= left - 1)
        logits[kept++] = logits[number_[64 * w + __builtin_ctzll(left)]];
  }

  int64_t find_values(int64_t listed, Slot<T>* slots) const {
    int64_t n = 0;
    for (int w = 0; w < 2; w++)
      for (uint64_t left = p_.ancestors[2 * listed + w]; left; left &= left - 1)
        slots[n++] = {values_ + (64 * w + __builtin_ctzll(left)) * p_.dense_value_row_stride, 1, -1};
    return n;
  }

 private:
  const specvlm_tree_attention& p_;
  const specvlm_request& request_;
  const T *keys_, *values_;
  uint8_t number_[kDense], bits_[kDense];
};

}  // namespace
