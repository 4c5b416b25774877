// What the bindings of both devices check about trees that are walked and races that are run.
#pragma once

#include "../abi/acceptance.h"
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
  STD_TORCH_CHECK(fits, operation, ": ", name, " must be ", type == ScalarType::Int ? "int32" : "int64", " [", wanted,
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

}  // namespace
