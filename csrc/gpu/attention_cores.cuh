// Attention of one tile in float32 without tensor cores: 16 packed rows, 4 a warp; a lane takes one of 32 keys a step.
#pragma once

#include "ptx.cuh"
#include "tables.cuh"

namespace specvlm {

template <int D>
struct CoresShape {
  static constexpr int kRows = 16, kWarpRows = 4, kKeys = 32;
  static constexpr int kWidth = D + 4;  // lanes reading four channels of their keys at once meet every bank once
  static constexpr size_t kBytes = sizeof(float) * (kRows * D + 2 * kKeys * kWidth + kRows * kKeys);
};

template <int D>
class CoresTile {
  typedef CoresShape<D> Shape;
  static constexpr int kKeys = Shape::kKeys, kWidth = Shape::kWidth, kWarpRows = Shape::kWarpRows;
  static constexpr int kGroups = kKeys / kGroup, kPieces = D / 4, kColumns = (D + 31) / 32;

 public:
  __device__ CoresTile(const specvlm_gpu_attention& p, const Tile& tile, const View& view, const Share& share,
                       float* memory)
      : p_(p), tile_(tile), view_(view), share_(share), queries_(memory), keys_(queries_ + Shape::kRows * D),
        values_(keys_ + kKeys * kWidth), walk_(p, tile.request, view.most_upto), warp_(threadIdx.x / 32),
        lane_(threadIdx.x & 31) {
    weights_ = reinterpret_cast<float4*>(values_ + kKeys * kWidth) + warp_ * kKeys;
    left_ = share.end - share.first;
    if (left_ > 0) walk_.seek(share.first);
    segment_ = share.dense ? next_segment<kKeys>(view, 0) : 128 / kKeys;
    load_rows();
  }

  __device__ void run() {
    while (load()) {
      __syncthreads();  // the step's keys and values, and at first the queries, are there
      attend();
      __syncthreads();  // nobody reads them any more
    }
    for (int r = 0; r < kWarpRows; r++) finish(r);
  }

 private:
  __device__ void load_rows() {
    for (int i = threadIdx.x; i < Shape::kRows * D; i += kThreads) {
      const int row = tile_.first + i / D;
      queries_[i] = row < tile_.end ? query_of(row)[i % D] : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < kWarpRows; r++) {
      const int row = tile_.first + warp_ * kWarpRows + r;
      exists_[r] = row < tile_.end;
      listed_[r] = tile_.request.first_listed + (exists_[r] ? row : tile_.first) / tile_.group;
      top_[r] = -INFINITY;
      sum_[r] = 0.0f;
#pragma unroll
      for (int c = 0; c < kColumns; c++) out_[r][c] = 0.0f;
    }
  }

  __device__ const float* query_of(int row) const {
    return static_cast<const float*>(p_.query) + (tile_.request.first_row + row / tile_.group) * p_.query_token_stride +
           (blockIdx.y * tile_.group + row % tile_.group) * p_.query_head_stride;
  }

  // Brings the next step's keys and values, zeros for invisible ones. False: there is no next step.
  __device__ bool load() {
    paged_ = left_ > 0;
    if (paged_) {
#pragma unroll
      for (int q = 0; q < kGroups; q++) {
        Group group = {0, 0, 0, 0};
        if (left_ > 0) group = walk_.next(), left_--;
        bounds_[q] = make_int4(group.position, group.low, group.high, 0);
        const int64_t head = blockIdx.y * p_.cache_head_stride;
        for (int piece = threadIdx.x; piece < kGroup * kPieces; piece += kThreads) {
          const int slot = piece / kPieces;
          const bool valid = group.position + slot >= group.low && group.position + slot < group.high;
          const int64_t at = head + group.offset + slot * p_.cache_slot_stride;
          copy(q * kGroup + slot, piece % kPieces * 4, p_.cache_key, p_.cache_value, at, at, valid);
        }
      }
      return true;
    }
    if (segment_ == 128 / kKeys) return false;
    const uint32_t seen = view_.word(segment_);
    for (int piece = threadIdx.x; piece < kKeys * kPieces; piece += kThreads) {
      const int key = piece / kPieces;
      const int64_t row = tile_.request.dense_start + segment_ * kKeys + key;
      copy(key, piece % kPieces * 4, p_.dense_key, p_.dense_value,
           row * p_.dense_key_row_stride + blockIdx.y * p_.dense_key_head_stride,
           row * p_.dense_value_row_stride + blockIdx.y * p_.dense_value_head_stride, seen >> key & 1);
    }
    loaded_segment_ = segment_;
    segment_ = next_segment<kKeys>(view_, segment_ + 1);
    return true;
  }

  __device__ void copy(int key, int column, const void* keys, const void* values, int64_t key_at, int64_t value_at,
                       bool valid) {
    const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    *reinterpret_cast<float4*>(keys_ + key * kWidth + column) =
        valid ? *reinterpret_cast<const float4*>(static_cast<const float*>(keys) + key_at + column) : zero;
    *reinterpret_cast<float4*>(values_ + key * kWidth + column) =
        valid ? *reinterpret_cast<const float4*>(static_cast<const float*>(values) + value_at + column) : zero;
  }

  __device__ void attend() {
    float logits[kWarpRows] = {};
    const float* const key = keys_ + lane_ * kWidth;
    const float* const queries = queries_ + warp_ * kWarpRows * D;
#pragma unroll 4
    for (int d = 0; d < D; d += 4) {
      const float4 k = *reinterpret_cast<const float4*>(key + d);
#pragma unroll
      for (int r = 0; r < kWarpRows; r++) {
        const float4 q = *reinterpret_cast<const float4*>(queries + r * D + d);
        logits[r] = fmaf(q.w, k.w, fmaf(q.z, k.z, fmaf(q.y, k.y, fmaf(q.x, k.x, logits[r]))));
      }
    }
#pragma unroll
    for (int r = 0; r < kWarpRows; r++) softmax(logits[r], r);
    weights_[lane_] = make_float4(logits[0], logits[1], logits[2], logits[3]);
    __syncwarp();  // those of the step before were read before the block's last barrier
    // A weight of 0 leaves a value out: it may be infinite, in a branch the row does not see.
    for (int k = 0; k < kKeys; k++) {
      const float4 weight = weights_[k];
      const float each[kWarpRows] = {weight.x, weight.y, weight.z, weight.w};
#pragma unroll
      for (int c = 0; c < kColumns; c++) {
        if (D % 32 && c * 32 + lane_ >= D) continue;
        const float value = values_[k * kWidth + c * 32 + lane_];
#pragma unroll
        for (int r = 0; r < kWarpRows; r++)
          if (each[r] != 0.0f) out_[r][c] = fmaf(each[r], value, out_[r][c]);
      }
    }
  }

  __device__ bool sees(int r) const {
    if (!exists_[r]) return false;
    const uint64_t* const ancestors = p_.ancestors + 2 * static_cast<int64_t>(listed_[r]);
    if (!paged_) return dense_bits<kKeys>(ancestors, loaded_segment_ * kKeys) >> lane_ & 1;
    const int from = p_.visible_from ? p_.visible_from[listed_[r]] : 0;
    return paged_bits<kKeys>(bounds_, from, p_.visible_upto[listed_[r]]) >> lane_ & 1;
  }

  // The lane's logit of row r becomes its weight; sum and output so far are brought to the new maximum.
  __device__ void softmax(float& x, int r) {
    x *= p_.scale;
    if (p_.soft_cap > 0.0f) x = p_.soft_cap * tanhf(x / p_.soft_cap);
    if (!sees(r)) x = -INFINITY;
    float top = x;
    for (int by = 16; by; by >>= 1) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, by));
    top = fmaxf(top, top_[r]);
    const float base = top == -INFINITY ? 0.0f : top, factor = expf(top_[r] - base);
    x = expf(x - base);
    float sum = x;
    for (int by = 16; by; by >>= 1) sum += __shfl_xor_sync(kAllLanes, sum, by);
    sum_[r] = sum_[r] * factor + sum;
    top_[r] = top;
#pragma unroll
    for (int c = 0; c < kColumns; c++) out_[r][c] *= factor;
  }

  __device__ void finish(int r) {
    if (!exists_[r]) return;
    const int row = tile_.first + warp_ * kWarpRows + r, head = blockIdx.y * tile_.group + row % tile_.group;
    const float inverse = sum_[r] == 0.0f ? 0.0f : 1.0f / sum_[r];
    const int64_t at = (static_cast<int64_t>(blockIdx.z) * p_.listed + listed_[r]) * p_.query_heads + head;
    float* const to = share_.pieces > 1
                          ? p_.partial_out + at * D
                          : static_cast<float*>(p_.out) + head * p_.out_head_stride +
                                (tile_.request.first_row + row / tile_.group) * p_.out_token_stride;
#pragma unroll
    for (int c = 0; c < kColumns; c++)
      if (D % 32 == 0 || c * 32 + lane_ < D) to[c * 32 + lane_] = out_[r][c] * inverse;
    if (share_.pieces > 1 && lane_ == 0)
      p_.partial_weight[at] = sum_[r] == 0.0f ? -INFINITY : top_[r] * 1.4426950408889634f + log2f(sum_[r]);
  }

  const specvlm_gpu_attention& p_;
  const Tile& tile_;
  const View& view_;
  const Share& share_;
  float *const queries_, *const keys_, *const values_;
  float4* weights_;
  Groups walk_;
  const int warp_, lane_;
  int left_, segment_, loaded_segment_ = 0;
  bool paged_ = false;
  int4 bounds_[kGroups];
  bool exists_[kWarpRows];
  int listed_[kWarpRows];
  float out_[kWarpRows][kColumns], top_[kWarpRows], sum_[kWarpRows];
};

template <int D>
__global__ void __launch_bounds__(kThreads, 3) attend_cores(const __grid_constant__ specvlm_gpu_attention p) {
  SPECVLM_DYNAMIC_SHARED(memory);
  Tile tile;
  if (!find_tile<CoresShape<D>::kRows>(p, tile)) return;
  const View view = view_of(p, tile);
  Share share;
  if (!share_of(p, tile, view, blockIdx.z, share)) return;
  CoresTile<D>(p, tile, view, share, reinterpret_cast<float*>(memory)).run();
}

}  // namespace specvlm
