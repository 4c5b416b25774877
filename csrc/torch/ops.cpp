// Registers vllm_specvlm::tree_attention for CPU tensors, on torch's stable ABI only: one library for torch >= 2.10.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../abi/tree_attention.h"
#include "../common/plan.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::string shape(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); i++) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

// -1 stands for any size.
void check_shape(const Tensor& t, const char* name, std::initializer_list<int64_t> sizes) {
  bool fits = t.dim() == static_cast<int64_t>(sizes.size());
  std::string wanted = "[";
  int64_t i = 0;
  for (int64_t size : sizes) {
    wanted += (i ? ", " : "") + (size < 0 ? std::string("any") : std::to_string(size));
    fits = fits && (size < 0 || t.size(i) == size);
    i++;
  }
  STD_TORCH_CHECK(fits, "tree_attention: ", name, " has shape ", shape(t), ", but ", wanted, "] is needed.");
}

void check_kind(const Tensor& t, const char* name, ScalarType type, const char* type_name) {
  STD_TORCH_CHECK(t.is_cpu(), "tree_attention: ", name, " is not on the CPU; all tensors of a call must be.");
  STD_TORCH_CHECK(t.scalar_type() == type, "tree_attention: ", name, " must be ", type_name, ".");
}

void check_states(const Tensor& t, const char* name, const Tensor& query, std::initializer_list<int64_t> sizes) {
  check_kind(t, name, query.scalar_type(), "of the same dtype as query");
  check_shape(t, name, sizes);
  STD_TORCH_CHECK(t.numel() == 0 || t.stride(2) == 1, "tree_attention: the last dimension of ", name,
                  " must be contiguous, its stride is ", t.stride(2), ".");
}

void check_table(const Tensor& t, const char* name, ScalarType type, const char* type_name,
                 std::initializer_list<int64_t> sizes) {
  check_kind(t, name, type, type_name);
  check_shape(t, name, sizes);
  STD_TORCH_CHECK(t.is_contiguous(), "tree_attention: ", name, " must be contiguous.");
}

int dtype_of(const Tensor& query) {
  const ScalarType type = query.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "tree_attention: query must be float32, bfloat16 or float16.");
  return type == ScalarType::Float ? SPECVLM_FLOAT : type == ScalarType::Half ? SPECVLM_HALF : SPECVLM_BFLOAT16;
}

// Keys per step of vLLM's online softmax for a decode row (docs/kernels.md, "Arithmetic").
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
                    double scale, std::string layout, bool fast) {
  STD_TORCH_CHECK(query.is_cpu(), "tree_attention: query is not on the CPU; all tensors of a call must be.");
  const int dtype = dtype_of(query);
  check_shape(query, "query", {-1, -1, -1});
  const int64_t T = query.size(0), query_heads = query.size(1), D = query.size(2);
  STD_TORCH_CHECK(D >= 32 && D <= 256 && D % 16 == 0, "tree_attention: head size ", D,
                  " is not a multiple of 16 in [32, 256].");
  check_states(query, "query", query, {T, query_heads, D});
  check_states(out, "out", query, {T, query_heads, D});
  check_states(key, "key", query, {T, -1, D});
  const int64_t heads = key.size(1);
  STD_TORCH_CHECK(heads > 0 && query_heads > 0 && query_heads % heads == 0, "tree_attention: ", query_heads,
                  " query heads cannot share ", heads, " key heads evenly.");
  check_states(value, "value", query, {T, heads, D});
  check_kind(kv_cache, "kv_cache", query.scalar_type(), "of the same dtype as query");
  check_shape(kv_cache, "kv_cache", {-1, heads, -1, 2 * D});
  STD_TORCH_CHECK(kv_cache.is_contiguous(), "tree_attention: kv_cache must be contiguous.");
  const int64_t page = kv_cache.size(2);
  STD_TORCH_CHECK(page > 0 && page % 32 == 0, "tree_attention: page size ", page, " is not a multiple of 32.");
  check_states(dense_key, "dense_key", query, {-1, heads, D});
  check_states(dense_value, "dense_value", query, {dense_key.size(0), heads, D});
  check_kind(block_table, "block_table", ScalarType::Int, "int32");
  check_shape(block_table, "block_table", {-1, -1});
  STD_TORCH_CHECK(block_table.size(1) <= 1 || block_table.stride(1) == 1,
                  "tree_attention: the last dimension of block_table must be contiguous.");
  check_table(requests, "requests", ScalarType::Int, "int32", {-1, 6});
  check_table(spans, "spans", ScalarType::Int, "int32", {-1, 2});
  check_table(visible_upto, "visible_upto", ScalarType::Int, "int32", {-1});
  const int64_t listed = visible_upto.size(0);
  check_table(dense_at, "dense_at", ScalarType::Int, "int32", {listed});
  check_table(ancestors, "ancestors", ScalarType::Long, "int64", {listed, 2});
  STD_TORCH_CHECK(std::isfinite(scale), "tree_attention: scale must be finite.");
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

}  // namespace

STABLE_TORCH_LIBRARY(vllm_specvlm, m) {
  m.def(
      "tree_attention(Tensor(a!) out, Tensor query, Tensor key, Tensor value, Tensor kv_cache, Tensor block_table, "
      "Tensor(b!) dense_key, Tensor(c!) dense_value, Tensor requests, Tensor spans, Tensor visible_upto, "
      "Tensor dense_at, Tensor ancestors, float scale, str layout, bool fast) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(vllm_specvlm, CPU, m) { m.impl("tree_attention", TORCH_BOX(&tree_attention)); }
