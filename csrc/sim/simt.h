// Runs CUDA kernel source as C++, for tests only: every CUDA thread is a fiber, a block runs on one OS thread.
//
// What it notices by itself (it then prints one line and ends the process with status 66): barriers that not all threads
// reach, or reach at different lines; warp operations whose mask names lanes that never come; misaligned ldmatrix and
// cp.async; launches beyond what every GPU allows. Shared memory starts as NaN. Under AddressSanitizer shared and global
// memory have bounds. Under ThreadSanitizer every CUDA thread is a fiber of its own and only barriers synchronise, so a
// missing barrier is a reported race whatever the schedule was.
#pragma once

#include <stdint.h>

#include <functional>
#include <map>
#include <vector>

#define SIMT_RAW __attribute__((noinline, no_sanitize("thread"), no_sanitize("address"), no_sanitize("undefined")))
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

namespace simt {

enum class State : uint8_t { kRunning, kAtBarrier, kInWarp, kDone };

struct Copy {  // a cp.async on its way
  void* to;
  const void* from;
  bool valid;
};

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  State state = State::kRunning;
  dim3 thread;
  unsigned number = 0;
  int line = 0, operation = 0;
  uint32_t mask = 0;
  void *tsan = nullptr, *asan = nullptr;
  std::vector<std::vector<Copy>> copies;  // groups, the last one not committed yet
  unsigned lane() const { return number & 31; }
};

// A lane's operands of a warp operation. Two generations, since a fast lane may come to the next one early.
struct Slots {
  uint64_t word[32][6];
};
struct Meeting {
  uint32_t mask = 0, arrived = 0;
  unsigned generation = 0;
  Slots slots[2];
};
struct Warp {
  Meeting meetings[8];
  char barrier = 0;
};

struct Block {
  dim3 index, threads, grid;
  size_t dynamic_bytes = 0;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::map<int, void*> shared;
  unsigned waiting = 0;
  uint64_t random = 0;
  bool vote = false, voted = false;
  char barrier = 0;
  void *host_stack_pointer = nullptr, *host_asan = nullptr, *host_tsan = nullptr;
  const void* host_bottom = nullptr;
  size_t host_size = 0;
  const std::function<void()>* body = nullptr;
};

extern thread_local Block* block;
extern thread_local Fiber* fiber;

[[noreturn]] void fail(const char* why);
void set_seed(uint64_t seed);  // 0: threads run in order; else blocks and threads in an order of their own
void barrier(int line);
bool barrier_or(int line, bool vote);
void warp_barrier(uint32_t mask);
void* shared(int site, size_t bytes);
void run(dim3 grid, dim3 threads, size_t dynamic_bytes, const std::function<void()>& body);

// Gives this lane's words and returns all lanes' as soon as every lane of the mask has come to the same operation.
const Slots& meet(uint32_t mask, int operation, const uint64_t* words, int count);

inline unsigned lane() { return fiber->lane(); }

template <class T>
SIMT_RAW T shuffle(uint32_t mask, T value, unsigned source, int operation) {
  static_assert(sizeof(T) <= 8);
  uint64_t word = 0;
  __builtin_memcpy(&word, &value, sizeof(T));
  const Slots& slots = meet(mask, operation, &word, 1);
  if (!(mask >> (source & 31) & 1)) fail("a shuffle reads a lane outside its mask");
  T result;
  __builtin_memcpy(&result, slots.word[source & 31], sizeof(T));
  return result;
}

SIMT_RAW inline uint32_t ballot(uint32_t mask, bool vote) {
  const uint64_t word = vote;
  const Slots& slots = meet(mask, 2, &word, 1);
  uint32_t votes = 0;
  for (int i = 0; i < 32; i++)
    if (mask >> i & 1) votes |= static_cast<uint32_t>(slots.word[i][0] & 1) << i;
  return votes;
}

}  // namespace simt

#define threadIdx (simt::fiber->thread)
#define blockIdx (simt::block->index)
#define blockDim (simt::block->threads)
#define gridDim (simt::block->grid)
#define __syncthreads() simt::barrier(__COUNTER__ * 100000 + __LINE__)
#define __syncthreads_or(vote) simt::barrier_or(__COUNTER__ * 100000 + __LINE__, vote)

inline void __syncwarp(uint32_t mask = ~0u) { simt::warp_barrier(mask); }
template <class T>
T __shfl_sync(uint32_t mask, T value, int source) {
  return simt::shuffle(mask, value, source, 1);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int with) {
  return simt::shuffle(mask, value, simt::lane() ^ with, 3);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned by) {
  const unsigned lane = simt::lane();
  return simt::shuffle(mask, value, lane >= by ? lane - by : lane, 4);
}
inline uint32_t __ballot_sync(uint32_t mask, bool vote) { return simt::ballot(mask, vote); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <class T>
T atomicOr(T* to, T bits) {
  return __atomic_fetch_or(to, bits, __ATOMIC_RELAXED);
}
