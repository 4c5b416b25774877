// Runs every wrapper of ptx.cuh once, so that a user's GPU can say whether their PTX means what the emulator takes it for.
#include "launch.cuh"
#include "ptx.cuh"

namespace specvlm {
namespace {

// One warp. Lane l of ldmatrix names row l % 8 of matrix l / 8: those of the first operand of mma, and, transposed, those
// of two second operands side by side.
template <class T>
__global__ void __launch_bounds__(32) try_wrappers(const __grid_constant__ specvlm_gpu_wrappers p) {
  SPECVLM_SHARED(uint4, tile, 96);  // left, right and zeros: 16 rows of two 16-byte pieces each
  const int lane = threadIdx.x;
  const int piece = (lane % 8 + lane / 8 % 2 * 8) * 2 + lane / 16;
  copy_async16(tile + lane, p.left + 8 * lane, true);
  copy_async16(tile + 64 + lane, p.left + 8 * lane, false);
  commit_copies();
  copy_async16(tile + 32 + lane, p.right + 8 * lane, true);
  commit_copies();
  wait_copies<1>();
  __syncwarp();
  uint32_t left[4], right[4];
  ldmatrix(left, tile + piece);
  wait_copies<0>();
  __syncwarp();
  ldmatrix_transposed(right, tile + 32 + piece);
  const uint4 zeros = tile[64 + lane];
  const uint32_t zeroed[4] = {zeros.x, zeros.y, zeros.z, zeros.w};
  for (int half = 0; half < 2; half++) {
    float sums[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    mma16816<T>(sums, left, right + 2 * half);
    for (int i = 0; i < 4; i++) p.product[(half * 32 + lane) * 4 + i] = sums[i];
  }
  for (int i = 0; i < 4; i++) {
    p.plain[lane * 4 + i] = left[i];
    p.transposed[lane * 4 + i] = right[i];
    p.zeroed[lane * 4 + i] = zeroed[i];
  }
  p.powers[lane] = exp2_fast(p.exponents[lane]);
}

template <class T>
int start(const specvlm_gpu_wrappers& p, void* stream) {
  SPECVLM_LAUNCH(try_wrappers<T>, dim3(1), dim3(32), 0, stream, p);
  return last_error();
}

}  // namespace
}  // namespace specvlm

extern "C" __attribute__((visibility("default"))) int specvlm_gpu_try_wrappers(const specvlm_gpu_wrappers* p,
                                                                               void* stream) {
  return p->bf16 ? specvlm::start<specvlm::Bf16>(*p, stream) : specvlm::start<specvlm::Half>(*p, stream);
}
