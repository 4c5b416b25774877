// The plain C interface of the GPU kernels' library (libspecvlm_cuda.so). All pointers are device memory; strides are in
// elements and the last dimension is contiguous everywhere; what is copied in 16-byte pieces must be aligned so (the
// binding checks that: every pointer and stride of keys, values and caches).
//
// The tables are read on the device only, so that a call neither waits for the GPU nor depends on what a CUDA graph was
// captured with. Nobody checks their entries there: they must be right (csrc/common/plan.cpp checks them on CPUs).
#pragma once

#include <stdint.h>

#include "acceptance.h"
#include "growth.h"
#include "tree_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SPECVLM_GPU_ABI = 2, SPECVLM_GPU_MOST_SPLITS = 16, SPECVLM_GPU_MOST_LAYERS = 128 };

typedef struct {
  int32_t dtype;                 // SPECVLM_FLOAT, ...
  int32_t query_heads, heads, head_size, page;  // page a multiple of 16
  int32_t requests, listed, block_columns;
  int32_t splits;                // a request's paged keys are cut into this many pieces at most
  float scale, soft_cap;         // soft_cap 0: none
  const void* query;             // [tokens, query_heads, head_size]
  void* out;
  const void *new_key, *new_value;      // [tokens, heads, head_size]
  const void *cache_key, *cache_value;  // slot s of block b of head h: each of them times its stride
  void *dense_key, *dense_value;        // [rows, heads, head_size]
  int64_t query_token_stride, query_head_stride, out_token_stride, out_head_stride;
  int64_t new_key_token_stride, new_key_head_stride, new_value_token_stride, new_value_head_stride;
  int64_t cache_block_stride, cache_head_stride, cache_slot_stride, table_stride;
  int64_t dense_key_row_stride, dense_key_head_stride, dense_value_row_stride, dense_value_head_stride;
  const int32_t* block_table;    // [any, block_columns], rows table_stride apart
  const int32_t* request_table;  // [requests, 6]: first_row, rows, block table row, dense_start, first_span, spans
  const int32_t* spans;          // [any, 2]
  const int32_t* visible_from;   // [listed] or null: paged positions below are invisible to the row
  const int32_t* visible_upto;   // [listed]
  const int32_t* dense_at;       // [listed]
  const uint64_t* ancestors;     // [listed][2]
  float* partial_out;            // [splits, listed, query_heads, head_size], null with one split
  float* partial_weight;         // [splits, listed, query_heads]: log2 of the sum of the weights
} specvlm_gpu_attention;

// Rows of the dense stores of several layers of one kind go to their slots in the paged caches.
typedef struct {
  int32_t element_size, heads, head_size, page, layers, rows;
  const int64_t* slots;          // [rows], block * page + slot; -1: the row is dropped
  int64_t cache_block_stride, cache_head_stride, cache_slot_stride;
  int64_t dense_key_row_stride, dense_key_head_stride, dense_value_row_stride, dense_value_head_stride;
  void* cache[SPECVLM_GPU_MOST_LAYERS];  // keys in the first head_size elements of a slot, values in the last
  const void* dense_key[SPECVLM_GPU_MOST_LAYERS];
  const void* dense_value[SPECVLM_GPU_MOST_LAYERS];
} specvlm_gpu_commit;

// Every PTX wrapper run once by one warp (see gpu/wrappers.cu); numbers of 16 bits, each result as the lanes hold it.
typedef struct {
  int32_t bf16;                     // else half
  const uint16_t *left, *right;     // [16, 16]
  const float* exponents;           // [32]
  uint32_t *plain, *transposed;     // [32, 4]: left by ldmatrix, right by ldmatrix.trans
  uint32_t* zeroed;                 // [32, 4]: what a copy without a source leaves
  float* product;                   // [2, 32, 4]: 1 + left right, in halves of eight columns
  float* powers;                    // [32]
} specvlm_gpu_wrappers;

int specvlm_gpu_abi(void);
int specvlm_gpu_has_head_size(int32_t head_size);
// How many splits fill the current device (1 .. SPECVLM_GPU_MOST_SPLITS); requests, listed and heads must be set.
int specvlm_gpu_splits(const specvlm_gpu_attention*);
// New rows go to the dense store, then all listed rows are attended. Kernels are queued on `stream`, nothing waits.
// 0, or an error number whose words are specvlm_gpu_message's.
int specvlm_gpu_attend(const specvlm_gpu_attention*, void* stream);
int specvlm_gpu_commit_rows(const specvlm_gpu_commit*, void* stream);
int specvlm_gpu_walk_trees(const specvlm_walk*, void* stream);
int specvlm_gpu_race(const specvlm_race*, void* stream);
int specvlm_gpu_grow_level(const specvlm_growth*, void* stream);
int specvlm_gpu_describe_trees(const specvlm_tree_tables*, void* stream);
int specvlm_gpu_try_wrappers(const specvlm_gpu_wrappers*, void* stream);
const char* specvlm_gpu_message(int error);

#ifdef __cplusplus
}
#endif
