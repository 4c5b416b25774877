// Which path of a tree is accepted, and which token wins a race: plain data, for CPUs and GPUs.
#pragma once

#include <stdint.h>

typedef struct {
  int32_t trees, nodes, groups, most;  // most: columns of path, one less than those of emitted
  const int64_t* tokens;               // [nodes], -1: never accepted
  const int32_t* parents;              // [nodes], numbers in the node's tree below its own, -1: the root
  const int32_t* first_nodes;          // [trees + 1], ascending from 0 to nodes
  const int64_t* row_tokens;           // the target's tokens: of tree t's root in row first_rows[t], its nodes after it
  const int32_t* first_rows;           // [trees]
  const int64_t* linear_slots;         // [groups, nodes]: slot of the row after the root, of the one after that, ...
  int64_t* emitted;                    // [trees, most + 1]: the path's tokens and the bonus token, then -1
  int32_t* path;                       // [trees, most]: the accepted nodes, then -1
  int32_t* counts;                     // [trees]: accepted nodes
  int64_t* slots;                      // [groups, nodes]: where each node's row is committed to, -1: nowhere
} specvlm_walk;

typedef struct {
  int32_t rows, vocabulary;
  const float* probs;  // [rows, vocabulary], rows row_stride apart
  int64_t row_stride;
  const int64_t* keys;  // [rows]
  int64_t* winners;     // [rows], -1: the row is no law
} specvlm_race;
