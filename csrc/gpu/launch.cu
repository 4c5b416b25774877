// The C interface of abi/gpu.h, and the kernels that are the same for all dtypes.
#include "launch.cuh"

#include "acceptance.cuh"
#include "growth.cuh"
#include "merge.cuh"
#include "rows.cuh"

#define SPECVLM_EXPORT extern "C" __attribute__((visibility("default")))

namespace specvlm {
namespace {

int processors() {
#if defined(__CUDACC__)
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
    return 1;
  return count;
#else
  return 100;
#endif
}

unsigned blocks_for(int64_t warps) { return static_cast<unsigned>((warps + kThreads / 32 - 1) / (kThreads / 32)); }

template <class T>
int merge(const specvlm_gpu_attention& p, void* stream) {
  SPECVLM_LAUNCH(merge_pieces<T>, dim3(blocks_for(static_cast<int64_t>(p.listed) * p.query_heads)), dim3(kThreads), 0,
                 stream, p);
  return last_error();
}

}  // namespace
}  // namespace specvlm

SPECVLM_EXPORT int specvlm_gpu_abi(void) { return SPECVLM_GPU_ABI; }

SPECVLM_EXPORT int specvlm_gpu_has_head_size(int32_t head_size) {
  return specvlm::by_head_size(head_size, [](auto) { return 0; }) == 0;
}

SPECVLM_EXPORT int specvlm_gpu_splits(const specvlm_gpu_attention* p) {
  // Two blocks a processor; requests have one tile at least, and usually as many as their rows fill.
  const int64_t rows = static_cast<int64_t>(p->listed) * (p->query_heads / p->heads);
  const int64_t tiles = rows / 64 > p->requests ? rows / 64 : p->requests;
  const int64_t blocks = (tiles > 0 ? tiles : 1) * p->heads, splits = (2 * specvlm::processors() + blocks - 1) / blocks;
  constexpr int64_t kMost = SPECVLM_GPU_MOST_SPLITS;
  return static_cast<int>(splits < kMost ? splits : kMost);
}

SPECVLM_EXPORT int specvlm_gpu_attend(const specvlm_gpu_attention* p, void* stream) {
  using namespace specvlm;
  if (p->listed == 0 || p->requests == 0) return 0;
  SPECVLM_LAUNCH(store_rows, dim3(blocks_for(p->listed)), dim3(kThreads), 0, stream, *p);
  int error = last_error();
  if (error) return error;
  error = p->dtype == SPECVLM_FLOAT  ? attend_float(*p, stream)
          : p->dtype == SPECVLM_HALF ? attend_half(*p, stream)
                                     : attend_bfloat16(*p, stream);
  if (error || p->splits == 1) return error;
  return p->dtype == SPECVLM_FLOAT  ? merge<float>(*p, stream)
         : p->dtype == SPECVLM_HALF ? merge<Half>(*p, stream)
                                    : merge<Bf16>(*p, stream);
}

SPECVLM_EXPORT int specvlm_gpu_commit_rows(const specvlm_gpu_commit* p, void* stream) {
  using namespace specvlm;
  if (p->rows == 0 || p->layers == 0) return 0;
  const dim3 grid(blocks_for(p->rows), static_cast<unsigned>(p->layers));
  SPECVLM_LAUNCH(commit_rows, grid, dim3(kThreads), 0, stream, *p);
  return last_error();
}

SPECVLM_EXPORT int specvlm_gpu_walk_trees(const specvlm_walk* p, void* stream) {
  using namespace specvlm;
  if (p->trees == 0) return 0;
  SPECVLM_LAUNCH(walk_trees, dim3((p->trees + kThreads - 1) / kThreads), dim3(kThreads), 0, stream, *p);
  return last_error();
}

SPECVLM_EXPORT int specvlm_gpu_race(const specvlm_race* p, void* stream) {
  using namespace specvlm;
  if (p->rows == 0) return 0;
  SPECVLM_LAUNCH(run_races, dim3(p->rows), dim3(kRaceThreads), 0, stream, *p);
  return last_error();
}

SPECVLM_EXPORT int specvlm_gpu_grow_level(const specvlm_growth* p, void* stream) {
  using namespace specvlm;
  if (p->requests == 0) return 0;
  SPECVLM_LAUNCH(grow_trees, dim3(p->requests), dim3(kThreads), static_cast<size_t>(Candidates::bytes(*p)), stream, *p);
  return last_error();
}

SPECVLM_EXPORT int specvlm_gpu_describe_trees(const specvlm_tree_tables* p, void* stream) {
  using namespace specvlm;
  if (p->requests == 0 || p->capacity == 0) return 0;
  SPECVLM_LAUNCH(describe_trees, dim3(p->requests), dim3(kThreads), 0, stream, *p);
  return last_error();
}

SPECVLM_EXPORT const char* specvlm_gpu_message(int error) {
  if (error == specvlm::kNoSuchKernel) return "no kernel for this head size";
#if defined(__CUDACC__)
  return cudaGetErrorString(static_cast<cudaError_t>(error));
#else
  return "no error";
#endif
}
