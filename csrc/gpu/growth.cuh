// Tree growth on the device: a block grows a tree by a level, a thread describes a node.
#pragma once

#include "../common/growth.h"
#include "platform.cuh"

namespace specvlm {

struct BlockTeam {
  __device__ int index() const { return static_cast<int>(threadIdx.x); }
  __device__ int size() const { return kThreads; }
  __device__ void sync() const { __syncthreads(); }
};

__global__ void __launch_bounds__(kThreads) grow_trees(const __grid_constant__ specvlm_growth p) {
  SPECVLM_DYNAMIC_SHARED(memory);
  grow_level(p, static_cast<int>(blockIdx.x), memory, BlockTeam());
}

__global__ void __launch_bounds__(kThreads) describe_trees(const __grid_constant__ specvlm_tree_tables p) {
  for (int i = threadIdx.x; i < p.capacity; i += kThreads) describe_node(p, static_cast<int>(blockIdx.x), i);
}

}  // namespace specvlm
