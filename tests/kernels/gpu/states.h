// What calls are made of: random numbers, buffers as large as what they hold, and rows of any dtype.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../../../csrc/abi/gpu.h"

namespace {

std::mt19937 rng(1);
int64_t pick(int64_t low, int64_t high) { return low + static_cast<int64_t>(rng() % static_cast<uint64_t>(high - low)); }

template <class T>
class Buffer {  // exactly `count` elements of NaN bytes, aligned as the GPU's memory would be
 public:
  explicit Buffer(int64_t count) : data_(static_cast<T*>(std::aligned_alloc(16, bytes(count)))) {
    std::memset(data_, 0xff, bytes(count));
  }
  explicit Buffer(const std::vector<T>& from) : Buffer(static_cast<int64_t>(from.size())) {
    if (!from.empty()) std::memcpy(data_, from.data(), from.size() * sizeof(T));
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  static size_t bytes(int64_t count) { return (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16; }
  T* data_;
};

struct Number {  // a dtype: float32, or 16 bits with so many of fraction
  int dtype;
  double tolerance;
  float read(const void* at) const {
    if (dtype == SPECVLM_FLOAT) return *static_cast<const float*>(at);
    if (dtype == SPECVLM_HALF) return static_cast<float>(*static_cast<const _Float16*>(at));
    const uint32_t bits = static_cast<uint32_t>(*static_cast<const uint16_t*>(at)) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  void write(void* at, float value) const {
    if (dtype == SPECVLM_FLOAT) *static_cast<float*>(at) = value;
    else if (dtype == SPECVLM_HALF) *static_cast<_Float16*>(at) = static_cast<_Float16>(value);
    else {
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      *static_cast<uint16_t*>(at) = static_cast<uint16_t>(bits >> 16);
    }
  }
  int64_t size() const { return dtype == SPECVLM_FLOAT ? 4 : 2; }
};

struct States {  // rows of heads of channels
  const Number number;
  const int64_t heads, D;
  Buffer<char> bytes;
  States(const Number& n, int64_t rows, int64_t h, int64_t d)
      : number(n), heads(h), D(d), bytes(rows * h * d * n.size()) {}
  char* at(int64_t row, int64_t head, int64_t d = 0) const {
    return bytes.get() + ((row * heads + head) * D + d) * number.size();
  }
  float get(int64_t row, int64_t head, int64_t d) const { return number.read(at(row, head, d)); }
  void fill(int64_t row) const {
    std::normal_distribution<float> normal;
    for (int64_t h = 0; h < heads; h++)
      for (int64_t d = 0; d < D; d++) number.write(at(row, h, d), normal(rng));
  }
};

}  // namespace
