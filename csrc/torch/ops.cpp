// Defines the operators and registers those for CPU tensors, on torch's stable ABI only: one library for torch >= 2.10.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "../common/growth.h"
#include "../common/noise.h"
#include "../common/plan.h"
#include "../common/walk.h"
#include "checks.h"
#include "trees.h"

namespace {

// Keys per step of vLLM's online softmax for a decode row (docs/kernels.md, "Arithmetic on CPUs").
int64_t tile_of(const std::string& layout, int64_t head_size) {
  const int64_t rows = layout == "vec16" ? 16 : 8, unit = layout == "vec16" ? 16 : 32;
  const int64_t keys = (specvlm_cpu_half_l2() - 8 * rows * head_size) / (4 * rows);
  return std::max(keys / unit * unit, unit);
}

// New keys and values of tree rows go to the dense store before anything looks at it.
void store_rows(const Tensor& from, const Tensor& to, const specvlm::Plan& plan, const int32_t* dense_at) {
  const int64_t size = static_cast<int64_t>(from.element_size()), heads = from.size(1), width = from.size(2) * size;
  const char* const source = static_cast<const char*>(from.data_ptr());
  char* const target = static_cast<char*>(to.data_ptr());
  for (const specvlm_request& request : plan.requests)
    for (int64_t i = 0; i < request.tokens; i++) {
      const int64_t row = dense_at[request.first_listed + i];
      if (row < 0) continue;
      for (int64_t h = 0; h < heads; h++)
        std::memcpy(target + (row * to.stride(0) + h * to.stride(1)) * size,
                    source + ((request.first_token + i) * from.stride(0) + h * from.stride(1)) * size, width);
    }
}

// Scratch that a thread keeps between calls; it only grows.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }
  void* hold(int64_t bytes) {
    if (bytes > bytes_) {
      std::free(memory_);
      bytes_ = (bytes + 4095) / 4096 * 4096;
      memory_ = std::aligned_alloc(64, static_cast<size_t>(bytes_));
      if (!memory_) bytes_ = 0;
      STD_TORCH_CHECK(memory_, "tree_attention: no memory for ", bytes, " bytes of scratch.");
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  int64_t bytes_ = 0;
};

void run_items(const specvlm_cpu_variant& variant, const specvlm_tree_attention& p, int64_t items, int64_t threads) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(items, threads), 1, [&](int64_t, int64_t) {
    thread_local Scratch scratch;
    for (int64_t i = next++; i < items; i = next++)
      variant.attend(&p, p.items + i, scratch.hold(variant.scratch(&p, p.items + i)));
  });
}

void tree_attention(Tensor out, const Tensor query, const Tensor key, const Tensor value, const Tensor kv_cache,
                    const Tensor block_table, Tensor dense_key, Tensor dense_value, const Tensor requests,
                    const Tensor spans, const Tensor visible_upto, const Tensor dense_at, const Tensor ancestors,
                    double scale, std::string layout, bool fast, std::optional<Tensor> visible_from,
                    double soft_cap) {
  STD_TORCH_CHECK(query.is_cpu(), "tree_attention: query is not on the CPU; all tensors of a call must be.");
  const Sizes sizes = check_call(out, query, key, value, kv_cache, block_table, dense_key, dense_value, requests, spans,
                                 visible_upto, dense_at, ancestors, scale, 32);
  const auto [T, query_heads, heads, D, page, listed, dtype] = sizes;
  STD_TORCH_CHECK(kv_cache.is_contiguous(), "tree_attention: kv_cache must be contiguous.");
  STD_TORCH_CHECK(!visible_from && soft_cap == 0.0,
                  "tree_attention: visible_from and soft_cap exist on GPUs only; leave them out on the CPU.");
  STD_TORCH_CHECK(layout == "vec" || layout == "vec16" || layout == "amx", "tree_attention: layout '", layout,
                  "' is none of vec, vec16 and amx.");
  STD_TORCH_CHECK(layout != "amx" || dtype == SPECVLM_BFLOAT16, "tree_attention: layout amx holds bfloat16 only.");

  const auto ints = [](const Tensor& t) { return static_cast<const int32_t*>(t.data_ptr()); };
  const uint64_t* const masks = static_cast<const uint64_t*>(ancestors.data_ptr());
  specvlm::Plan plan;
  const std::string wrong = specvlm::plan_requests(
      {ints(block_table), block_table.size(0), block_table.size(1), block_table.stride(0), ints(requests),
       requests.size(0), ints(spans), spans.size(0), ints(visible_upto), ints(dense_at), masks, listed, T,
       kv_cache.size(0), page, dense_key.size(0)},
      plan);
  STD_TORCH_CHECK(wrong.empty(), "tree_attention: ", wrong, ".");
  if (listed == 0) return;

  store_rows(key, dense_key, plan, ints(dense_at));
  store_rows(value, dense_value, plan, ints(dense_at));

  const specvlm_cpu_variant& variant = *specvlm_cpu_current();
  const int64_t threads = torch::stable::get_num_threads(), tile = tile_of(layout, D);
  specvlm::plan_items(heads, query_heads / heads, tile, variant.rows_at_once, threads, plan);
  specvlm_tree_attention p{};
  p.dtype = dtype;
  p.layout = layout == "amx" ? SPECVLM_PAIRS : SPECVLM_PLANES;
  p.arithmetic = specvlm_cpu_arithmetic();
  p.fast = fast;
  p.query_heads = query_heads;
  p.heads = heads;
  p.head_size = D;
  p.page = page;
  p.tile = tile;
  p.scale = static_cast<float>(scale);
  p.query = query.data_ptr();
  p.out = out.data_ptr();
  p.cache = kv_cache.data_ptr();
  p.dense_key = dense_key.data_ptr();
  p.dense_value = dense_value.data_ptr();
  p.query_token_stride = query.stride(0);
  p.query_head_stride = query.stride(1);
  p.out_token_stride = out.stride(0);
  p.out_head_stride = out.stride(1);
  p.dense_key_row_stride = dense_key.stride(0);
  p.dense_key_head_stride = dense_key.stride(1);
  p.dense_value_row_stride = dense_value.stride(0);
  p.dense_value_head_stride = dense_value.stride(1);
  p.requests = plan.requests.data();
  p.stretches = plan.stretches.data();
  p.items = plan.items.data();
  p.paged_keys = plan.paged_keys.data();
  p.ancestors = masks;
  run_items(variant, p, static_cast<int64_t>(plan.items.size()), threads);
}

void walk_trees(const Tensor tokens, const Tensor parents, const Tensor first_nodes, const Tensor row_tokens,
                const Tensor first_rows, const Tensor linear_slots, Tensor emitted, Tensor path, Tensor counts,
                Tensor slots) {
  const specvlm_walk p = check_walk(tokens, parents, first_nodes, row_tokens, first_rows, linear_slots, emitted, path,
                                    counts, slots);
  for (int32_t t = 0; t < p.trees; t++) {
    const int64_t first = p.first_nodes[t], nodes = p.first_nodes[t + 1] - first;
    STD_TORCH_CHECK(first >= 0 && nodes >= 0 && first + nodes <= p.nodes, "walk_trees: nodes [", first, ", ",
                    first + nodes, ") of tree ", t, " lie outside the ", p.nodes, " given.");
    STD_TORCH_CHECK(p.first_rows[t] >= 0 && p.first_rows[t] + nodes < row_tokens.size(0), "walk_trees: rows [",
                    p.first_rows[t], ", ", p.first_rows[t] + nodes, "] of tree ", t, " lie outside the ",
                    row_tokens.size(0), " given.");
  }
  for (int32_t t = 0; t < p.trees; t++) specvlm::walk_tree(p, t);
}

Tensor race(const Tensor probs, const Tensor keys) {
  Tensor winners = torch::stable::new_empty(keys, {keys.dim() == 1 ? keys.size(0) : 0}, ScalarType::Long);
  const specvlm_race p = check_race(probs, keys, winners);
  const specvlm_cpu_variant& variant = *specvlm_cpu_current();
  torch::stable::parallel_for(0, p.rows, 1, [&](int64_t begin, int64_t end) { variant.race(&p, begin, end); });
  return winners;
}

struct Alone {  // a team of one
  int index() const { return 0; }
  int size() const { return 1; }
  void sync() const {}
};

void grow_level(const Tensor budgets, const Tensor proposed, const Tensor log_probs, int64_t level, Tensor counts,
                Tensor tokens, Tensor parents, Tensor scores, Tensor origins, Tensor frontier, Tensor parent_rows) {
  const specvlm_growth p = check_growth(budgets, proposed, log_probs, level, counts, tokens, parents, scores, origins,
                                        frontier, parent_rows);
  for (int32_t r = 0; r < p.requests; r++)
    STD_TORCH_CHECK(p.counts[r] >= 0 && p.counts[r] <= p.capacity, "grow_level: counts[", r, "] is ", p.counts[r],
                    ", but trees hold ", p.capacity, " nodes.");
  Scratch scratch;
  void* const memory = scratch.hold(std::max<int64_t>(specvlm::Candidates::bytes(p), 64));
  for (int32_t r = 0; r < p.requests; r++) specvlm::grow_level(p, r, memory, Alone());
}

void describe_trees(const Tensor counts, const Tensor tokens, const Tensor parents, int64_t bits, Tensor codes,
                    Tensor ancestors, Tensor depths) {
  const specvlm_tree_tables p = check_tables(counts, tokens, parents, bits, codes, ancestors, depths);
  for (int32_t r = 0; r < p.requests; r++)
    for (int32_t i = 0; i < p.capacity; i++) specvlm::describe_node(p, r, i);
}

}  // namespace

STABLE_TORCH_LIBRARY(vllm_specvlm, m) {
  m.def(SPECVLM_TREE_ATTENTION_SCHEMA);
  m.def(SPECVLM_COMMIT_SCHEMA);
  m.def(SPECVLM_WALK_SCHEMA);
  m.def(SPECVLM_RACE_SCHEMA);
  m.def(SPECVLM_GROW_SCHEMA);
  m.def(SPECVLM_DESCRIBE_SCHEMA);
  m.def(SPECVLM_WRAPPERS_SCHEMA);
}

STABLE_TORCH_LIBRARY_IMPL(vllm_specvlm, CPU, m) {
  m.impl("tree_attention", TORCH_BOX(&tree_attention));
  m.impl("walk_trees", TORCH_BOX(&walk_trees));
  m.impl("race", TORCH_BOX(&race));
  m.impl("grow_level", TORCH_BOX(&grow_level));
  m.impl("describe_trees", TORCH_BOX(&describe_trees));
}
