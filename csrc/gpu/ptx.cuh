// One wrapper for each PTX instruction that the kernels use (sm_80 and newer). This is the part that emulation cannot
// vouch for: operands and constraints of the strings below.
#pragma once

#include "platform.cuh"

namespace specvlm {

#if defined(__CUDACC__)

template <class T>
struct IsBf16 { static constexpr bool value = false; };
template <>
struct IsBf16<Bf16> { static constexpr bool value = true; };

// d[16 x 8] += a[16 x 16] b[16 x 8], float32 sums.
template <class T>
__device__ __forceinline__ void mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t* b) {
  if constexpr (IsBf16<T>::value)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix(uint32_t (&to)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&to)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

// 16 bytes from global to shared memory, or 16 zero bytes: then `from` is not read.
__device__ __forceinline__ void copy_async16(void* to, const void* from, bool valid) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kKeep>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kKeep) : "memory");
}

// 2^x with a relative error of 2^-22; results below the normal numbers are 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#else

template <class T>
inline void mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t* b) {
  simt::mma16816(d, a, b, __is_same(T, Bf16));
}
inline void ldmatrix(uint32_t (&to)[4], const void* row) { simt::ldmatrix_x4(to, row, false); }
inline void ldmatrix_transposed(uint32_t (&to)[4], const void* row) { simt::ldmatrix_x4(to, row, true); }
inline void copy_async16(void* to, const void* from, bool valid) { simt::copy_async16(to, from, valid); }
inline void commit_copies() { simt::commit_copies(); }
template <int kKeep>
inline void wait_copies() { simt::wait_copies(kKeep); }
inline float exp2_fast(float x) { return simt::exp2_flushed(x); }

#endif

}  // namespace specvlm
