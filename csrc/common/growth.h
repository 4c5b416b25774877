// The best-first growth of vllm_specvlm/tree/grow.py, by ranking all candidates instead of keeping a heap: a candidate
// that a full heap turns away is one that `budget` others outrank, so both keep the same nodes in the same order.
#pragma once

#include "../abi/growth.h"
#include "both.h"

namespace specvlm {

// Candidates of one request: the tree so far, then the new children row by row.
struct Candidates {
  double* scores;
  int64_t* tokens;
  int32_t *parents, *rows, *origins, *ranks;  // parents: candidates too; rows: -1 unless new; ranks: -1 if none

  SPECVLM_BOTH static int count(const specvlm_growth& p) { return p.capacity + p.width * p.top_k; }
  SPECVLM_BOTH static int64_t bytes(const specvlm_growth& p) { return static_cast<int64_t>(count(p)) * 32; }
  SPECVLM_BOTH Candidates(const specvlm_growth& p, void* memory) {
    const int n = count(p);
    scores = static_cast<double*>(memory);
    tokens = reinterpret_cast<int64_t*>(scores + n);
    parents = reinterpret_cast<int32_t*>(tokens + n);
    rows = parents + n;
    origins = rows + n;
    ranks = origins + n;
  }
};

// A log-probability is 0 at most; NaN stays.
SPECVLM_BOTH inline double at_most_zero(float log_prob) { return log_prob > 0.0f ? 0.0 : static_cast<double>(log_prob); }

// Whether child `rank` of a row counts: everything up to it is a candidate, and no better one has its token.
SPECVLM_BOTH inline bool is_candidate(const int64_t* tokens, const float* log_probs, double above, int rank) {
  for (int i = 0; i <= rank; i++)
    if (!(above + at_most_zero(log_probs[i]) > -INFINITY)) return false;
  for (int i = 0; i < rank; i++)
    if (tokens[i] == tokens[rank]) return false;
  return true;
}

// One level of one request. `team` shares the work: every member calls this with the same arguments, member index() of
// size(), and sync() waits for all. `memory` holds Candidates::bytes.
template <class Team>
SPECVLM_BOTH void grow_level(const specvlm_growth& p, int request, void* memory, const Team& team) {
  const Candidates c(p, memory);
  const int budget = p.budgets[request] < p.capacity ? p.budgets[request] : p.capacity, old = p.counts[request];
  const int64_t tree = static_cast<int64_t>(request) * p.capacity, rows = static_cast<int64_t>(request) * p.width;
  const int all = p.capacity + p.width * p.top_k;
  for (int i = team.index(); i < all; i += team.size()) {
    c.ranks[i] = -1;
    c.scores[i] = -INFINITY;
    if (i < p.capacity) {
      if (i >= old) continue;
      c.scores[i] = p.scores[tree + i], c.tokens[i] = p.tokens[tree + i], c.parents[i] = p.parents[tree + i];
      c.origins[i] = p.origins[tree + i], c.rows[i] = -1;
      continue;
    }
    const int row = (i - p.capacity) / p.top_k, rank = (i - p.capacity) % p.top_k, node = p.frontier[rows + row];
    if (node < -1 || node >= old || budget <= 0) continue;
    const int64_t at = (rows + row) * p.top_k;
    const double above = node < 0 ? 0.0 : p.scores[tree + node];
    if (!is_candidate(p.proposed + at, p.log_probs + at, above, rank)) continue;
    c.scores[i] = above + at_most_zero(p.log_probs[at + rank]);
    c.tokens[i] = p.proposed[at + rank], c.parents[i] = node, c.rows[i] = row;
    c.origins[i] = (p.level * p.width + row) * p.top_k + rank;
  }
  team.sync();
  for (int i = team.index(); i < all; i += team.size()) {
    if (c.scores[i] == -INFINITY) continue;
    int rank = 0;
    for (int j = 0; j < all; j++)  // found first, ranked first; candidates lie in the order in which they were found
      if (c.scores[j] > c.scores[i] || (c.scores[j] == c.scores[i] && c.origins[j] < c.origins[i])) rank++;
    if (rank < budget) c.ranks[i] = rank;
  }
  team.sync();
  for (int i = team.index(); i < all; i += team.size()) {
    if (c.ranks[i] < 0) continue;
    const int64_t to = tree + c.ranks[i];
    p.scores[to] = c.scores[i], p.tokens[to] = c.tokens[i], p.origins[to] = c.origins[i];
    p.parents[to] = c.parents[i] < 0 ? -1 : c.ranks[c.parents[i]];
  }
  team.sync();
  if (team.index() != 0) return;
  // The next frontier: new nodes, best first; the worst of a full tree is not worth expanding.
  int count = 0, filled = 0;
  for (int i = 0; i < all; i++) count += c.ranks[i] >= 0;
  p.counts[request] = count;
  const double floor = count > 0 && count == budget ? p.scores[tree + count - 1] : -INFINITY;
  for (int rank = 0; rank < count && filled < p.width; rank++) {
    const int found = p.origins[tree + rank] - p.level * p.width * p.top_k;
    if (found < 0 || !(p.scores[tree + rank] > floor)) continue;
    p.frontier[rows + filled] = rank;
    p.parent_rows[rows + filled++] = found / p.top_k;
  }
  for (; filled < p.width; filled++) p.frontier[rows + filled] = -2, p.parent_rows[rows + filled] = -1;
}

// Code, ancestors and depth of node i of a request's tree, or of a place behind it.
SPECVLM_BOTH inline void describe_node(const specvlm_tree_tables& p, int request, int i) {
  const int64_t tree = static_cast<int64_t>(request) * p.capacity, at = tree + i;
  uint64_t low = 0, high = 0;
  int depth = 0;
  const bool exists = i < p.counts[request];
  for (int node = exists ? i : -1; node >= 0; depth++) {
    if (node < 64) low |= 1ull << node;
    else high |= 1ull << (node - 64);
    const int parent = p.parents[tree + node];
    node = parent < node ? parent : -1;
  }
  p.codes[at] = exists ? p.tokens[at] + (static_cast<int64_t>(i - 1 - p.parents[at]) << p.bits) : -1;
  p.ancestors[2 * at] = static_cast<int64_t>(low);
  p.ancestors[2 * at + 1] = static_cast<int64_t>(high);
  p.depths[at] = depth;
}

}  // namespace specvlm
