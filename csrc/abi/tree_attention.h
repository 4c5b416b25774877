// The plain C interface between the torch binding, the plan and the kernels. Plain data only: no torch, no C++ library.
//
// Words: a *row* of a request is one (query token, query head) pair of one key/value head, row = token * group + head,
// group = query heads per key/value head. Paged keys have two numbers: the *position* in the sequence (what the block
// table maps) and the *index* among the request's visible paged keys (what arithmetic and tiles go by).
#pragma once

#include <stdint.h>

#include "acceptance.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SPECVLM_FLOAT = 0, SPECVLM_BFLOAT16 = 1, SPECVLM_HALF = 2 };

// How a page of one head lies in the cache: SPECVLM_PLANES for vLLM's "vec" and "vec16", SPECVLM_PAIRS for "amx".
enum { SPECVLM_PLANES = 0, SPECVLM_PAIRS = 1 };

// Which of vLLM's x86 builds the results follow bit for bit (docs/kernels.md, "Arithmetic on CPUs").
enum { SPECVLM_AVX512_BF16 = 0, SPECVLM_AVX512 = 1, SPECVLM_AVX2 = 2 };

// A stretch of visible paged keys: indexes [index, index + length) are the positions from `position` on.
typedef struct {
  int64_t index, position, length;
} specvlm_stretch;

typedef struct {
  int64_t first_token;          // of query, key, value and out
  int64_t tokens;
  int64_t first_listed;         // its number in paged_keys and ancestors
  const int32_t* blocks;        // its row of the block table
  int64_t dense_start;          // row of the dense store that bit 0 of the masks means
  int64_t first_stretch, stretches;
} specvlm_request;

// Unit of work: rows [first_row, last_row) of one key/value head of one request.
typedef struct {
  int64_t request, head, first_row, last_row;
} specvlm_item;

typedef struct {
  int32_t dtype, layout, arithmetic, fast;
  int64_t query_heads, heads, head_size, page;
  int64_t tile;                 // keys per step of the online softmax, a multiple of 16
  float scale;
  const void* query;            // strides are in elements; the last dimension is contiguous everywhere
  void* out;
  const void* cache;            // [blocks, heads, page * 2 * head_size], contiguous
  const void* dense_key;
  const void* dense_value;
  int64_t query_token_stride, query_head_stride, out_token_stride, out_head_stride;
  int64_t dense_key_row_stride, dense_key_head_stride, dense_value_row_stride, dense_value_head_stride;
  const specvlm_request* requests;
  const specvlm_stretch* stretches;
  const specvlm_item* items;
  const int32_t* paged_keys;    // [listed]: visible paged keys of this token, always the first ones by index
  const uint64_t* ancestors;    // [listed][2]
} specvlm_tree_attention;

// Bytes of scratch (64-byte aligned) that `item` needs, and the work itself. Items are independent of each other.
typedef int64_t (*specvlm_scratch_fn)(const specvlm_tree_attention*, const specvlm_item*);
typedef void (*specvlm_attend_fn)(const specvlm_tree_attention*, const specvlm_item*, void* scratch);

typedef void (*specvlm_race_fn)(const specvlm_race*, int64_t first, int64_t last);

typedef struct {
  const char* name;             // "portable", "avx2", "avx512", "avx512_bf16"
  int32_t rows_at_once;         // rows of a register block: items are best cut at its multiples
  int32_t has_fast;
  specvlm_scratch_fn scratch;
  specvlm_attend_fn attend;
  specvlm_race_fn race;         // rows [first, last) of races
} specvlm_cpu_variant;

// The variant that runs (the best this CPU has, unless chosen), the choice ("" = best; nonzero if unknown or not
// supported by this CPU) and the arithmetic that is followed, with half the L2 cache in bytes, which vLLM's tiles go by.
const specvlm_cpu_variant* specvlm_cpu_current(void);
int specvlm_cpu_supports(const char* name);
int specvlm_cpu_choose(const char* name);
void specvlm_cpu_follow(int arithmetic, int64_t half_l2_bytes);
const char* specvlm_cpu_name(void);
int specvlm_cpu_has_fast(void);
int specvlm_cpu_arithmetic(void);
int64_t specvlm_cpu_half_l2(void);

#ifdef __cplusplus
}
#endif
