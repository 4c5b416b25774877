// Functions that CPUs and GPUs share. They name every fused multiply-add, since nvcc fuses what it finds and g++ is told
// not to: so the results are the same bits.
#pragma once

#include <math.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define SPECVLM_BOTH __host__ __device__
#else
#define SPECVLM_BOTH
#endif
