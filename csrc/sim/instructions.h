// What the PTX instructions of gpu/ptx.cuh do, lane by lane, as the PTX manual describes them.
#pragma once

#include <math.h>

#include "simt.h"

namespace simt {

inline float widen(uint16_t bits, bool bf16) {
  if (bf16) {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    __builtin_memcpy(&value, &word, 4);
    return value;
  }
  _Float16 value;
  __builtin_memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

// mma.sync.m16n8k16.row.col: rows g and g + 8 of A, column g of B, columns 2t and 2t + 1 of the result in each lane.
// The order in which a GPU adds the sixteen products is its own; here it is k ascending.
SIMT_RAW inline void mma16816(float d[4], const uint32_t a[4], const uint32_t b[2], bool bf16) {
  uint64_t words[3];
  __builtin_memcpy(words, a, 16);
  __builtin_memcpy(words + 2, b, 8);
  const Slots& slots = meet(~0u, 6, words, 3);
  const unsigned g = lane() >> 2, t = lane() & 3;
  float left[2][16], right[2][16];
  for (unsigned k = 0; k < 16; k++)
    for (unsigned i = 0; i < 2; i++) {
      uint16_t row[8], column[4];
      __builtin_memcpy(row, slots.word[g * 4 + k % 8 / 2], 16);
      __builtin_memcpy(column, slots.word[(t * 2 + i) * 4 + k % 8 / 2] + 2, 8);
      left[i][k] = widen(row[(k / 8 * 2 + i) * 2 + k % 2], bf16);
      right[i][k] = widen(column[k / 8 * 2 + k % 2], bf16);
    }
  for (unsigned i = 0; i < 4; i++)
    for (unsigned k = 0; k < 16; k++) d[i] += left[i / 2][k] * right[i % 2][k];
}

// Every lane names one row of 8 halves; lanes 8m .. 8m + 7 those of matrix m.
inline void ldmatrix_x4(uint32_t to[4], const void* row, bool transposed) {
  const uint64_t word = reinterpret_cast<uint64_t>(row);
  if (word & 15) fail("an ldmatrix address is not 16-byte aligned");
  const Slots& slots = meet(~0u, transposed ? 8 : 7, &word, 1);
  const unsigned g = lane() >> 2, t = (lane() & 3) * 2;
  for (unsigned m = 0; m < 4; m++) {
    const auto element = [&](unsigned r, unsigned c) {
      return reinterpret_cast<const uint16_t*>(slots.word[m * 8 + r][0])[c];
    };
    const uint16_t low = transposed ? element(t, g) : element(g, t);
    const uint16_t high = transposed ? element(t + 1, g) : element(g, t + 1);
    to[m] = low | static_cast<uint32_t>(high) << 16;
  }
}

// Plain stores: gcc expands memcpy after ThreadSanitizer's pass, which would not see it then.
inline void put16(void* to, uint64_t low, uint64_t high) {
  volatile uint64_t* const words = static_cast<volatile uint64_t*>(to);
  words[0] = low;
  words[1] = high;
}

// The target turns into NaN at once and gets its value only at the wait.
inline void copy_async16(void* to, const void* from, bool valid) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) & 15)
    fail("a cp.async address is not 16-byte aligned");
  if (fiber->copies.empty()) fiber->copies.emplace_back();
  put16(to, ~0ull, ~0ull);
  fiber->copies.back().push_back({to, from, valid});
}

inline void commit_copies() {
  if (fiber->copies.empty()) fiber->copies.emplace_back();
  fiber->copies.emplace_back();
}

inline void wait_copies(unsigned keep) {
  std::vector<std::vector<Copy>>& groups = fiber->copies;
  while (!groups.empty() && groups.size() - 1 > keep) {
    for (const Copy& copy : groups.front()) {
      const uint64_t* const words = static_cast<const uint64_t*>(copy.from);
      copy.valid ? put16(copy.to, words[0], words[1]) : put16(copy.to, 0, 0);
    }
    groups.erase(groups.begin());
  }
}

// ex2.approx.ftz: results below the normal numbers are 0.
inline float exp2_flushed(float x) {
  const float value = exp2f(x);
  return value < 1.17549435e-38f ? 0.0f : value;
}

}  // namespace simt
