// Reading vLLM's paged cache: from indexes of visible keys to runs inside pages, as rows the products can take.
#pragma once

#include "../abi/tree_attention.h"
#include "lanes.h"

namespace {

constexpr int64_t kRun = 64;  // most keys of a run whose keys are looked up; also the columns of a packed tile

// Consecutive visible keys inside one page. Keys: channel d of key i at rows[d * stride + i], readable up to the next
// multiple of 16 keys. Values: channel d of key i at rows[i * stride + d].
template <class T>
struct Run {
  const T* rows;
  int64_t stride, count;
};

// The pages of one head, as one request sees them. Runs that do not lie in memory as above are copied to `tile`,
// room for kRun * head_size elements.
template <class T>
class Pages {
 public:
  Pages(const specvlm_tree_attention& p, const specvlm_request& request, int64_t head)
      : p_(p), request_(request), head_(head), plane_(p.page * p.head_size) {}

  // The run of keys that starts at a visible index, at most `most` long (and kRun).
  Run<T> keys(int64_t index, int64_t most, T* tile) const {
    const Place at = find(index, smaller(most, kRun));
    if (p_.layout == SPECVLM_PAIRS) {
      unpair_keys(at, tile);
      return {tile, kRun, at.count};
    }
    const T* from = at.block + at.slot;
    if (at.slot + round_up(at.count, 16) <= p_.page) return {from, p_.page, at.count};
    for (int64_t d = 0; d < p_.head_size; d++)
      memcpy(tile + d * kRun, from + d * p_.page, (size_t)at.count * sizeof(T));
    return {tile, kRun, at.count};
  }

  Run<T> values(int64_t index, int64_t most, T* tile) const {
    if (p_.layout == SPECVLM_PAIRS) {
      const Place at = find(index, smaller(most, kRun));
      unpair_values(at, tile);
      return {tile, p_.head_size, at.count};
    }
    const Place at = find(index, most);
    return {at.block + plane_ + at.slot * p_.head_size, p_.head_size, at.count};
  }

 private:
  struct Place {
    const T* block;
    int64_t slot, count;
  };

  Place find(int64_t index, int64_t most) const {
    const specvlm_stretch* stretch = p_.stretches + request_.first_stretch;
    while (index >= stretch->index + stretch->length) stretch++;
    const int64_t offset = index - stretch->index, position = stretch->position + offset;
    const int64_t page = position / p_.page, slot = position % p_.page;
    return {(const T*)p_.cache + ((int64_t)request_.blocks[page] * p_.heads + head_) * 2 * plane_, slot,
            smaller(smaller(most, stretch->length - offset), p_.page - slot)};
  }

  // Groups of 16 slots hold pairs of channels: [D / 2][16 slots][2].
  void unpair_keys(const Place& at, T* tile) const {
    const int64_t D = p_.head_size;
    for (int64_t i = 0; i < at.count;) {
      const int64_t slot = at.slot + i, run = smaller(16 - slot % 16, at.count - i);
      const T* from = at.block + slot / 16 * 16 * D + slot % 16 * 2;
      for (int64_t d = 0; d < D; d += 2, from += 32)
        for (int64_t j = 0; j < run; j++) {
          tile[d * kRun + i + j] = from[2 * j];
          tile[(d + 1) * kRun + i + j] = from[2 * j + 1];
        }
      i += run;
    }
  }

  // Groups of 16 channels hold pairs of slots: [page / 2][16 channels][2].
  void unpair_values(const Place& at, T* tile) const {
    const int64_t D = p_.head_size;
    for (int64_t i = 0; i < at.count; i++) {
      const int64_t slot = at.slot + i;
      const T* from = at.block + plane_ + slot / 2 * 32 + slot % 2;
      for (int64_t d = 0; d < D; d += 16)
        for (int64_t j = 0; j < 16; j++) tile[i * D + d + j] = from[d * p_.page + 2 * j];
    }
  }

  const specvlm_tree_attention& p_;
  const specvlm_request& request_;
  int64_t head_, plane_;
};

}  // namespace
