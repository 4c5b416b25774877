// Reading vLLM's paged cache: from visible-key indexes to pages, and from pages to tiles the products can use.
#pragma once

#include "../abi/tree_attention.h"
#include "lanes.h"

namespace {

constexpr int64_t kTile = 64;  // keys of a packed tile

// Where the value (or key) of one token starts, for any multiple of 16 channels.
template <class T>
struct Slot {
  const T* at;
  int64_t channel_stride;  // elements from one channel to the next, counted at multiples of 16
  int64_t which;           // -1: the channels lie side by side; 0 or 1: as this element of pairs
};

template <class T>
inline Lanes load_channels(const Slot<T>& slot, int64_t d) {
  if constexpr (sizeof(T) == sizeof(Bf16) && __is_same(T, Bf16)) {
    if (slot.which >= 0) return load_pairs(slot.at + d * slot.channel_stride, 16, slot.which);
  }
  return load(slot.at + d);
}

// The pages of one head, as one request sees them.
template <class T>
class Pages {
 public:
  Pages(const specvlm_tree_attention& p, const specvlm_request& request, int64_t head)
      : p_(p), request_(request), head_(head), plane_(p.page * p.head_size) {}

  // Calls f(block, slot, count, column) for runs of at most 16 keys that lie in one page (and, for pairs, one group of
  // 16 slots); they are the visible keys [index, index + count of all), column counts from 0.
  template <class F>
  void each_run(int64_t index, int64_t count, const F& f) const {
    const specvlm_stretch* stretch = p_.stretches + request_.first_stretch;
    while (index >= stretch->index + stretch->length) stretch++;
    for (int64_t column = 0; column < count;) {
      const int64_t offset = index + column - stretch->index, position = stretch->position + offset;
      const int64_t slot = position % p_.page;
      const int64_t in_group = p_.layout == SPECVLM_PAIRS ? 16 - slot % 16 : 16;
      const int64_t run = smaller(smaller(in_group, p_.page - slot), smaller(stretch->length - offset, count - column));
      f(block(position / p_.page), slot, run, column);
      column += run;
      if (offset + run == stretch->length) stretch++;
    }
  }

  // K of visible keys [index, index + count) as tile[channel][kTile] of floats.
  void pack_keys(int64_t index, int64_t count, float* tile) const {
    const int64_t D = p_.head_size, page = p_.page;
    each_run(index, count, [&](const T* block, int64_t slot, int64_t run, int64_t column) {
      float* to = tile + column;
      if constexpr (__is_same(T, Bf16)) {
        if (p_.layout == SPECVLM_PAIRS) {
          const T* from = block + slot / 16 * 16 * D + slot % 16 * 2;
          for (int64_t d = 0; d < D; d++, to += kTile) store(to, load_pairs(from + d / 2 * 32, run, d % 2), run);
          return;
        }
      }
      const T* from = block + slot;
      if (run == 16)
        for (int64_t d = 0; d < D; d++, to += kTile, from += page) store(to, load(from));
      else
        for (int64_t d = 0; d < D; d++, to += kTile, from += page) store(to, load(from, run), run);
    });
  }

  // Where V of visible keys [index, index + count) lies.
  void find_values(int64_t index, int64_t count, Slot<T>* slots) const {
    const int64_t D = p_.head_size;
    each_run(index, count, [&](const T* block, int64_t slot, int64_t run, int64_t column) {
      const T* values = block + plane_;
      for (int64_t i = 0; i < run; i++, slot++)
        slots[column + i] = p_.layout == SPECVLM_PAIRS ? Slot<T>{values + slot / 2 * 32, p_.page, slot % 2}
                                                       : Slot<T>{values + slot * D, 1, -1};
    });
  }

 private:
  const T* block(int64_t number) const {
    return (const T*)p_.cache + ((int64_t)request_.blocks[number] * p_.heads + head_) * 2 * plane_;
  }

  const specvlm_tree_attention& p_;
  const specvlm_request& request_;
  int64_t head_, plane_;
};

// V as tile[key][channel] of floats.
template <class T>
void pack_values(const Slot<T>* slots, int64_t count, int64_t D, float* tile) {
  for (int64_t k = 0; k < count; k++)
    for (int64_t d = 0; d < D; d += 16) store(tile + k * D + d, load_channels(slots[k], d));
}

}  // namespace
