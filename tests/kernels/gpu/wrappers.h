// Every PTX instruction by itself.
#pragma once

#include <cmath>
#include <cstring>

#include "states.h"

namespace {

// Every PTX wrapper once: small integers, so that sums are exact.
bool wrappers(int dtype) {
  const Number number = {dtype, 0};
  const States left(number, 16, 1, 16), right(number, 16, 1, 16);
  for (int64_t row = 0; row < 16; row++)
    for (int64_t column = 0; column < 16; column++) {
      number.write(left.at(row, 0, column), static_cast<float>(pick(-8, 9)));
      number.write(right.at(row, 0, column), static_cast<float>(pick(-8, 9)));
    }
  const Buffer<float> exponents(32), product(256), powers(32);
  const Buffer<uint32_t> plain(128), transposed(128), zeroed(128);
  for (int64_t i = 0; i < 32; i++) exponents[i] = static_cast<float>(5 * i - 130);
  specvlm_gpu_wrappers p{};
  p.bf16 = dtype == SPECVLM_BFLOAT16;
  p.left = reinterpret_cast<const uint16_t*>(left.at(0, 0)), p.right = reinterpret_cast<const uint16_t*>(right.at(0, 0));
  p.exponents = exponents.get(), p.plain = plain.get(), p.transposed = transposed.get(), p.zeroed = zeroed.get();
  p.product = product.get(), p.powers = powers.get();
  if (specvlm_gpu_try_wrappers(&p, nullptr)) return false;
  const auto word = [](const char* low, const char* high) {
    uint16_t halves[2];
    std::memcpy(halves, low, 2), std::memcpy(halves + 1, high, 2);
    return halves[0] | static_cast<uint32_t>(halves[1]) << 16;
  };
  bool right_everywhere = true;
  for (int64_t lane = 0; lane < 32; lane++) {
    const int64_t group = lane / 4, pair = lane % 4 * 2;
    for (int64_t i = 0; i < 4; i++) {
      const int64_t lower = i % 2 * 8, beside = i / 2 * 8, at = lane * 4 + i;
      const int64_t row = group + lower, k = lower + pair, column = beside + group;
      right_everywhere &= plain[at] == word(left.at(row, 0, beside + pair), left.at(row, 0, beside + pair + 1));
      right_everywhere &= transposed[at] == word(right.at(k, 0, column), right.at(k + 1, 0, column));
      right_everywhere &= zeroed[at] == 0;
      for (int64_t half = 0; half < 2; half++) {
        float sum = 1;
        for (int64_t j = 0; j < 16; j++) sum += left.get(group + beside, 0, j) * right.get(j, 0, half * 8 + pair + i % 2);
        right_everywhere &= product[half * 128 + at] == sum;
      }
    }
    const double wanted = exponents[lane] < -126 ? 0 : std::exp2(static_cast<double>(exponents[lane]));
    right_everywhere &= std::fabs(powers[lane] - wanted) <= 1e-6 * wanted;
  }
  return right_everywhere;
}

}  // namespace
