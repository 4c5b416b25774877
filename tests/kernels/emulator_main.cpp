// One small kernel for each mistake that the emulator, alone or under a sanitizer, must notice, and some without any.
// Argument: the kernel's name. Returns 1 if the result is not what it should be.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../csrc/gpu/ptx.cuh"

// Stacks of fibers hide what is held.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() { return "detect_leaks=0"; }

using specvlm::kAllLanes;
typedef int32_t* Ints;

void no_mistake(Ints out) {
  SPECVLM_SHARED(int, s, 64);
  s[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = s[63 - threadIdx.x];
}
void warp_barrier(Ints out) {
  SPECVLM_SHARED(int, s, 64);
  s[threadIdx.x] = static_cast<int>(threadIdx.x) ^ 1;
  __syncwarp();
  out[threadIdx.x] = 63 - s[threadIdx.x ^ 1];
}
void atomics(Ints out) {
  SPECVLM_SHARED(unsigned, s, 2);
  if (threadIdx.x < 2) s[threadIdx.x] = 0;
  __syncthreads();
  atomicOr(s + threadIdx.x / 32, 1u << threadIdx.x % 32);
  __syncthreads();
  out[threadIdx.x] = s[0] == ~0u && s[1] == ~0u ? 63 - static_cast<int>(threadIdx.x) : -1;
}
void copies(Ints out) {
  SPECVLM_SHARED(uint4, s, 64);
  SPECVLM_SHARED(int, from, 256);
  for (int i = 0; i < 4; i++) from[4 * threadIdx.x + i] = 63 - static_cast<int>(threadIdx.x);
  __syncthreads();
  specvlm::copy_async16(s + threadIdx.x, from + 4 * threadIdx.x, true);
  specvlm::commit_copies();
  specvlm::wait_copies<0>();
  __syncthreads();
  out[threadIdx.x] = static_cast<int>(s[threadIdx.x].w);
}

void wrong_barrier(Ints out) {
  if (threadIdx.x < 32) __syncthreads();
  else __syncthreads();
  out[threadIdx.x] = 0;
}
void missing_thread(Ints out) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  out[threadIdx.x] = 0;
}
void absent_lanes(Ints out) {
  int v = 0;
  if (threadIdx.x & 1) v = __shfl_xor_sync(kAllLanes, 1, 1);
  out[threadIdx.x] = v;
}
void unwritten(Ints out) {
  SPECVLM_SHARED(float, s, 64);
  if (threadIdx.x) s[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x] == 1.0f ? 63 - static_cast<int>(threadIdx.x) : -1;
}
void no_wait(Ints out) {
  SPECVLM_SHARED(uint4, s, 64);
  specvlm::copy_async16(s + threadIdx.x, out, true);
  specvlm::commit_copies();
}
void early_read(Ints out) {
  SPECVLM_SHARED(uint4, s, 64);
  SPECVLM_SHARED(int, from, 256);
  for (int i = 0; i < 4; i++) from[4 * threadIdx.x + i] = 63 - static_cast<int>(threadIdx.x);
  specvlm::copy_async16(s + threadIdx.x, from + 4 * threadIdx.x, true);
  specvlm::commit_copies();
  out[threadIdx.x] = static_cast<int>(s[threadIdx.x].w);
  specvlm::wait_copies<0>();
}
void misaligned(Ints out) {
  SPECVLM_SHARED(uint4, s, 65);
  specvlm::copy_async16(reinterpret_cast<char*>(s) + 8, out, true);
  specvlm::wait_copies<0>();
}
void outside_shared(Ints out) {
  SPECVLM_SHARED(int, s, 64);
  s[threadIdx.x + 64] = 1;
  out[threadIdx.x] = 0;
}
void outside_global(Ints out) { out[threadIdx.x + 1] = 1; }
void no_barrier(Ints out) {
  SPECVLM_SHARED(int, s, 64);
  s[threadIdx.x] = 1;
  out[threadIdx.x] = s[63 - threadIdx.x];
}
void shuffle_as_barrier(Ints out) {  // a shuffle does not order memory
  SPECVLM_SHARED(int, s, 64);
  s[threadIdx.x] = 1;
  const int v = __shfl_xor_sync(kAllLanes, 1, 1);
  out[threadIdx.x] = v + s[threadIdx.x ^ 1];
}
void two_blocks(Ints out) { out[threadIdx.x] = static_cast<int>(blockIdx.x); }

int main(int count, char** arguments) {
  if (count < 2) return 2;
#define ENTRY(name) {#name, name}
  const struct { const char* name; void (*kernel)(Ints); } all[] = {
      ENTRY(no_mistake), ENTRY(warp_barrier), ENTRY(atomics), ENTRY(copies), ENTRY(wrong_barrier), ENTRY(missing_thread),
      ENTRY(absent_lanes), ENTRY(unwritten), ENTRY(no_wait), ENTRY(early_read), ENTRY(misaligned),
      ENTRY(outside_shared), ENTRY(outside_global), ENTRY(no_barrier), ENTRY(shuffle_as_barrier), ENTRY(two_blocks)};
  Ints out = static_cast<Ints>(std::aligned_alloc(64, 256));
  std::memset(out, 0xff, 256);
  for (const auto& entry : all) {
    if (std::strcmp(entry.name, arguments[1])) continue;
    SPECVLM_LAUNCH(entry.kernel, dim3(std::strcmp(entry.name, "two_blocks") ? 1 : 2), dim3(64), 0, nullptr, out);
    for (int i = 0; i < 64; i++)
      if (out[i] != 63 - i) return 1;
    return 0;
  }
  return 2;
}
