// Runs the emulated GPU kernels over random calls and compares them with sums in double precision, and decisions with
// those of the functions that are shared with the CPU. For sanitizers and
// for mutants: buffers are exactly as large as what they hold, and what was never written is NaN.
// Arguments: rounds, seed of the schedule (0: threads in order), and dtypes ("float bfloat16 half").
// Prints "ok", or what is wrong, and then returns 1.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "gpu/acceptance.h"
#include "gpu/attention.h"
#include "gpu/commit.h"
#include "gpu/growth.h"
#include "gpu/wrappers.h"

extern "C" void specvlm_simt_seed(uint64_t seed);
// Stacks of fibers hide what is held.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() { return "detect_leaks=0"; }

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 3;
  const uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 0;
  const std::string dtypes = count > 3 ? arguments[3] : "float bfloat16 half";
  const struct { const char* name; Number number; } kinds[] = {{"float", {SPECVLM_FLOAT, 2e-6}},
                                                               {"bfloat16", {SPECVLM_BFLOAT16, 8e-3}},
                                                               {"half", {SPECVLM_HALF, 1e-3}}};
  for (int i = 0; i < rounds; i++) {
    specvlm_simt_seed(seed ? seed + static_cast<uint64_t>(i) : 0);
    for (const auto& kind : kinds)
      for (int64_t D : {64, 128}) {
        if (dtypes.find(kind.name) == std::string::npos) continue;
        if (!specvlm_gpu_has_head_size(static_cast<int32_t>(D))) continue;
        const double worst = call(kind.number, D);
        if (!(worst <= kind.number.tolerance))
          return std::printf("%s %d: wrong by %g\n", kind.name, static_cast<int>(D), worst), 1;
      }
    if (!wrappers(SPECVLM_BFLOAT16) || !wrappers(SPECVLM_HALF)) return std::printf("try_wrappers: wrong\n"), 1;
    if (!growth()) return std::printf("grow_level: wrong\n"), 1;
    if (!acceptance()) return std::printf("acceptance: wrong\n"), 1;
    if (!commit()) return std::printf("commit_rows: wrong\n"), 1;
  }
  std::puts("ok");
}
