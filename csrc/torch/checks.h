// What the bindings of both devices check about tensors, and the schemas they share.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <initializer_list>
#include <string>

#include "../abi/tree_attention.h"

#define SPECVLM_TREE_ATTENTION_SCHEMA                                                                              \
  "tree_attention(Tensor(a!) out, Tensor query, Tensor key, Tensor value, Tensor kv_cache, Tensor block_table, "   \
  "Tensor(b!) dense_key, Tensor(c!) dense_value, Tensor requests, Tensor spans, Tensor visible_upto, "             \
  "Tensor dense_at, Tensor ancestors, float scale, str layout, bool fast, Tensor? visible_from=None, "             \
  "float soft_cap=0.0) -> ()"
#define SPECVLM_COMMIT_SCHEMA \
  "commit_rows(Tensor(a!)[] kv_caches, Tensor[] dense_keys, Tensor[] dense_values, Tensor slots) -> ()"
#define SPECVLM_WALK_SCHEMA                                                                                      \
  "walk_trees(Tensor tokens, Tensor parents, Tensor first_nodes, Tensor row_tokens, Tensor first_rows, "         \
  "Tensor linear_slots, Tensor(a!) emitted, Tensor(b!) path, Tensor(c!) counts, Tensor(d!) slots) -> ()"
#define SPECVLM_RACE_SCHEMA "race(Tensor probs, Tensor keys) -> Tensor"
#define SPECVLM_GROW_SCHEMA                                                                                  \
  "grow_level(Tensor budgets, Tensor proposed, Tensor log_probs, int level, Tensor(a!) counts, "             \
  "Tensor(b!) tokens, Tensor(c!) parents, Tensor(d!) scores, Tensor(e!) origins, Tensor(f!) frontier, "      \
  "Tensor(g!) parent_rows) -> ()"
#define SPECVLM_DESCRIBE_SCHEMA                                                                              \
  "describe_trees(Tensor counts, Tensor tokens, Tensor parents, int bits, Tensor(a!) codes, "                \
  "Tensor(b!) ancestors, Tensor(c!) depths) -> ()"
#define SPECVLM_WRAPPERS_SCHEMA                                                                      \
  "try_wrappers(Tensor left, Tensor right, Tensor exponents, Tensor(a!) plain, Tensor(b!) transposed, " \
  "Tensor(c!) zeroed, Tensor(d!) product, Tensor(e!) powers) -> ()"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); i++) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

// -1 stands for any size.
inline void check_shape(const Tensor& t, const char* name, std::initializer_list<int64_t> sizes) {
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

inline void check_kind(const Tensor& t, const char* name, ScalarType type, const char* type_name, const Tensor& query) {
  STD_TORCH_CHECK(t.is_cpu() == query.is_cpu() && t.get_device_index() == query.get_device_index(), "tree_attention: ",
                  name, " is not on the device of query; all tensors of a call must be.");
  STD_TORCH_CHECK(t.scalar_type() == type, "tree_attention: ", name, " must be ", type_name, ".");
}

inline void check_states(const Tensor& t, const char* name, const Tensor& query, std::initializer_list<int64_t> sizes) {
  check_kind(t, name, query.scalar_type(), "of the same dtype as query", query);
  check_shape(t, name, sizes);
  STD_TORCH_CHECK(t.numel() == 0 || t.stride(2) == 1, "tree_attention: the last dimension of ", name,
                  " must be contiguous, its stride is ", t.stride(2), ".");
}

inline void check_table(const Tensor& t, const char* name, ScalarType type, const char* type_name, const Tensor& query,
                 std::initializer_list<int64_t> sizes) {
  check_kind(t, name, type, type_name, query);
  check_shape(t, name, sizes);
  STD_TORCH_CHECK(t.is_contiguous(), "tree_attention: ", name, " must be contiguous.");
}

inline int dtype_of(const Tensor& query) {
  const ScalarType type = query.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "tree_attention: query must be float32, bfloat16 or float16.");
  return type == ScalarType::Float ? SPECVLM_FLOAT : type == ScalarType::Half ? SPECVLM_HALF : SPECVLM_BFLOAT16;
}

struct Sizes {
  int64_t tokens, query_heads, heads, head_size, page, listed;
  int dtype;
};

// Everything about the tensors of a call that is the same on both devices; `page_unit` is what pages are multiples of.
inline Sizes check_call(const Tensor& out, const Tensor& query, const Tensor& key, const Tensor& value,
                        const Tensor& kv_cache, const Tensor& block_table, const Tensor& dense_key,
                        const Tensor& dense_value, const Tensor& requests, const Tensor& spans,
                        const Tensor& visible_upto, const Tensor& dense_at, const Tensor& ancestors, double scale,
                        int64_t page_unit) {
  Sizes s;
  s.dtype = dtype_of(query);
  check_shape(query, "query", {-1, -1, -1});
  const int64_t T = s.tokens = query.size(0), query_heads = s.query_heads = query.size(1);
  const int64_t D = s.head_size = query.size(2);
  STD_TORCH_CHECK(D >= 32 && D <= 256 && D % 16 == 0, "tree_attention: head size ", D,
                  " is not a multiple of 16 in [32, 256].");
  check_states(query, "query", query, {T, query_heads, D});
  check_states(out, "out", query, {T, query_heads, D});
  check_states(key, "key", query, {T, -1, D});
  const int64_t heads = s.heads = key.size(1);
  STD_TORCH_CHECK(heads > 0 && query_heads > 0 && query_heads % heads == 0, "tree_attention: ", query_heads,
                  " query heads cannot share ", heads, " key heads evenly.");
  check_states(value, "value", query, {T, heads, D});
  check_kind(kv_cache, "kv_cache", query.scalar_type(), "of the same dtype as query", query);
  check_shape(kv_cache, "kv_cache", {-1, heads, -1, 2 * D});
  s.page = kv_cache.size(2);
  STD_TORCH_CHECK(s.page > 0 && s.page % page_unit == 0, "tree_attention: page size ", s.page,
                  " is not a multiple of ", page_unit, ".");
  check_states(dense_key, "dense_key", query, {-1, heads, D});
  check_states(dense_value, "dense_value", query, {dense_key.size(0), heads, D});
  check_kind(block_table, "block_table", ScalarType::Int, "int32", query);
  check_shape(block_table, "block_table", {-1, -1});
  STD_TORCH_CHECK(block_table.size(1) <= 1 || block_table.stride(1) == 1,
                  "tree_attention: the last dimension of block_table must be contiguous.");
  check_table(requests, "requests", ScalarType::Int, "int32", query, {-1, 6});
  check_table(spans, "spans", ScalarType::Int, "int32", query, {-1, 2});
  check_table(visible_upto, "visible_upto", ScalarType::Int, "int32", query, {-1});
  const int64_t listed = s.listed = visible_upto.size(0);
  check_table(dense_at, "dense_at", ScalarType::Int, "int32", query, {listed});
  check_table(ancestors, "ancestors", ScalarType::Long, "int64", query, {listed, 2});
  STD_TORCH_CHECK(std::isfinite(scale), "tree_attention: scale must be finite.");
  return s;
}

}  // namespace
