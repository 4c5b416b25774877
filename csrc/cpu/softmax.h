// One step of the online softmax over one row, exactly as vLLM takes it (docs/kernels.md, "Arithmetic on CPUs").
#pragma once

#include <float.h>

#include "../abi/tree_attention.h"
#include "lanes.h"

namespace {

struct RowState {
  float maximum = -FLT_MAX, sum = 0.0f;
};

// logits[0, n) become probabilities relative to state.maximum, which `keep(i, lanes)` stores 16 at a time (it may write
// to logits below i + 16); up to the next multiple of 16 they are 0. `prepare` is applied to the logits first.
// Returns the factor by which what was accumulated before must be scaled (1: leave it).
template <class Prepare, class Exp, class Keep>
float softmax_row(float* logits, int64_t n, RowState& state, bool in_line, const Prepare& prepare,
                  const Exp& exponential, const Keep& keep) {
  const int64_t end = round_up(n, 16);
  for (int64_t i = n; i < end; i++) logits[i] = -INFINITY;
  Lanes top = prepare(load(logits));
  for (int64_t i = 16; i < end; i += 16) top = max(top, prepare(load(logits + i)));
  const float highest = largest(top), seen = highest > state.maximum ? highest : state.maximum;
  const float difference = state.maximum - seen;
  const bool rescale = difference < -8.0f;
  if (rescale) state.maximum = seen;

  const Lanes base = broadcast(state.maximum);
  Lanes sums = broadcast(0.0f);
  for (int64_t i = 0; i < end; i += 16) {
    const Lanes probability = exponential(prepare(load(logits + i)) - base);
    keep(i, probability);
    sums = sums + probability;
  }
  const float sum = in_line ? sum_in_line(sums) : sum_folded(sums);
  if (!rescale) {
    state.sum = sum + state.sum;
    return 1.0f;
  }
  const float factor = expf(difference);
  state.sum = __builtin_fmaf(factor, state.sum, sum);
  return factor;
}

}  // namespace
