// Walks and races beside the same functions as they are on the CPU.
#pragma once

#include <vector>

#include "as_it_is.h"

namespace {

// Walks of random trees of few tokens, and races, likewise.
bool acceptance() {
  const int32_t trees = 150, most = 12, groups = 2, vocabulary = 2500, races = 4;  // more trees than a block has threads
  std::vector<int32_t> first_nodes = {0}, first_rows, parents;
  std::vector<int64_t> tokens, row_tokens;
  for (int32_t t = 0; t < trees; t++) {
    const int64_t count = pick(0, 20);
    first_rows.push_back(static_cast<int32_t>(row_tokens.size()));
    for (int64_t i = 0; i < count; i++) {
      parents.push_back(static_cast<int32_t>(pick(-1, i)));
      tokens.push_back(pick(-1, 3));
    }
    for (int64_t i = 0; i <= count; i++) row_tokens.push_back(pick(-1, 3));
    first_nodes.push_back(static_cast<int32_t>(parents.size()));
  }
  const int64_t nodes = static_cast<int64_t>(parents.size());
  std::vector<int64_t> linear(groups * nodes);
  for (size_t i = 0; i < linear.size(); i++) linear[i] = static_cast<int64_t>(7 * i);
  const Buffer<int32_t> p_parents(parents), p_first_nodes(first_nodes), p_first_rows(first_rows);
  const Buffer<int64_t> p_tokens(tokens), p_row_tokens(row_tokens), p_linear(linear);
  struct Walks {
    Buffer<int64_t> emitted, slots;
    Buffer<int32_t> path, counts;
    explicit Walks(int64_t n) : emitted(150 * 13), slots(2 * n), path(150 * 12), counts(150) {}
  } device(nodes), host(nodes);
  const auto walk = [&](Walks& walks) {
    return specvlm_walk{trees, static_cast<int32_t>(nodes), groups, most, p_tokens.get(), p_parents.get(),
                        p_first_nodes.get(), p_row_tokens.get(), p_first_rows.get(), p_linear.get(),
                        walks.emitted.get(), walks.path.get(), walks.counts.get(), walks.slots.get()};
  };
  const specvlm_walk p = walk(device), q = walk(host);
  if (specvlm_gpu_walk_trees(&p, nullptr)) return false;
  for (int32_t t = 0; t < trees; t++) specvlm_as_it_is::walk_tree(q, t);
  if (!same(device.emitted, host.emitted, trees * (most + 1)) || !same(device.path, host.path, trees * most) ||
      !same(device.counts, host.counts, trees) || !same(device.slots, host.slots, groups * nodes))
    return false;
  const Buffer<float> probs(races * vocabulary);
  const Buffer<int64_t> keys(races), winners(races);
  for (int64_t i = 0; i < races * vocabulary; i++) probs[i] = static_cast<float>(pick(0, 1000));
  for (int64_t i = 0; i < races; i++) keys[i] = static_cast<int64_t>(rng()) << 31 ^ rng();
  const specvlm_race race = {races, vocabulary, probs.get(), vocabulary, keys.get(), winners.get()};
  if (specvlm_gpu_race(&race, nullptr)) return false;
  for (int64_t row = 0; row < races; row++) {
    float speed = 0;
    int32_t token = -1;
    for (int32_t t = 0; t < vocabulary; t++) {
      const float mine = specvlm_as_it_is::race_speed(probs[row * vocabulary + t], keys[row], t);
      if (mine > speed) speed = mine, token = t;
    }
    if (winners[row] != token) return false;
  }
  return true;
}

}  // namespace
