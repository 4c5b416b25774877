// What one work item needs: its row blocks, and its buffers cut out of scratch memory.
#pragma once

#include "blocks.h"
#include "cache.h"
#include "softmax.h"

namespace {

// A row of the item: its softmax so far, and what the tables say about its token.
struct Row {
  RowState state;
  int64_t token, listed, query_head, paged, dense;
};

// Row blocks of nearly equal size, none above kRows.
struct RowBlocks {
  int64_t rows, count;
  explicit RowBlocks(int64_t n) : rows(n), count((n + kRows - 1) / kRows) {}
  int64_t begin(int64_t i) const { return i * rows / count; }
  int64_t size(int64_t i) const { return begin(i + 1) - begin(i); }
};

template <class T>
struct Workspace {
  int64_t rows, paged = 0, logit_stride, dense_stride, bytes;
  float *query, *sums, *logits, *dense_logits;
  T* tile;
  Row* row;
  int64_t* bound;  // one a row block: how many keys of the tile some row (products) or every row (sums) sees

  Workspace(const specvlm_tree_attention& p, const specvlm_item& item, int64_t dense, void* scratch) {
    const int64_t group = p.query_heads / p.heads;
    for (int64_t token = item.first_row / group; token <= (item.last_row - 1) / group; token++)
      paged = larger(paged, p.paged_keys[p.requests[item.request].first_listed + token]);
    rows = item.last_row - item.first_row;
    // Products write whole lanes, up to 15 columns too many. An odd multiple of 16 floats keeps the rows of a block
    // apart in the first-level cache.
    logit_stride = (round_up(smaller(p.tile, paged + dense), 16) + 16) | 16;
    dense_stride = round_up(dense, 16);
    char* next = (char*)scratch;
    query = take<float>(next, rows * p.head_size);
    sums = take<float>(next, rows * p.head_size);
    tile = take<T>(next, kRun * p.head_size);
    logits = take<float>(next, rows * logit_stride);
    dense_logits = take<float>(next, rows * dense_stride);
    row = take<Row>(next, rows);
    bound = take<int64_t>(next, RowBlocks(rows).count);
    bytes = next - (char*)scratch;
  }

  void fill_rows(const specvlm_tree_attention& p, const specvlm_item& item) const {
    const int64_t group = p.query_heads / p.heads;
    const specvlm_request& request = p.requests[item.request];
    int64_t token = item.first_row / group, head = item.first_row % group;
    for (int64_t r = 0; r < rows; r++) {
      const int64_t listed = request.first_listed + token;
      const uint64_t* mask = p.ancestors + 2 * listed;
      row[r] = {RowState(), request.first_token + token, listed, item.head * group + head, p.paged_keys[listed],
                __builtin_popcountll(mask[0]) + __builtin_popcountll(mask[1])};
      if (++head == group) head = 0, token++;
    }
  }

 private:
  template <class U>
  static U* take(char*& next, int64_t count) {
    U* const at = (U*)next;
    next += round_up(count * (int64_t)sizeof(U), 64);
    return at;
  }
};

}  // namespace
