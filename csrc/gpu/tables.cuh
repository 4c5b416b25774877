// Reading the tables on the device: which request a block works for, what its rows see, how its keys are cut.
//
// Paged keys are walked in *groups* of 16 slots that begin at a multiple of 16 and hence lie in one page. A span that
// begins or ends inside a group has the rest of the group masked. Words as in abi/tree_attention.h.
#pragma once

#include "../abi/gpu.h"
#include "platform.cuh"

namespace specvlm {

constexpr int kGroup = 16;
constexpr int kCut = 4;          // pieces are cut at multiples of so many groups
constexpr int kLeastGroups = 8;  // a request's keys are cut into fewer pieces rather than into shorter ones than this

struct Request {
  int first_row, rows, table_row, dense_start, first_span, spans, first_listed;
};

// The request that owns unit `at`, and the unit's number in it, where a request of n rows has units(n) units. Every
// warp calls it as a whole; the result is the same in all lanes. False: there are no so many units.
template <class Units>
__device__ bool find_request(const specvlm_gpu_attention& p, int at, const Units& units, Request& found, int& unit) {
  const int lane = threadIdx.x & 31;
  int units_before = 0, rows_before = 0;
  for (int base = 0; base < p.requests; base += 32) {
    const int rows = base + lane < p.requests ? p.request_table[6 * (base + lane) + 1] : 0, mine = units(rows);
    int all_units = mine, all_rows = rows;  // sums up to this lane
    for (int by = 1; by < 32; by *= 2) {
      const int other_units = __shfl_up_sync(kAllLanes, all_units, by);
      const int other_rows = __shfl_up_sync(kAllLanes, all_rows, by);
      if (lane >= by) all_units += other_units, all_rows += other_rows;
    }
    const uint32_t past = __ballot_sync(kAllLanes, units_before + all_units > at);
    if (past) {
      const int owner = __ffs(static_cast<int>(past)) - 1;
      unit = at - units_before - __shfl_sync(kAllLanes, all_units - mine, owner);
      const int32_t* const entry = p.request_table + 6 * (base + owner);
      found = {entry[0], entry[1], entry[2], entry[3], entry[4], entry[5],
               rows_before + __shfl_sync(kAllLanes, all_rows - rows, owner)};
      return true;
    }
    units_before += __shfl_sync(kAllLanes, all_units, 31);
    rows_before += __shfl_sync(kAllLanes, all_rows, 31);
  }
  return false;
}

// Rows [first, end) of a request, packed as token * group + head, for one key/value head.
struct Tile {
  Request request;
  int group, first, end;
};

template <int kRows>
__device__ bool find_tile(const specvlm_gpu_attention& p, Tile& tile) {
  const int group = p.query_heads / p.heads;
  int unit;
  const auto units = [&](int rows) { return (rows * group + kRows - 1) / kRows; };
  if (!find_request(p, blockIdx.x, units, tile.request, unit)) return false;
  tile.group = group;
  tile.first = unit * kRows;
  tile.end = smaller(tile.first + kRows, tile.request.rows * group);
  return true;
}

// What the rows of a tile see, all taken together; the same in all lanes of a warp.
struct View {
  int least_upto, most_upto, most_from;
  uint32_t ancestors[4];
  // ancestors[word], without making the compiler keep an array in memory.
  __device__ __forceinline__ uint32_t word(int word) const {
    return word < 2 ? (word == 0 ? ancestors[0] : ancestors[1]) : (word == 2 ? ancestors[2] : ancestors[3]);
  }
};

__device__ inline View view_of(const specvlm_gpu_attention& p, const Tile& tile) {
  int least_upto = 0x7fffffff, most_upto = 0, most_from = 0;
  uint64_t low = 0, high = 0;
  const int last = (tile.end - 1) / tile.group;
  for (int token = tile.first / tile.group + static_cast<int>(threadIdx.x & 31); token <= last; token += 32) {
    const int64_t listed = tile.request.first_listed + token;
    least_upto = smaller(least_upto, p.visible_upto[listed]);
    most_upto = larger(most_upto, p.visible_upto[listed]);
    if (p.visible_from) most_from = larger(most_from, p.visible_from[listed]);
    low |= p.ancestors[2 * listed];
    high |= p.ancestors[2 * listed + 1];
  }
  return {-warp_max(-least_upto), warp_max(most_upto), p.visible_from ? warp_max(most_from) : 0,
          {warp_or(static_cast<uint32_t>(low)), warp_or(static_cast<uint32_t>(low >> 32)),
           warp_or(static_cast<uint32_t>(high)), warp_or(static_cast<uint32_t>(high >> 32))}};
}

struct Group {
  int position, low, high;  // its slots are [position, position + 16), visible are [low, high)
  int64_t offset;           // of its first slot in the cache
};

// The groups of a request's spans below `limit`, in order.
class Groups {
 public:
  __device__ Groups(const specvlm_gpu_attention& p, const Request& request, int limit)
      : spans_(p.spans + 2 * static_cast<int64_t>(request.first_span)), left_(request.spans),
        limit_(smaller(limit, p.block_columns * p.page)), page_(p.page),
        blocks_(p.block_table + request.table_row * p.table_stride), block_stride_(p.cache_block_stride),
        slot_stride_(p.cache_slot_stride) {}

  __device__ int count() const {
    int groups = 0;
    for (int s = 0; s < left_; s++) groups += in_span(s);
    return groups;
  }

  // Makes group number `at` the next one; there must be one.
  __device__ void seek(int at) {
    for (; at >= in_span(0); spans_ += 2, left_--) at -= in_span(0);
    enter(at);
  }

  __device__ Group next() {
    const Group group = {position_, larger(start_, position_), smaller(end_, position_ + kGroup),
                         blocks_[column_] * block_stride_ + slot_ * slot_stride_};
    position_ += kGroup;
    slot_ += kGroup;
    if (slot_ == page_) slot_ = 0, column_++;
    if (position_ >= end_) {
      do spans_ += 2, left_--;
      while (left_ > 0 && in_span(0) == 0);
      if (left_ > 0) enter(0);
    }
    return group;
  }

 private:
  __device__ int end_of(int s) const { return smaller(spans_[2 * s + 1], limit_); }
  __device__ int in_span(int s) const {
    const int start = spans_[2 * s], end = end_of(s);
    return end > start ? (end + kGroup - 1) / kGroup - start / kGroup : 0;
  }
  __device__ void enter(int group) {
    start_ = spans_[0];
    end_ = end_of(0);
    position_ = (start_ / kGroup + group) * kGroup;
    column_ = position_ / page_;
    slot_ = position_ % page_;
  }

  const int32_t* spans_;
  int left_, limit_, page_;
  const int32_t* blocks_;
  int64_t block_stride_, slot_stride_;
  int start_ = 0, end_ = 0, position_ = 0, column_ = 0, slot_ = 0;
};

// A request's paged keys are cut into `pieces` of `groups` groups each; the last piece has the dense rows too.
struct Cut {
  int pieces, groups;
};

__device__ inline Cut cut_of(const specvlm_gpu_attention& p, const Request& request) {
  const int total = Groups(p, request, 0x7fffffff).count();
  if (total == 0) return {1, kCut};
  const int most = smaller(p.splits, (total + kLeastGroups - 1) / kLeastGroups);
  const int groups = ((total + most - 1) / most + kCut - 1) / kCut * kCut;
  return {(total + groups - 1) / groups, groups};
}

// One block's share of the keys: groups [first, end) of its tile, then dense rows if it has the last piece.
struct Share {
  int first, end, pieces;
  bool dense;
};

__device__ inline bool share_of(const specvlm_gpu_attention& p, const Tile& tile, const View& view, int piece,
                                Share& share) {
  const Cut cut = cut_of(p, tile.request);
  if (piece >= cut.pieces) return false;
  const int all = Groups(p, tile.request, view.most_upto).count();
  share = {smaller(piece * cut.groups, all), smaller((piece + 1) * cut.groups, all), cut.pieces,
           piece + 1 == cut.pieces};
  return true;
}

// The keys of a step of kKeys that one row sees, as bits. Paged: `groups` holds position, low and high of each group.
template <int kKeys>
__device__ uint64_t paged_bits(const int4* groups, int from, int upto) {
  uint64_t seen = 0;
#pragma unroll
  for (int q = 0; q < kKeys / kGroup; q++) {
    const int low = larger(groups[q].y, from) - groups[q].x, high = smaller(groups[q].z, upto) - groups[q].x;
    if (high > low) seen |= static_cast<uint64_t>(((1u << (high - low)) - 1) << low) << kGroup * q;
  }
  return seen;
}

// Dense: `first` is the first bit's number, a multiple of kKeys.
template <int kKeys>
__device__ uint64_t dense_bits(const uint64_t* ancestors, int first) {
  const uint64_t word = ancestors[first / 64] >> first % 64;
  return kKeys == 64 ? word : word & ((1ull << kKeys % 64) - 1);
}

// The least segment of kKeys dense rows, from `segment` on, of which some row of the tile sees any; 128 / kKeys if none.
template <int kKeys>
__device__ int next_segment(const View& view, int segment) {
  for (; segment < 128 / kKeys; segment++) {
    const int word = segment * (kKeys / 32);
    if (view.word(word) | (kKeys == 64 ? view.word(word + 1) : 0)) break;
  }
  return segment;
}

}  // namespace specvlm
