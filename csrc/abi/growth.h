// Growing trees level by level, of all requests of a batch at once: plain data, for CPUs and GPUs.
#pragma once

#include <stdint.h>

// A request's tree so far: its best `counts` candidates, better ones first, so that parents come before children.
typedef struct {
  int32_t requests, capacity, width, top_k;  // capacity of a tree, rows of its frontier, children of a row
  int32_t level;                             // 0 for the children of the roots
  const int32_t* budgets;     // [requests], at most capacity; 0 or less: the tree stays empty
  const int64_t* proposed;    // [requests, width, top_k]: the children's tokens
  const float* log_probs;     // [requests, width, top_k], descending along a row; -inf ends it
  int32_t* counts;            // [requests], all 0 before level 0
  int64_t* tokens;            // [requests, capacity]
  int32_t* parents;           // [requests, capacity], -1: the root
  double* scores;             // [requests, capacity]: log-probability of the path
  int32_t* origins;           // [requests, capacity]: (level * width + row) * top_k + rank of the proposal
  int32_t* frontier;          // [requests, width]: nodes expanded in this level, -1: the root, -2: none; then the next
  int32_t* parent_rows;       // [requests, width]: frontier row that proposed the next frontier's node, -1: none
} specvlm_growth;

// What follows from finished trees.
typedef struct {
  int32_t requests, capacity, bits;
  const int32_t* counts;
  const int64_t* tokens;
  const int32_t* parents;
  int64_t* codes;       // [requests, capacity]: token + ((i - 1 - parent) << bits), -1 behind the tree
  int64_t* ancestors;   // [requests, capacity, 2]: bit j says that node j is i or an ancestor of i
  int32_t* depths;      // [requests, capacity]: 1 for children of the root, 0 behind the tree
} specvlm_tree_tables;
