// Random calls of the attention kernels beside sums in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>
#include <vector>

#include "states.h"

namespace {

struct Plan {  // the tables of a call, and which keys each listed row sees
  std::vector<int32_t> blocks, requests, spans, upto, dense_at;
  std::vector<uint64_t> ancestors;
  int64_t columns = 0, block_count = 0, rows = 0;
};

Plan random_plan(int64_t requests, int64_t page) {
  Plan plan;
  std::vector<int64_t> ends;
  for (int64_t r = 0; r < requests; r++) {
    const int64_t nodes = r == 1 ? 0 : pick(1, 24), context = r == 0 ? pick(300, 400) : pick(0, 120), first = plan.rows;
    const int64_t first_span = static_cast<int64_t>(plan.spans.size()) / 2;
    int64_t start = 0;
    for (int64_t s = pick(1, 3); s > 0 && start < context; s--) {
      const int64_t end = s == 1 ? context : pick(start, context) + 1;
      for (int64_t empty = pick(0, 2); empty > 0; empty--)  // an empty span, before and between others
        plan.spans.insert(plan.spans.end(), 2, static_cast<int32_t>(start));
      plan.spans.insert(plan.spans.end(), {static_cast<int32_t>(start), static_cast<int32_t>(end)});
      start = end + pick(0, 40);
    }
    const int64_t spans = static_cast<int64_t>(plan.spans.size()) / 2 - first_span;
    ends.push_back(context);
    for (int64_t v : {first, nodes, r, r * 128 + 1, first_span, spans}) plan.requests.push_back(static_cast<int32_t>(v));
    const bool chunk = r % 3 == 2;  // rows that see more and more of the pages, and no tree
    const int64_t shift = pick(0, 100);
    for (int64_t i = 0; i < nodes; i++) {
      plan.upto.push_back(static_cast<int32_t>(chunk ? context - nodes + i + 1 : context));
      plan.dense_at.push_back(chunk ? -1 : static_cast<int32_t>(r * 128 + 1 + i + shift));
      const size_t parent = 2 * static_cast<size_t>(first + pick(0, i + 1));
      uint64_t words[2] = {0, 0};
      if (!chunk) {
        for (size_t w = 0; w < 2 && i > 0 && parent < plan.ancestors.size(); w++) words[w] = plan.ancestors[parent + w];
        words[(i + shift) / 64] |= 1ull << (i + shift) % 64;
      }
      plan.ancestors.insert(plan.ancestors.end(), {words[0], words[1]});
    }
    plan.rows += nodes;
  }
  for (int64_t end : ends) plan.columns = std::max(plan.columns, (end + page - 1) / page);
  plan.columns = std::max<int64_t>(plan.columns, 1);
  plan.block_count = requests * plan.columns;
  plan.blocks.resize(plan.block_count);
  for (int64_t i = 0; i < plan.block_count; i++) plan.blocks[i] = static_cast<int32_t>(i);
  std::shuffle(plan.blocks.begin(), plan.blocks.end(), rng);
  return plan;
}

double error_of_row(const Plan& plan, const States& query, const States& cache, const States& key, const States& value,
                    const States& out, const int32_t* request, int64_t row, int64_t head, int64_t group, int64_t page,
                    double scale) {
  const int64_t D = query.D, kv = head / group;
  std::vector<double> logits, sums(D);
  std::vector<std::pair<bool, int64_t>> keys;  // paged: position in the cache's rows; else row of `key`
  for (int64_t s = request[4]; s < request[4] + request[5]; s++)
    for (int64_t at = plan.spans[2 * s]; at < std::min(plan.spans[2 * s + 1], plan.upto[row]); at++)
      keys.emplace_back(true, plan.blocks[request[2] * plan.columns + at / page] * page + at % page);
  for (int64_t other = request[0]; other < request[0] + request[1]; other++) {
    const int64_t bit = plan.dense_at[other] - request[3];
    if (plan.dense_at[other] >= 0 && plan.ancestors[2 * row + bit / 64] >> bit % 64 & 1) keys.emplace_back(false, other);
  }
  double top = -INFINITY, total = 0;
  for (const auto& [paged, at] : keys) {
    double x = 0;
    for (int64_t d = 0; d < D; d++) x += query.get(row, head, d) * (paged ? cache.get(at, kv, d) : key.get(at, kv, d));
    logits.push_back(x * scale);
    top = std::max(top, logits.back());
  }
  for (size_t k = 0; k < keys.size(); k++) {
    const double weight = std::exp(logits[k] - top);
    total += weight;
    for (int64_t d = 0; d < D; d++)
      sums[d] += weight * (keys[k].first ? cache.get(keys[k].second, kv, D + d) : value.get(keys[k].second, kv, d));
  }
  double worst = 0;
  for (int64_t d = 0; d < D; d++) {
    const double wanted = total > 0 ? sums[d] / total : 0;
    const double error = std::fabs(out.get(row, head, d) - wanted) / std::max(1.0, std::fabs(wanted));
    worst = error < 1e9 ? std::max(worst, error) : 1e9;  // NaN too
  }
  return worst;
}

double call(const Number& number, int64_t D) {
  const int64_t heads = pick(1, 3), group = pick(1, 5), page = 16 * pick(1, 4), splits = pick(1, 5);
  const Plan plan = random_plan(pick(1, 4), page);
  const int64_t rows = plan.rows, requests = static_cast<int64_t>(plan.requests.size()) / 6;
  const States query(number, rows, heads * group, D), out(number, rows, heads * group, D);
  const States key(number, rows, heads, D), value(number, rows, heads, D);
  const States dense_key(number, requests * 128 + 1, heads, D), dense_value(number, requests * 128 + 1, heads, D);
  const States cache(number, plan.block_count * page, heads, 2 * D);  // [blocks, page, heads, 2 D]
  for (int64_t i = 0; i < rows; i++) query.fill(i), key.fill(i), value.fill(i);
  for (int64_t r = 0; r < requests; r++)  // what no span names stays NaN
    for (int64_t s = plan.requests[6 * r + 4]; s < plan.requests[6 * r + 4] + plan.requests[6 * r + 5]; s++)
      for (int64_t at = plan.spans[2 * s]; at < plan.spans[2 * s + 1]; at++)
        cache.fill(plan.blocks[r * plan.columns + at / page] * page + at % page);
  const Buffer<int32_t> blocks(plan.blocks), table(plan.requests), spans(plan.spans), upto(plan.upto);
  const Buffer<int32_t> dense_at(plan.dense_at);
  const Buffer<uint64_t> ancestors(plan.ancestors);
  const Buffer<float> partial_out(splits * rows * heads * group * D), partial_weight(splits * rows * heads * group);
  specvlm_gpu_attention p{};
  p.dtype = number.dtype, p.query_heads = static_cast<int32_t>(heads * group), p.heads = static_cast<int32_t>(heads);
  p.head_size = static_cast<int32_t>(D), p.page = static_cast<int32_t>(page);
  p.requests = static_cast<int32_t>(requests);
  p.listed = static_cast<int32_t>(rows), p.block_columns = static_cast<int32_t>(plan.columns);
  p.splits = static_cast<int32_t>(splits), p.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(D)));
  p.query = query.bytes.get(), p.out = out.bytes.get(), p.new_key = key.bytes.get(), p.new_value = value.bytes.get();
  p.cache_key = cache.bytes.get(), p.cache_value = cache.bytes.get() + D * number.size();
  p.dense_key = dense_key.bytes.get(), p.dense_value = dense_value.bytes.get();
  p.query_token_stride = p.out_token_stride = heads * group * D, p.query_head_stride = p.out_head_stride = D;
  p.new_key_token_stride = p.new_value_token_stride = p.dense_key_row_stride = p.dense_value_row_stride = heads * D;
  p.new_key_head_stride = p.new_value_head_stride = p.dense_key_head_stride = p.dense_value_head_stride = D;
  p.cache_slot_stride = heads * 2 * D, p.cache_block_stride = page * heads * 2 * D, p.cache_head_stride = 2 * D;
  p.table_stride = plan.columns, p.block_table = blocks.get(), p.request_table = table.get(), p.spans = spans.get();
  p.visible_upto = upto.get(), p.dense_at = dense_at.get(), p.ancestors = ancestors.get();
  p.partial_out = partial_out.get(), p.partial_weight = partial_weight.get();
  if (const int error = specvlm_gpu_attend(&p, nullptr)) return std::printf("error %d\n", error), 1e9;
  double worst = 0;
  for (int64_t r = 0; r < requests; r++) {
    const int32_t* const request = plan.requests.data() + 6 * r;
    for (int64_t row = request[0]; row < request[0] + request[1]; row++)
      for (int64_t head = 0; head < heads * group; head++)
        worst = std::max(
            worst, error_of_row(plan, query, cache, key, value, out, request, row, head, group, page, p.scale));
  }
  return worst;
}

}  // namespace
