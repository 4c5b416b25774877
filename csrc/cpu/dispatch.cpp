// Which variant of the kernels runs on this CPU, and whose arithmetic it follows. Plain x86-64 code.
#include <atomic>
#include <string.h>

#include "../abi/tree_attention.h"

#define SPECVLM_EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {
extern const specvlm_cpu_variant specvlm_cpu_variant_portable;
extern const specvlm_cpu_variant specvlm_cpu_variant_avx2;
extern const specvlm_cpu_variant specvlm_cpu_variant_avx512;
extern const specvlm_cpu_variant specvlm_cpu_variant_avx512_bf16;
}

namespace {

const specvlm_cpu_variant* const kVariants[] = {  // best first
    &specvlm_cpu_variant_avx512_bf16, &specvlm_cpu_variant_avx512, &specvlm_cpu_variant_avx2,
    &specvlm_cpu_variant_portable};

bool runs_here(const specvlm_cpu_variant* variant) {
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("popcnt");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (variant == &specvlm_cpu_variant_avx512_bf16) return v4 && __builtin_cpu_supports("avx512bf16");
  if (variant == &specvlm_cpu_variant_avx512) return v4;
  if (variant == &specvlm_cpu_variant_avx2) return v3;
  return true;
}

const specvlm_cpu_variant* best() {
  for (const specvlm_cpu_variant* variant : kVariants)
    if (runs_here(variant)) return variant;
  return &specvlm_cpu_variant_portable;
}

const specvlm_cpu_variant* find(const char* name) {
  for (const specvlm_cpu_variant* variant : kVariants)
    if (strcmp(variant->name, name) == 0) return variant;
  return nullptr;
}

std::atomic<const specvlm_cpu_variant*> current{nullptr};
std::atomic<int> arithmetic{SPECVLM_AVX512_BF16};
std::atomic<int64_t> half_l2{512 * 1024};

}  // namespace

SPECVLM_EXPORT const specvlm_cpu_variant* specvlm_cpu_current(void) {
  if (!current.load()) current.store(best());
  return current.load();
}

SPECVLM_EXPORT int specvlm_cpu_supports(const char* name) {
  const specvlm_cpu_variant* variant = find(name);
  return variant && runs_here(variant);
}

SPECVLM_EXPORT int specvlm_cpu_choose(const char* name) {
  if (*name == 0) {
    current.store(best());
    return 0;
  }
  if (!specvlm_cpu_supports(name)) return 1;
  current.store(find(name));
  return 0;
}

SPECVLM_EXPORT void specvlm_cpu_follow(int which, int64_t half_l2_bytes) {
  arithmetic.store(which);
  half_l2.store(half_l2_bytes);
}

SPECVLM_EXPORT const char* specvlm_cpu_name(void) { return specvlm_cpu_current()->name; }
SPECVLM_EXPORT int specvlm_cpu_has_fast(void) { return specvlm_cpu_current()->has_fast; }
SPECVLM_EXPORT int specvlm_cpu_arithmetic(void) { return arithmetic.load(); }
SPECVLM_EXPORT int64_t specvlm_cpu_half_l2(void) { return half_l2.load(); }

