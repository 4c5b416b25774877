// The same kernels for nvcc and, in tests, for g++ with the emulator of csrc/sim.
#pragma once

#include <math.h>
#include <stdint.h>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SPECVLM_SHARED(T, name, n) __shared__ T name[n]
#define SPECVLM_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define SPECVLM_LAUNCH(kernel, grid, block, bytes, stream, argument) \
  kernel<<<grid, block, bytes, static_cast<cudaStream_t>(stream)>>>(argument)
#else
#include "../sim/instructions.h"
#define SPECVLM_SHARED(T, name, n) T* const name = static_cast<T*>(simt::shared(__COUNTER__, sizeof(T) * (n)))
#define SPECVLM_DYNAMIC_SHARED(name) \
  unsigned char* const name = static_cast<unsigned char*>(simt::shared(-1, simt::block->dynamic_bytes))
#define SPECVLM_LAUNCH(kernel, grid, block, bytes, stream, argument) \
  (static_cast<void>(stream), simt::run(grid, block, bytes, [&] { kernel(argument); }))
#endif

namespace specvlm {

constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kThreads = 128;  // of every block: 4 warps

#if defined(__CUDACC__)
typedef __half Half;
typedef __nv_bfloat16 Bf16;
__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(float x, Half& to) { to = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, Bf16& to) { to = __float2bfloat16_rn(x); }
#else
struct Half { uint16_t bits; };
struct Bf16 { uint16_t bits; };
inline void narrow(float x, float& to) { to = x; }
inline void narrow(float x, Half& to) {
  const _Float16 value = static_cast<_Float16>(x);
  __builtin_memcpy(&to, &value, 2);
}
inline void narrow(float x, Bf16& to) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  to.bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#endif

// Two neighbouring elements in a register, the first one in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack(float first, float second) {
  T low, high;
  narrow(first, low), narrow(second, high);
  return static_cast<uint32_t>(reinterpret_cast<const uint16_t&>(high)) << 16 | reinterpret_cast<const uint16_t&>(low);
}

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int larger(int a, int b) { return a > b ? a : b; }

__device__ __forceinline__ int warp_max(int x) {
  for (int by = 16; by; by >>= 1) x = larger(x, __shfl_xor_sync(kAllLanes, x, by));
  return x;
}
__device__ __forceinline__ uint32_t warp_or(uint32_t x) {
  for (int by = 16; by; by >>= 1) x |= __shfl_xor_sync(kAllLanes, x, by);
  return x;
}

}  // namespace specvlm
