// Starting the attention kernels; attention_<dtype>.cu make them, launch.cu chooses among them.
#pragma once

#include <type_traits>

#include "tables.cuh"

namespace specvlm {

enum { kNoSuchKernel = -1 };

int attend_float(const specvlm_gpu_attention& p, void* stream);
int attend_half(const specvlm_gpu_attention& p, void* stream);
int attend_bfloat16(const specvlm_gpu_attention& p, void* stream);

// More tiles than the requests can have: their rows are known on the device only.
inline unsigned most_tiles(const specvlm_gpu_attention& p, int rows_of_tile) {
  const int64_t rows = static_cast<int64_t>(p.listed) * (p.query_heads / p.heads);
  return static_cast<unsigned>(rows / rows_of_tile + p.requests);
}

inline int last_error() {
#if defined(__CUDACC__)
  return static_cast<int>(cudaGetLastError());
#else
  return 0;
#endif
}

// A kernel with `bytes` of dynamic shared memory, of which devices give more than 48 KiB only when asked.
template <class Kernel>
int launch(Kernel kernel, dim3 grid, size_t bytes, const specvlm_gpu_attention& p, void* stream) {
#if defined(__CUDACC__)
  const cudaError_t refused =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (refused != cudaSuccess) return static_cast<int>(refused);
#endif
  SPECVLM_LAUNCH(kernel, grid, dim3(kThreads), bytes, stream, p);
  return last_error();
}

// Calls start with the head size as a compile-time number, if there is a kernel for it.
template <class Start>
int by_head_size(int head_size, const Start& start) {
#define SPECVLM_HEAD_SIZE(D) \
  if (head_size == D) return start(std::integral_constant<int, D>());
#if !defined(SPECVLM_HEAD_SIZES)
#define SPECVLM_HEAD_SIZES                                                                              \
  SPECVLM_HEAD_SIZE(64) SPECVLM_HEAD_SIZE(80) SPECVLM_HEAD_SIZE(96) SPECVLM_HEAD_SIZE(128) SPECVLM_HEAD_SIZE(256)
#endif
  SPECVLM_HEAD_SIZES
#undef SPECVLM_HEAD_SIZE
  return kNoSuchKernel;
}

}  // namespace specvlm
