// The rule of vllm_specvlm/tree/accept.py: from the root to the child that holds the target's token, until none does.
#pragma once

#include "../abi/acceptance.h"
#include "both.h"

namespace specvlm {

// Walks tree number t; a path longer than `most` nodes is cut there, with the token after it as the bonus.
SPECVLM_BOTH inline void walk_tree(const specvlm_walk& p, int t) {
  const int first = p.first_nodes[t], nodes = p.first_nodes[t + 1] - first;
  const int64_t* const row_tokens = p.row_tokens + p.first_rows[t];
  int64_t* const emitted = p.emitted + static_cast<int64_t>(t) * (p.most + 1);
  int32_t* const path = p.path + static_cast<int64_t>(t) * p.most;
  int count = 0, here = -1;
  int64_t wanted = row_tokens[0];
  emitted[0] = wanted;
  // Children come after their parents, so one pass meets the nodes of the path in order.
  for (int node = 0; node < nodes && count < p.most; node++) {
    if (p.parents[first + node] != here || p.tokens[first + node] != wanted || wanted < 0) continue;
    path[count++] = here = node;
    emitted[count] = wanted = row_tokens[1 + node];
  }
  p.counts[t] = count;
  for (int i = count; i < p.most; i++) path[i] = -1, emitted[i + 1] = -1;
  for (int g = 0; g < p.groups; g++) {
    const int64_t begin = static_cast<int64_t>(g) * p.nodes + first;
    for (int node = 0; node < nodes; node++) p.slots[begin + node] = -1;
    for (int i = 0; i < count; i++) p.slots[begin + path[i]] = p.linear_slots[begin + i];
  }
}

}  // namespace specvlm
