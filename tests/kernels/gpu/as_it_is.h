// What the device shares with the CPU, under a name of its own: a mistake made there must not reach this side.
#pragma once

#include <cstring>

#define specvlm specvlm_as_it_is
#include "../../../csrc/common/growth.h"
#include "../../../csrc/common/noise.h"
#include "../../../csrc/common/walk.h"
#undef specvlm

#include "states.h"

namespace {

template <class T>
bool same(const Buffer<T>& one, const Buffer<T>& other, int64_t count) {
  return std::memcmp(one.get(), other.get(), static_cast<size_t>(count) * sizeof(T)) == 0;
}

}  // namespace
