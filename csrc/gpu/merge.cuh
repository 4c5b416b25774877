// Joins what the pieces of a request's keys gave: a warp for each (listed row, query head).
#pragma once

#include "ptx.cuh"
#include "tables.cuh"

namespace specvlm {

template <class T>
__global__ void __launch_bounds__(kThreads) merge_pieces(const __grid_constant__ specvlm_gpu_attention p) {
  const int lane = threadIdx.x & 31, all = p.listed * p.query_heads;
  const int at = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  Request request;
  int row;
  if (at >= all) return;
  if (!find_request(p, at / p.query_heads, [](int rows) { return rows; }, request, row)) return;
  const int pieces = cut_of(p, request).pieces, head = at % p.query_heads, D = p.head_size;
  if (pieces == 1) return;  // the attention kernel has written the result itself
  const float mine = lane < pieces ? p.partial_weight[static_cast<int64_t>(lane) * all + at] : -INFINITY;
  float top = mine;
  for (int by = 16; by; by >>= 1) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, by));
  float weight = top == -INFINITY && mine == mine ? 0.0f : exp2_fast(mine - top), sum = weight;
  for (int by = 16; by; by >>= 1) sum += __shfl_xor_sync(kAllLanes, sum, by);
  weight = sum == 0.0f ? 0.0f : weight / sum;
  T* const to = static_cast<T*>(p.out) + (request.first_row + row) * p.out_token_stride + head * p.out_head_stride;
  for (int first = 0; first < D; first += 64) {  // D is even: a lane takes two channels
    const int d = first + 2 * lane;
    float low = 0.0f, high = 0.0f;
    for (int piece = 0; piece < pieces; piece++) {
      const float share = __shfl_sync(kAllLanes, weight, piece);
      if (share == 0.0f || d >= D) continue;
      const float* const from = p.partial_out + (static_cast<int64_t>(piece) * all + at) * D + d;
      const float2 part = *reinterpret_cast<const float2*>(from);
      low = fmaf(share, part.x, low);
      high = fmaf(share, part.y, high);
    }
    if (d < D) narrow(low, to[d]), narrow(high, to[d + 1]);
  }
}

}  // namespace specvlm
