// Rows of several layers written to their slots.
#pragma once

#include <cstring>
#include <vector>

#include "states.h"

namespace {

bool commit() {
  const int64_t layers = 3, heads = 2, D = 64, page = 16, rows = 6, slots = 64;
  const Number number = {SPECVLM_BFLOAT16, 0};
  const States key(number, layers * rows, heads, D), value(number, layers * rows, heads, D);
  const States cache(number, layers * slots, heads, 2 * D);
  for (int64_t i = 0; i < layers * rows; i++) key.fill(i), value.fill(i);
  for (int64_t i = 0; i < layers * slots; i++) cache.fill(i);
  std::vector<int64_t> to = {40, -1, 3, -1, 63, 0};
  States wanted(number, layers * slots, heads, 2 * D);
  std::memcpy(wanted.at(0, 0), cache.at(0, 0), layers * slots * heads * 2 * D * 2);
  const Buffer<int64_t> places(to);
  specvlm_gpu_commit p{};
  p.element_size = 2, p.heads = heads, p.head_size = D, p.page = page, p.layers = layers, p.rows = rows;
  p.slots = places.get(), p.cache_block_stride = page * heads * 2 * D, p.cache_head_stride = 2 * D;
  p.cache_slot_stride = heads * 2 * D, p.dense_key_row_stride = p.dense_value_row_stride = heads * D;
  p.dense_key_head_stride = p.dense_value_head_stride = D;
  for (int64_t layer = 0; layer < layers; layer++) {
    p.cache[layer] = cache.at(layer * slots, 0);
    p.dense_key[layer] = key.at(layer * rows, 0), p.dense_value[layer] = value.at(layer * rows, 0);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t h = 0; to[i] >= 0 && h < heads; h++) {
        std::memcpy(wanted.at(layer * slots + to[i], h), key.at(layer * rows + i, h), D * 2);
        std::memcpy(wanted.at(layer * slots + to[i], h, D), value.at(layer * rows + i, h), D * 2);
      }
  }
  return specvlm_gpu_commit_rows(&p, nullptr) == 0 &&
         std::memcmp(wanted.at(0, 0), cache.at(0, 0), layers * slots * heads * 2 * D * 2) == 0;
}

}  // namespace
