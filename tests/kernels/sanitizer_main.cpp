// Runs plan and kernels over random calls, for AddressSanitizer and UndefinedBehaviorSanitizer. Buffers are exactly as
// large as what they hold, so that one element too far is seen. Prints "ok" if all variants agree bit for bit.
// Arguments: rounds, and "short" to give too little scratch, which the sanitizer must notice.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../../csrc/common/plan.h"

namespace {

std::mt19937 rng(1);
bool too_short = false;
int64_t pick(int64_t low, int64_t high) { return low + static_cast<int64_t>(rng() % static_cast<uint64_t>(high - low)); }

template <class T>
std::vector<T> noise(int64_t n) {
  std::vector<T> values(n);
  for (T& value : values) {
    const float x = static_cast<float>(rng() % 2001) / 1000.0f - 1.0f;
    if constexpr (sizeof(T) == 4) value = x;
    else {
      uint32_t bits;
      std::memcpy(&bits, &x, 4);
      value = static_cast<T>(bits >> 16);
    }
  }
  return values;
}

struct Tables {
  std::vector<int32_t> blocks, requests, spans, upto, at;
  std::vector<uint64_t> ancestors;
};

Tables random_tables(int64_t request_count, int64_t columns, int64_t page, int64_t& tokens) {
  Tables t;
  tokens = 0;
  for (int64_t i = 0; i < request_count * columns; i++) t.blocks.push_back(static_cast<int32_t>(i));
  for (int64_t r = 0; r < request_count; r++) {
    const int64_t rows = pick(1, 40), first_span = static_cast<int64_t>(t.spans.size()) / 2;
    int64_t at = 0;
    for (int64_t s = pick(0, 4); s > 0 && at < columns * page; s--) {
      const int64_t start = pick(at, columns * page), end = pick(start, columns * page) + 1;
      t.spans.insert(t.spans.end(), {static_cast<int32_t>(start), static_cast<int32_t>(end)});
      at = end;
    }
    for (int64_t v : {tokens, rows, r, r * 128, first_span, static_cast<int64_t>(t.spans.size()) / 2 - first_span})
      t.requests.push_back(static_cast<int32_t>(v));
    for (int64_t i = 0; i < rows; i++) {
      t.upto.push_back(static_cast<int32_t>(pick(0, columns * page + 9)));
      t.at.push_back(-1);
      t.ancestors.push_back(rng());
      t.ancestors.push_back(static_cast<uint64_t>(rng()) << 32);
    }
    tokens += rows;
  }
  return t;
}

template <class T>
bool call(int dtype, int layout, const std::vector<const char*>& variants) {
  const int64_t heads = pick(1, 3), group = pick(1, 8), D = 16 * pick(2, 9), page = 32 * pick(1, 4);
  const int64_t requests = pick(1, 4), columns = pick(1, 5);
  int64_t tokens;
  const Tables t = random_tables(requests, columns, page, tokens);
  specvlm::Plan plan;
  const std::string wrong = specvlm::plan_requests(
      {t.blocks.data(), requests, columns, columns, t.requests.data(), requests, t.spans.data(),
       static_cast<int64_t>(t.spans.size()) / 2, t.upto.data(), t.at.data(), t.ancestors.data(), tokens, tokens,
       requests * columns, page, requests * 128},
      plan);
  if (!wrong.empty()) return std::printf("%s\n", wrong.c_str()), false;
  const auto query = noise<T>(tokens * heads * group * D), cache = noise<T>(requests * columns * heads * page * 2 * D);
  const auto keys = noise<T>(requests * 128 * heads * D), values = noise<T>(requests * 128 * heads * D);
  specvlm_tree_attention p{};
  p.dtype = dtype, p.layout = layout, p.query_heads = heads * group, p.heads = heads, p.head_size = D, p.page = page;
  p.tile = 32 * pick(1, 6), p.scale = 0.2f, p.query = query.data(), p.cache = cache.data();
  p.dense_key = keys.data(), p.dense_value = values.data();
  p.query_token_stride = p.out_token_stride = heads * group * D, p.query_head_stride = p.out_head_stride = D;
  p.dense_key_row_stride = p.dense_value_row_stride = heads * D;
  p.dense_key_head_stride = p.dense_value_head_stride = D;
  p.requests = plan.requests.data(), p.stretches = plan.stretches.data(), p.paged_keys = plan.paged_keys.data();
  p.ancestors = t.ancestors.data(), p.arithmetic = static_cast<int>(pick(0, 3));
  for (int fast = 0; fast < 2; fast++) {
    p.fast = fast;
    std::vector<T> first;
    for (const char* name : variants) {
      specvlm_cpu_choose(name);
      const specvlm_cpu_variant& variant = *specvlm_cpu_current();
      if (fast && !variant.has_fast) continue;
      plan.items.clear();
      specvlm::plan_items(heads, group, p.tile, variant.rows_at_once, pick(1, 9), plan);
      p.items = plan.items.data();
      std::vector<T> out(query.size());
      p.out = out.data();
      for (const specvlm_item& item : plan.items) {
        const int64_t bytes = variant.scratch(&p, &item) - (too_short ? 64 : 0);
        void* const scratch = std::aligned_alloc(64, static_cast<size_t>(bytes));
        std::memset(scratch, 0xff, static_cast<size_t>(bytes));  // NaN: nothing may rely on what was there
        variant.attend(&p, &item, scratch);
        std::free(scratch);
      }
      if (first.empty()) first = out;
      else if (std::memcmp(first.data(), out.data(), out.size() * sizeof(T)))
        return std::printf("%s differs\n", name), false;
    }
  }
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 20;
  too_short = count > 2 && std::strcmp(arguments[2], "short") == 0;
  std::vector<const char*> variants;
  for (const char* name : {"avx512_bf16", "avx512", "avx2", "portable"})
    if (specvlm_cpu_supports(name)) variants.push_back(name);
  for (int i = 0; i < rounds; i++)
    if (!call<float>(SPECVLM_FLOAT, SPECVLM_PLANES, variants) ||
        !call<uint16_t>(SPECVLM_BFLOAT16, SPECVLM_PLANES, variants) ||
        !call<uint16_t>(SPECVLM_BFLOAT16, SPECVLM_PAIRS, variants) ||
        !call<uint16_t>(SPECVLM_HALF, SPECVLM_PLANES, variants))
      return 1;
  std::puts("ok");
}
