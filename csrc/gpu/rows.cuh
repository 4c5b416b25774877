// Rows of keys and values on their way: into the dense store before attention, into the paged cache at the commit.
#pragma once

#include "tables.cuh"

namespace specvlm {

// 16-byte pieces of `heads` rows of `pieces` pieces each, by one warp. Strides in bytes.
__device__ inline void copy_heads(char* to, int64_t to_stride, const char* from, int64_t from_stride, int heads,
                                  int pieces) {
  for (int i = threadIdx.x & 31; i < heads * pieces; i += 32) {
    const int head = i / pieces, column = i % pieces * 16;
    *reinterpret_cast<uint4*>(to + head * to_stride + column) =
        *reinterpret_cast<const uint4*>(from + head * from_stride + column);
  }
}

// A warp for each listed row: its new key and value go to the dense row that dense_at names, if any.
__global__ void __launch_bounds__(kThreads) store_rows(const __grid_constant__ specvlm_gpu_attention p) {
  const int listed = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  if (listed >= p.listed) return;
  const int64_t to = p.dense_at[listed];
  Request request;
  int row;
  if (to < 0 || !find_request(p, listed, [](int rows) { return rows; }, request, row)) return;
  const int64_t size = p.dtype == SPECVLM_FLOAT ? 4 : 2, from = request.first_row + row;
  const int pieces = static_cast<int>(p.head_size * size / 16);
  copy_heads(static_cast<char*>(p.dense_key) + to * p.dense_key_row_stride * size, p.dense_key_head_stride * size,
             static_cast<const char*>(p.new_key) + from * p.new_key_token_stride * size, p.new_key_head_stride * size,
             p.heads, pieces);
  copy_heads(static_cast<char*>(p.dense_value) + to * p.dense_value_row_stride * size, p.dense_value_head_stride * size,
             static_cast<const char*>(p.new_value) + from * p.new_value_token_stride * size,
             p.new_value_head_stride * size, p.heads, pieces);
}

// A warp for each dense row and layer (blockIdx.y): the row goes to its slot, if it has one. Sources and targets are
// different memory, so the order does not matter.
__global__ void __launch_bounds__(kThreads, 8) commit_rows(const __grid_constant__ specvlm_gpu_commit p) {
  const int row = blockIdx.x * (kThreads / 32) + threadIdx.x / 32, layer = blockIdx.y;
  if (row >= p.rows) return;
  const int64_t slot = p.slots[row], size = p.element_size;
  if (slot < 0) return;
  const int pieces = static_cast<int>(p.head_size * size / 16);
  char* const to = static_cast<char*>(p.cache[layer]) +
                   (slot / p.page * p.cache_block_stride + slot % p.page * p.cache_slot_stride) * size;
  copy_heads(to, p.cache_head_stride * size,
             static_cast<const char*>(p.dense_key[layer]) + row * p.dense_key_row_stride * size,
             p.dense_key_head_stride * size, p.heads, pieces);
  copy_heads(to + p.head_size * size, p.cache_head_stride * size,
             static_cast<const char*>(p.dense_value[layer]) + row * p.dense_value_row_stride * size,
             p.dense_value_head_stride * size, p.heads, pieces);
}

}  // namespace specvlm
