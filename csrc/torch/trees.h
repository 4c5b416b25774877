// What the bindings of both devices check about trees that are grown or walked and races that are run.
#pragma once

#include "../abi/acceptance.h"
#include "../abi/growth.h"
#include "checks.h"

namespace {

inline void check_list(const Tensor& t, const char* operation, const char* name, ScalarType type,
                       std::initializer_list<int64_t> sizes, const Tensor& like) {
  bool fits = t.scalar_type() == type && t.is_contiguous() && t.dim() == static_cast<int64_t>(sizes.size()) &&
              t.is_cpu() == like.is_cpu() && t.get_device_index() == like.get_device_index();
  std::string wanted;
  int64_t i = 0;
  for (int64_t size : sizes) {
    wanted += (i ? ", " : "") + (size < 0 ? std::string("any") : std::to_string(size));
    fits = fits && (size < 0 || t.size(i) == size);
    i++;
  }
  const char* const type_name = type == ScalarType::Int     ? "int32"
                                : type == ScalarType::Long  ? "int64"
                                : type == ScalarType::Float ? "float32"
                                                            : "float64";
  STD_TORCH_CHECK(fits, operation, ": ", name, " must be ", type_name, " [", wanted,
                  "], contiguous and on the device of the others.");
}

inline specvlm_walk check_walk(const Tensor& tokens, const Tensor& parents, const Tensor& first_nodes,
                               const Tensor& row_tokens, const Tensor& first_rows, const Tensor& linear_slots,
                               const Tensor& emitted, const Tensor& path, const Tensor& counts, const Tensor& slots) {
  constexpr const char* kName = "walk_trees";
  check_list(tokens, kName, "tokens", ScalarType::Long, {-1}, tokens);
  check_list(first_rows, kName, "first_rows", ScalarType::Int, {-1}, tokens);
  check_list(linear_slots, kName, "linear_slots", ScalarType::Long, {-1, -1}, tokens);
  check_list(path, kName, "path", ScalarType::Int, {-1, -1}, tokens);
  const int64_t nodes = tokens.size(0), trees = first_rows.size(0), groups = linear_slots.size(0), most = path.size(1);
  check_list(parents, kName, "parents", ScalarType::Int, {nodes}, tokens);
  check_list(first_nodes, kName, "first_nodes", ScalarType::Int, {trees + 1}, tokens);
  check_list(row_tokens, kName, "row_tokens", ScalarType::Long, {-1}, tokens);
  check_list(linear_slots, kName, "linear_slots", ScalarType::Long, {groups, nodes}, tokens);
  check_list(emitted, kName, "emitted", ScalarType::Long, {trees, most + 1}, tokens);
  check_list(path, kName, "path", ScalarType::Int, {trees, most}, tokens);
  check_list(counts, kName, "counts", ScalarType::Int, {trees}, tokens);
  check_list(slots, kName, "slots", ScalarType::Long, {groups, nodes}, tokens);
  const auto ints = [](const Tensor& t) { return static_cast<int32_t*>(t.data_ptr()); };
  const auto longs = [](const Tensor& t) { return static_cast<int64_t*>(t.data_ptr()); };
  return {static_cast<int32_t>(trees), static_cast<int32_t>(nodes), static_cast<int32_t>(groups),
          static_cast<int32_t>(most), longs(tokens), ints(parents), ints(first_nodes), longs(row_tokens),
          ints(first_rows), longs(linear_slots), longs(emitted), ints(path), ints(counts), longs(slots)};
}

inline specvlm_race check_race(const Tensor& probs, const Tensor& keys, const Tensor& winners) {
  STD_TORCH_CHECK(probs.scalar_type() == ScalarType::Float && probs.dim() == 2 &&
                      (probs.numel() == 0 || probs.stride(1) == 1),
                  "race: probs must be float32 [rows, vocabulary] with contiguous rows.");
  check_list(keys, "race", "keys", ScalarType::Long, {probs.size(0)}, probs);
  return {static_cast<int32_t>(probs.size(0)), static_cast<int32_t>(probs.size(1)),
          static_cast<const float*>(probs.data_ptr()), probs.stride(0), static_cast<const int64_t*>(keys.data_ptr()),
          static_cast<int64_t*>(winners.data_ptr())};
}

inline specvlm_growth check_growth(const Tensor& budgets, const Tensor& proposed, const Tensor& log_probs, int64_t level,
                                   const Tensor& counts, const Tensor& tokens, const Tensor& parents,
                                   const Tensor& scores, const Tensor& origins, const Tensor& frontier,
                                   const Tensor& parent_rows) {
  constexpr const char* kName = "grow_level";
  check_list(proposed, kName, "proposed", ScalarType::Long, {-1, -1, -1}, budgets);
  check_list(tokens, kName, "tokens", ScalarType::Long, {-1, -1}, budgets);
  const int64_t requests = proposed.size(0), width = proposed.size(1), top_k = proposed.size(2);
  const int64_t capacity = tokens.size(1);
  check_list(budgets, kName, "budgets", ScalarType::Int, {requests}, budgets);
  check_list(log_probs, kName, "log_probs", ScalarType::Float, {requests, width, top_k}, budgets);
  check_list(counts, kName, "counts", ScalarType::Int, {requests}, budgets);
  check_list(tokens, kName, "tokens", ScalarType::Long, {requests, capacity}, budgets);
  check_list(parents, kName, "parents", ScalarType::Int, {requests, capacity}, budgets);
  check_list(scores, kName, "scores", ScalarType::Double, {requests, capacity}, budgets);
  check_list(origins, kName, "origins", ScalarType::Int, {requests, capacity}, budgets);
  check_list(frontier, kName, "frontier", ScalarType::Int, {requests, width}, budgets);
  check_list(parent_rows, kName, "parent_rows", ScalarType::Int, {requests, width}, budgets);
  STD_TORCH_CHECK(capacity <= 128 && capacity + width * top_k <= 1536, "grow_level: trees of ", capacity, " nodes with ",
                  width, " x ", top_k, " children a level are too large, 128 nodes and 1536 of both are the most.");
  STD_TORCH_CHECK(level >= 0 && (level + 1) * width * top_k <= INT32_MAX, "grow_level: level ", level,
                  " is negative or too deep.");
  const auto ints = [](const Tensor& t) { return static_cast<int32_t*>(t.data_ptr()); };
  const auto small = [](int64_t x) { return static_cast<int32_t>(x); };
  return {small(requests), small(capacity), small(width), small(top_k), small(level), ints(budgets),
          static_cast<const int64_t*>(proposed.data_ptr()), static_cast<const float*>(log_probs.data_ptr()),
          ints(counts), static_cast<int64_t*>(tokens.data_ptr()), ints(parents),
          static_cast<double*>(scores.data_ptr()), ints(origins), ints(frontier), ints(parent_rows)};
}

inline specvlm_tree_tables check_tables(const Tensor& counts, const Tensor& tokens, const Tensor& parents, int64_t bits,
                                        const Tensor& codes, const Tensor& ancestors, const Tensor& depths) {
  constexpr const char* kName = "describe_trees";
  check_list(tokens, kName, "tokens", ScalarType::Long, {-1, -1}, tokens);
  const int64_t requests = tokens.size(0), capacity = tokens.size(1);
  check_list(counts, kName, "counts", ScalarType::Int, {requests}, tokens);
  check_list(parents, kName, "parents", ScalarType::Int, {requests, capacity}, tokens);
  check_list(codes, kName, "codes", ScalarType::Long, {requests, capacity}, tokens);
  check_list(ancestors, kName, "ancestors", ScalarType::Long, {requests, capacity, 2}, tokens);
  check_list(depths, kName, "depths", ScalarType::Int, {requests, capacity}, tokens);
  STD_TORCH_CHECK(capacity <= 128 && bits >= 0 && bits < 32, "describe_trees: trees of ", capacity, " nodes with ", bits,
                  " bits a token, but 128 nodes and 31 bits are the most.");
  const auto ints = [](const Tensor& t) { return static_cast<int32_t*>(t.data_ptr()); };
  const auto longs = [](const Tensor& t) { return static_cast<int64_t*>(t.data_ptr()); };
  return {static_cast<int32_t>(requests), static_cast<int32_t>(capacity), static_cast<int32_t>(bits), ints(counts),
          longs(tokens), ints(parents), longs(codes), longs(ancestors), ints(depths)};
}

}  // namespace
