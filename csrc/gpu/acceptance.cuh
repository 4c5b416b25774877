// Acceptance on the device: a thread walks a tree, a block runs a race.
#pragma once

#include "../common/noise.h"
#include "../common/walk.h"
#include "platform.cuh"

namespace specvlm {

__global__ void __launch_bounds__(kThreads) walk_trees(const __grid_constant__ specvlm_walk p) {
  const int tree = blockIdx.x * kThreads + threadIdx.x;
  if (tree < p.trees) walk_tree(p, tree);
}

constexpr int kRaceThreads = 1024;  // there are few rows, and each has the whole vocabulary

__global__ void __launch_bounds__(kRaceThreads) run_races(const __grid_constant__ specvlm_race p) {
  SPECVLM_SHARED(float, speeds, kRaceThreads / 32);
  SPECVLM_SHARED(int32_t, tokens, kRaceThreads / 32);
  const int row = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const float* const probs = p.probs + row * p.row_stride;
  const int64_t key = p.keys[row];
  float speed = 0.0f;
  int32_t token = -1;
  bool law = true;
  for (int32_t t = threadIdx.x; t < p.vocabulary; t += kRaceThreads) {
    const float prob = probs[t], mine = race_speed(prob, key, t);
    law = law && mine < INFINITY && prob == prob;
    if (mine > 0.0f && runs_ahead(mine, t, speed, token)) speed = mine, token = t;
  }
  for (int by = 16; by; by >>= 1) {
    const float other_speed = __shfl_xor_sync(kAllLanes, speed, by);
    const int32_t other_token = __shfl_xor_sync(kAllLanes, token, by);
    if (other_token < 0 || !runs_ahead(other_speed, other_token, speed, token)) continue;
    speed = other_speed;
    token = other_token;
  }
  if (lane == 0) speeds[warp] = speed, tokens[warp] = token;
  const bool broken = __syncthreads_or(!law);
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kRaceThreads / 32; w++)
    if (tokens[w] >= 0 && runs_ahead(speeds[w], tokens[w], speed, token)) speed = speeds[w], token = tokens[w];
  p.winners[row] = broken ? -1 : token;
}

}  // namespace specvlm
