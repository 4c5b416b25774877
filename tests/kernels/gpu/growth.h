// Growing and describing trees beside the same functions as they are on the CPU.
#pragma once

#include <vector>

#include "as_it_is.h"

namespace {

struct Alone {  // a team of one
  int index() const { return 0; }
  int size() const { return 1; }
  void sync() const {}
};

// Trees of random proposals, grown level by level and described, against the same functions called one after the other.
bool growth() {
  const int32_t requests = 3, capacity = 40, width = 6, top_k = 5;
  const int64_t nodes = requests * capacity, rows = requests * width, children = rows * top_k;
  struct Trees {
    Buffer<int32_t> counts{3}, parents{120}, origins{120}, frontier{18}, parent_rows{18}, depths{120};
    Buffer<int64_t> tokens{120}, codes{120}, ancestors{240};
    Buffer<double> scores{120};
  } device, host;
  const Buffer<int32_t> budgets(std::vector<int32_t>{40, 0, 7});
  for (Trees* trees : {&device, &host})
    for (int64_t i = 0; i < nodes; i++) {
      if (i < requests) trees->counts[i] = 0;
      if (i < rows) trees->frontier[i] = i % width ? -2 : -1, trees->parent_rows[i] = -1;
      // Behind a tree nothing is read; it is compared.
      trees->parents[i] = trees->origins[i] = 0, trees->tokens[i] = 0, trees->scores[i] = 0;
    }
  const auto arguments = [&](Trees& trees, const Buffer<int64_t>& proposed, const Buffer<float>& laws, int32_t level) {
    return specvlm_growth{requests,           capacity,           width,
                          top_k,              level,              budgets.get(),
                          proposed.get(),     laws.get(),         trees.counts.get(),
                          trees.tokens.get(), trees.parents.get(), trees.scores.get(),
                          trees.origins.get(), trees.frontier.get(), trees.parent_rows.get()};
  };
  for (int32_t level = 0; level < 5; level++) {
    const Buffer<int64_t> proposed(children);
    const Buffer<float> laws(children);
    for (int64_t i = 0; i < children; i++) {
      proposed[i] = pick(0, 30);
      laws[i] = (i % top_k ? laws[i - 1] : 0.0f) - static_cast<float>(pick(0, 9)) / 4;  // many are equal
    }
    const specvlm_growth p = arguments(device, proposed, laws, level), q = arguments(host, proposed, laws, level);
    if (specvlm_gpu_grow_level(&p, nullptr)) return false;
    const Buffer<char> memory(specvlm_as_it_is::Candidates::bytes(q));
    for (int32_t r = 0; r < requests; r++) specvlm_as_it_is::grow_level(q, r, memory.get(), Alone());
    if (!same(device.counts, host.counts, requests) || !same(device.tokens, host.tokens, nodes) ||
        !same(device.parents, host.parents, nodes) || !same(device.scores, host.scores, nodes) ||
        !same(device.origins, host.origins, nodes) || !same(device.frontier, host.frontier, rows) ||
        !same(device.parent_rows, host.parent_rows, rows))
      return false;
  }
  const auto tables = [&](Trees& trees) {
    return specvlm_tree_tables{requests, capacity, 5, trees.counts.get(), trees.tokens.get(), trees.parents.get(),
                               trees.codes.get(), trees.ancestors.get(), trees.depths.get()};
  };
  const specvlm_tree_tables p = tables(device), q = tables(host);
  if (specvlm_gpu_describe_trees(&p, nullptr)) return false;
  for (int32_t r = 0; r < requests; r++)
    for (int32_t i = 0; i < capacity; i++) specvlm_as_it_is::describe_node(q, r, i);
  return host.counts[0] == 40 && same(device.codes, host.codes, nodes) && same(device.depths, host.depths, nodes) &&
         same(device.ancestors, host.ancestors, 2 * nodes);
}

}  // namespace
