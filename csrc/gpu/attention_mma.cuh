// Attention of one tile on tensor cores: 64 packed rows, 16 a warp; kKeys keys a step, the next step's on their way.
#pragma once

#include "ptx.cuh"
#include "tables.cuh"

namespace specvlm {

constexpr float kLog2E = 1.4426950408889634f;

template <class T, int D>
struct MmaShape {
  static constexpr int kRows = 64;
  static constexpr int kKeys = D > 128 ? 32 : 64;
  static constexpr int kWidth = D + 8;  // an odd number of 16-byte pieces a row: ldmatrix meets every bank once
  static constexpr int kBlocks = D == 64 ? 3 : 2;  // on a processor at once, as far as registers go
  static constexpr size_t kBytes = 4 * static_cast<size_t>(kKeys) * kWidth * sizeof(T);
};

// Elements of T with the exponent of infinities and NaN.
template <class T>
__device__ __forceinline__ bool has_special(uint4 piece) {
  T one;
  narrow(INFINITY, one);
  const uint32_t low = reinterpret_cast<const uint16_t&>(one), high = low << 16;
  const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
  bool found = false;
#pragma unroll
  for (int i = 0; i < 4; i++) found = found || (words[i] & low) == low || (words[i] & high) == high;
  return found;
}

template <class T, int D>
class MmaTile {
  typedef MmaShape<T, D> Shape;
  static constexpr int kKeys = Shape::kKeys, kWidth = Shape::kWidth, kGroups = kKeys / kGroup, kPieces = D / 8;
  static constexpr bool kKeepQuery = D <= 128;  // beyond, there are too few registers: read again each step

 public:
  __device__ MmaTile(const specvlm_gpu_attention& p, const Tile& tile, const View& view, const Share& share, T* memory,
                     int4* groups, uint32_t* special)
      : p_(p), tile_(tile), view_(view), share_(share), keys_(memory), values_(memory + 2 * kKeys * kWidth),
        groups_(groups), special_(special), walk_(p, tile.request, view.most_upto), warp_(threadIdx.x / 32),
        lane_(threadIdx.x & 31) {
    paged_steps_ = (share.end - share.first + kGroups - 1) / kGroups;
    left_ = share.end - share.first;
    if (left_ > 0) walk_.seek(share.first);
    segment_ = share.dense ? next_segment<kKeys>(view, 0) : 128 / kKeys;
    active_ = tile.first + 16 * warp_ < tile.end;
    load_rows();
  }

  __device__ void run() {
    bool more = load(0), plain = plain_;
    for (int step = 0; more; step++) {
      const int stage = step & 1, segment = loaded_segment_;
      const bool paged = step < paged_steps_;
      more = load(stage ^ 1);
      if (more) wait_copies<1>();
      else wait_copies<0>();
      __syncthreads();  // everybody's pieces of this step are there
      const uint64_t special = plain ? 0 : set_specials_aside(values_ + stage * kKeys * kWidth);
      if (active_) attend(stage, plain, paged, segment, special);
      __syncthreads();  // nobody reads this step's memory any more
      plain = plain_;
    }
    if (active_) finish();
  }

 private:
  __device__ void load_rows() {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int row = tile_.first + 16 * warp_ + lane_ / 4 + 8 * i;
      exists_[i] = row < tile_.end;
      const int token = (exists_[i] ? row : tile_.first) / tile_.group;
      const int head = blockIdx.y * tile_.group + (exists_[i] ? row : tile_.first) % tile_.group;
      listed_[i] = tile_.request.first_listed + token;
      upto_[i] = exists_[i] ? p_.visible_upto[listed_[i]] : 0;
      from_[i] = p_.visible_from ? p_.visible_from[listed_[i]] : 0;
      query_at_[i] = static_cast<const T*>(p_.query) + (tile_.request.first_row + token) * p_.query_token_stride +
                     head * p_.query_head_stride + lane_ % 4 * 2;
      top_[i] = -INFINITY;
      sum_[i] = 0.0f;
    }
    if (kKeepQuery) {
#pragma unroll
      for (int k = 0; k < D / 16; k++) load_query(k, query_[k]);
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
      for (int j = 0; j < 4; j++) out_[n][j] = 0.0f;
  }

  // Channels 16 k .. 16 k + 15 of the queries, as the left operand.
  __device__ void load_query(int k, uint32_t (&to)[4]) const {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        to[2 * half + i] = exists_[i] ? *reinterpret_cast<const uint32_t*>(query_at_[i] + 16 * k + 8 * half) : 0;
  }

  // Sends for the keys and values of the next step and notes what of it is visible. False: there is none.
  __device__ bool load(int stage) {
    T* const keys = keys_ + stage * kKeys * kWidth;
    T* const values = values_ + stage * kKeys * kWidth;
    if (left_ > 0) {
      load_paged(stage, keys, values);
    } else if (segment_ < 128 / kKeys) {
      load_dense(keys, values);
      loaded_segment_ = segment_;
      segment_ = next_segment<kKeys>(view_, segment_ + 1);
      plain_ = false;
    } else {
      return false;
    }
    commit_copies();
    return true;
  }

  __device__ void load_paged(int stage, T* keys, T* values) {
    const T* const cached_keys = static_cast<const T*>(p_.cache_key) + blockIdx.y * p_.cache_head_stride;
    const T* const cached_values = static_cast<const T*>(p_.cache_value) + blockIdx.y * p_.cache_head_stride;
    plain_ = true;
#pragma unroll
    for (int q = 0; q < kGroups; q++) {
      Group group = {0, 0, 0, 0};
      if (left_ > 0) group = walk_.next(), left_--;
      plain_ = plain_ && group.high - group.low == kGroup && group.high <= view_.least_upto &&
               group.low >= view_.most_from;
      if (static_cast<int>(threadIdx.x) == q)
        groups_[stage * kGroups + q] = make_int4(group.position, group.low, group.high, 0);
#pragma unroll
      for (int i = 0; i < (kGroup * kPieces + kThreads - 1) / kThreads; i++) {
        const int piece = i * kThreads + threadIdx.x, slot = piece / kPieces, column = piece % kPieces * 8;
        if (kGroup * kPieces % kThreads && piece >= kGroup * kPieces) break;
        const bool valid = group.position + slot >= group.low && group.position + slot < group.high;
        const int64_t at = group.offset + (valid ? slot : 0) * p_.cache_slot_stride + column;
        copy_async16(keys + (q * kGroup + slot) * kWidth + column, cached_keys + at, valid);
        copy_async16(values + (q * kGroup + slot) * kWidth + column, cached_values + at, valid);
      }
    }
  }

  __device__ void load_dense(T* keys, T* values) {
    const T* const dense_keys = static_cast<const T*>(p_.dense_key) + blockIdx.y * p_.dense_key_head_stride;
    const T* const dense_values = static_cast<const T*>(p_.dense_value) + blockIdx.y * p_.dense_value_head_stride;
    for (int piece = threadIdx.x; piece < kKeys * kPieces; piece += kThreads) {
      const int key = piece / kPieces, column = piece % kPieces * 8, bit = segment_ * kKeys + key;
      const bool valid = view_.word(bit / 32) >> bit % 32 & 1;
      const int64_t row = valid ? tile_.request.dense_start + bit : 0;
      copy_async16(keys + key * kWidth + column, dense_keys + row * p_.dense_key_row_stride + column, valid);
      copy_async16(values + key * kWidth + column, dense_values + row * p_.dense_value_row_stride + column, valid);
    }
  }

  // Infinite and NaN values become 0, since weight 0 times such a value is NaN in rows that do not see the key. Returns
  // their keys as bits: a row that does see one becomes NaN. Called by the whole block.
  __device__ uint64_t set_specials_aside(T* values) {
    bool any = false;
    for (int piece = threadIdx.x; piece < kKeys * kPieces; piece += kThreads) {
      const T* const at = values + piece / kPieces * kWidth + piece % kPieces * 8;
      any = any || has_special<T>(*reinterpret_cast<const uint4*>(at));
    }
    if (!__syncthreads_or(any)) return 0;
    if (threadIdx.x < 2) special_[threadIdx.x] = 0;
    __syncthreads();
    for (int piece = threadIdx.x; piece < kKeys * kPieces; piece += kThreads) {
      const int key = piece / kPieces;
      uint4* const at = reinterpret_cast<uint4*>(values + key * kWidth + piece % kPieces * 8);
      if (!has_special<T>(*at)) continue;
      atomicOr(special_ + key / 32, 1u << key % 32);
      *at = make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
    return special_[0] | static_cast<uint64_t>(special_[1]) << 32;
  }

  __device__ void attend(int stage, bool plain, bool paged, int segment, uint64_t special) {
    float logits[kKeys / 8][4];
    products(keys_ + stage * kKeys * kWidth, logits);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      if (!plain) {
        uint64_t seen = paged ? paged_bits<kKeys>(groups_ + stage * kGroups, from_[i], upto_[i])
                              : dense_bits<kKeys>(p_.ancestors + 2 * static_cast<int64_t>(listed_[i]), segment * kKeys);
        if (!exists_[i]) seen = 0;
        if (seen & special) sum_[i] = NAN;
        seen >>= lane_ % 4 * 2;
#pragma unroll
        for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
          for (int j = 0; j < 2; j++)
            if (!(seen >> (8 * n + j) & 1)) logits[n][2 * i + j] = -INFINITY;
      }
      softmax(logits, i);
    }
    add_values(values_ + stage * kKeys * kWidth, logits);
  }

  __device__ void products(const T* keys, float (&logits)[kKeys / 8][4]) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
      for (int j = 0; j < 4; j++) logits[n][j] = 0.0f;
    const T* const mine = keys + (lane_ / 16 * 8 + lane_ % 8) * kWidth + lane_ / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
      if (!kKeepQuery) load_query(k, query_[0]);
      const uint32_t(&query)[4] = query_[kKeepQuery ? k : 0];
#pragma unroll
      for (int n = 0; n < kKeys / 16; n++) {
        uint32_t b[4];
        ldmatrix(b, mine + n * 16 * kWidth + k * 16);
        mma16816<T>(logits[2 * n], query, b);
        mma16816<T>(logits[2 * n + 1], query, b + 2);
      }
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
      for (int j = 0; j < 4; j++) logits[n][j] *= p_.scale * kLog2E;
    if (p_.soft_cap > 0.0f) cap(logits);
  }

  // cap * tanh(x / cap), with tanh(y) = 1 - 2 / (1 + e^2y): wrong by some 1e-7 of the cap.
  __device__ void cap(float (&logits)[kKeys / 8][4]) {
    const float cap = p_.soft_cap * kLog2E, twice = 2.0f / p_.soft_cap;
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float& x = logits[n][j];
        x = cap - 2.0f * cap / (1.0f + exp2_fast(x * twice));
      }
  }

  // Logits of row i become weights; sum and output so far are brought to the new maximum.
  __device__ void softmax(float (&logits)[kKeys / 8][4], int i) {
    float top = top_[i];
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++) top = fmaxf(top, fmaxf(logits[n][2 * i], logits[n][2 * i + 1]));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    const float base = top == -INFINITY ? 0.0f : top, factor = exp2_fast(top_[i] - base);
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float& x = logits[n][2 * i + j];
        x = exp2_fast(x - base);
        sum += x;
      }
    sum_[i] = sum_[i] * factor + sum;
    top_[i] = top;
#pragma unroll
    for (int n = 0; n < D / 8; n++) out_[n][2 * i] *= factor, out_[n][2 * i + 1] *= factor;
  }

  __device__ void add_values(const T* values, const float (&weights)[kKeys / 8][4]) {
    const T* const mine = values + (lane_ / 8 % 2 * 8 + lane_ % 8) * kWidth + lane_ / 16 * 8;
#pragma unroll
    for (int k = 0; k < kKeys / 16; k++) {
      const float(&left)[4] = weights[2 * k], (&right)[4] = weights[2 * k + 1];
      const uint32_t a[4] = {pack<T>(left[0], left[1]), pack<T>(left[2], left[3]), pack<T>(right[0], right[1]),
                             pack<T>(right[2], right[3])};
#pragma unroll
      for (int n = 0; n < D / 16; n++) {
        uint32_t b[4];
        ldmatrix_transposed(b, mine + k * 16 * kWidth + n * 16);
        mma16816<T>(out_[2 * n], a, b);
        mma16816<T>(out_[2 * n + 1], a, b + 2);
      }
    }
  }

  __device__ void finish() {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float sum = sum_[i];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      if (!exists_[i]) continue;
      const int row = tile_.first + 16 * warp_ + lane_ / 4 + 8 * i, head = blockIdx.y * tile_.group + row % tile_.group;
      const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
      if (share_.pieces == 1) {
        T* const to = static_cast<T*>(p_.out) + head * p_.out_head_stride +
                      (tile_.request.first_row + row / tile_.group) * p_.out_token_stride + lane_ % 4 * 2;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
          *reinterpret_cast<uint32_t*>(to + 8 * n) = pack<T>(out_[n][2 * i] * inverse, out_[n][2 * i + 1] * inverse);
      } else {
        const int64_t at = (static_cast<int64_t>(blockIdx.z) * p_.listed + listed_[i]) * p_.query_heads + head;
        float* const to = p_.partial_out + at * D + lane_ % 4 * 2;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
          *reinterpret_cast<float2*>(to + 8 * n) = make_float2(out_[n][2 * i] * inverse, out_[n][2 * i + 1] * inverse);
        if (lane_ % 4 == 0) p_.partial_weight[at] = sum == 0.0f ? -INFINITY : top_[i] + log2f(sum);
      }
    }
  }

  const specvlm_gpu_attention& p_;
  const Tile& tile_;
  const View& view_;
  const Share& share_;
  T *const keys_, *const values_;
  int4* const groups_;
  uint32_t* const special_;
  Groups walk_;
  const int warp_, lane_;
  int paged_steps_, left_, segment_, loaded_segment_ = 0;
  bool plain_ = false, active_;
  bool exists_[2];
  int listed_[2], upto_[2], from_[2];
  const T* query_at_[2];
  uint32_t query_[kKeepQuery ? D / 16 : 1][4];
  float out_[D / 8][4], top_[2], sum_[2];
};

template <class T, int D>
__global__ void __launch_bounds__(kThreads, MmaShape<T, D>::kBlocks)
    attend_mma(const __grid_constant__ specvlm_gpu_attention p) {
  typedef MmaShape<T, D> Shape;
  SPECVLM_DYNAMIC_SHARED(memory);
  SPECVLM_SHARED(int4, groups, 2 * Shape::kKeys / kGroup);
  SPECVLM_SHARED(uint32_t, special, 2);
  Tile tile;
  if (!find_tile<Shape::kRows>(p, tile)) return;
  const View view = view_of(p, tile);
  Share share;
  if (!share_of(p, tile, view, blockIdx.z, share)) return;
  MmaTile<T, D>(p, tile, view, share, reinterpret_cast<T*>(memory), groups, special).run();
}

}  // namespace specvlm
