#include "plan.h"

#include <algorithm>

namespace specvlm {

namespace {

// Logits of an item may take this much of the second-level cache; more rows than this gain nothing.
constexpr int64_t kLogitBytes = 384 * 1024, kMostRows = 120;

std::string in_request(int64_t r, const std::string& what) { return "request " + std::to_string(r) + ": " + what; }

// The visible paged keys below `most` as stretches; checks the spans and the pages they lie in.
std::string plan_spans(const Tables& t, int64_t r, const int32_t* entry, int64_t most, Plan& plan) {
  const int64_t block_row = entry[2], first = entry[4], count = entry[5];
  if (first < 0 || count < 0 || first + count > t.span_count)
    return in_request(r, "spans [" + std::to_string(first) + ", " + std::to_string(first + count) +
                             ") lie outside the " + std::to_string(t.span_count) + " spans given");
  if (count && (block_row < 0 || block_row >= t.block_rows))
    return in_request(r, "block_table has no row " + std::to_string(block_row));
  int64_t index = 0, end_before = 0;
  for (int64_t s = first; s < first + count; s++) {
    const int64_t start = t.spans[2 * s], end = t.spans[2 * s + 1];
    if (start < end_before || end < start)
      return in_request(r, "spans must ascend and be disjoint, span [" + std::to_string(start) + ", " +
                               std::to_string(end) + ") is not after " + std::to_string(end_before));
    end_before = end;
    const int64_t length = std::min(end, most) - start;
    if (length <= 0) continue;
    if (start + length > t.block_columns * t.page)
      return in_request(r, "position " + std::to_string(start + length - 1) + " lies past the " +
                               std::to_string(t.block_columns) + " pages of its block_table row");
    const int32_t* const blocks = t.block_table + block_row * t.block_stride;
    for (int64_t page = start / t.page; page <= (start + length - 1) / t.page; page++)
      if (blocks[page] < 0 || blocks[page] >= t.blocks)
        return in_request(r, "block_table names block " + std::to_string(blocks[page]) + " of " +
                                 std::to_string(t.blocks));
    plan.stretches.push_back({index, start, length});
    index += length;
  }
  return "";
}

// How many visible paged keys lie below `upto`.
int32_t count_below(const Plan& plan, const specvlm_request& request, int64_t upto) {
  int64_t count = 0;
  for (int64_t s = request.first_stretch; s < request.first_stretch + request.stretches; s++) {
    const specvlm_stretch& stretch = plan.stretches[s];
    if (upto <= stretch.position) break;
    count = stretch.index + std::min(upto - stretch.position, stretch.length);
  }
  return static_cast<int32_t>(count);
}

std::string check_dense(const Tables& t, int64_t r, int64_t dense_start, int64_t i) {
  if (t.dense_at[i] < -1 || t.dense_at[i] >= t.dense_rows)
    return in_request(r, "dense_at " + std::to_string(t.dense_at[i]) + " lies outside the " +
                             std::to_string(t.dense_rows) + " rows of dense_key");
  const uint64_t low = t.ancestors[2 * i], high = t.ancestors[2 * i + 1];
  if (!(low | high)) return "";
  const int64_t last = dense_start + (high ? 127 - __builtin_clzll(high) : 63 - __builtin_clzll(low));
  if (dense_start < 0 || last >= t.dense_rows)
    return in_request(r, "ancestors reach dense row " + std::to_string(dense_start < 0 ? dense_start : last) +
                             ", outside the " + std::to_string(t.dense_rows) + " rows of dense_key");
  return "";
}

}  // namespace

std::string plan_requests(const Tables& t, Plan& plan) {
  plan.paged_keys.resize(t.listed);
  int64_t listed = 0;
  for (int64_t r = 0; r < t.request_count; r++) {
    const int32_t* const entry = t.requests + 6 * r;
    const int64_t first = entry[0], rows = entry[1];
    if (first < 0 || rows < 0 || first + rows > t.tokens)
      return in_request(r, "rows [" + std::to_string(first) + ", " + std::to_string(first + rows) +
                               ") lie outside the " + std::to_string(t.tokens) + " tokens of query");
    if (listed + rows > t.listed) break;
    int64_t most = 0;
    for (int64_t i = listed; i < listed + rows; i++) most = std::max<int64_t>(most, t.visible_upto[i]);
    const int64_t first_stretch = static_cast<int64_t>(plan.stretches.size());
    std::string wrong = plan_spans(t, r, entry, most, plan);
    if (!wrong.empty()) return wrong;
    // An empty request may name a block_table row that does not exist: nothing of it is read.
    const bool empty = plan.stretches.size() == static_cast<size_t>(first_stretch);
    const int32_t* const blocks = empty ? nullptr : t.block_table + entry[2] * t.block_stride;
    plan.requests.push_back({first, rows, listed, blocks, entry[3], first_stretch,
                             static_cast<int64_t>(plan.stretches.size()) - first_stretch});
    for (int64_t i = listed; i < listed + rows; i++) {
      wrong = check_dense(t, r, entry[3], i);
      if (!wrong.empty()) return wrong;
      plan.paged_keys[i] = count_below(plan, plan.requests.back(), t.visible_upto[i]);
    }
    listed += rows;
  }
  int64_t asked = 0;
  for (int64_t r = 0; r < t.request_count; r++) asked += std::max(0, t.requests[6 * r + 1]);
  if (asked != t.listed)
    return "requests list " + std::to_string(asked) + " rows but visible_upto has " + std::to_string(t.listed);
  return "";
}

void plan_items(int64_t heads, int64_t group, int64_t tile, int64_t rows_at_once, int64_t threads, Plan& plan) {
  int64_t all_rows = 0;
  for (const specvlm_request& request : plan.requests) all_rows += request.tokens * group * heads;
  const auto up = [&](int64_t rows) { return (rows + rows_at_once - 1) / rows_at_once * rows_at_once; };
  // Four items a thread even out what they cost, but fewer rows than two register blocks cost more in unpacking pages.
  const int64_t fair = std::max(up(all_rows / (4 * threads)), 2 * rows_at_once);
  for (size_t r = 0; r < plan.requests.size(); r++) {
    const specvlm_request& request = plan.requests[r];
    int64_t keys = 0;
    for (int64_t i = 0; i < request.tokens; i++)
      keys = std::max<int64_t>(keys, plan.paged_keys[request.first_listed + i]);
    const int64_t row_bytes = (std::min(keys, tile) + 160) * static_cast<int64_t>(sizeof(float));
    const int64_t fitting = std::max(kLogitBytes / row_bytes / rows_at_once * rows_at_once, 2 * rows_at_once);
    const int64_t rows = request.tokens * group, most = std::min({fitting, fair, kMostRows});
    const int64_t pieces = (rows + most - 1) / most;
    for (int64_t piece = pieces - 1; piece >= 0; piece--)
      for (int64_t head = 0; head < heads; head++) {
        const int64_t begin = std::min(up(rows * piece / pieces), rows);
        const int64_t end = piece + 1 == pieces ? rows : std::min(up(rows * (piece + 1) / pieces), rows);
        if (begin < end) plan.items.push_back({static_cast<int64_t>(r), head, begin, end});
      }
  }
}

}  // namespace specvlm
