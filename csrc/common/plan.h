// From the op's request tables to work items: checks every index once, before any kernel follows it.
#pragma once

#include <stdint.h>

#include <string>
#include <vector>

#include "../abi/tree_attention.h"

namespace specvlm {

// The integer tensors of the op and the sizes their entries are checked against.
struct Tables {
  const int32_t* block_table;   // [block_rows, block_columns], rows block_stride apart
  int64_t block_rows, block_columns, block_stride;
  const int32_t* requests;      // [request_count, 6]
  int64_t request_count;
  const int32_t* spans;         // [span_count, 2]
  int64_t span_count;
  const int32_t* visible_upto;  // [listed]
  const int32_t* dense_at;      // [listed]
  const uint64_t* ancestors;    // [listed, 2]
  int64_t listed;
  int64_t tokens, blocks, page, dense_rows;
};

struct Plan {
  std::vector<specvlm_request> requests;
  std::vector<specvlm_stretch> stretches;
  std::vector<specvlm_item> items;
  std::vector<int32_t> paged_keys;
};

// Fills requests, stretches and paged_keys. Returns "" or one sentence that says what is wrong.
std::string plan_requests(const Tables& tables, Plan& plan);

// Cuts the rows of every request and key/value head into items: enough for `threads`, and each small enough that its
// logits stay in the second-level cache. Heavy items come first.
void plan_items(int64_t heads, int64_t group, int64_t tile, int64_t rows_at_once, int64_t threads, Plan& plan);

}  // namespace specvlm
