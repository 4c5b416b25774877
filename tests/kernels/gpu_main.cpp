// Runs the emulated GPU kernels over random calls and compares them with sums in double precision, and decisions with
// those of the functions that are shared with the CPU. For sanitizers and
// for mutants: buffers are exactly as large as what they hold, and what was never written is NaN.
// Arguments: rounds, seed of the schedule (0: threads in order), and dtypes ("float bfloat16 half").
// Prints "ok", or what is wrong, and then returns 1.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/abi/gpu.h"
// What the device shares with the CPU, under a name of its own: a mistake made there must not reach this side.
#define specvlm specvlm_as_it_is
#include "../../csrc/common/growth.h"
#include "../../csrc/common/noise.h"
#include "../../csrc/common/walk.h"
#undef specvlm

extern "C" void specvlm_simt_seed(uint64_t seed);
// Stacks of fibers hide what is held.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() { return "detect_leaks=0"; }

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

struct Plan {  // the tables of a call, and which keys each listed row sees
  std::vector<int32_t> blocks, requests, spans, upto, dense_at;
  std::vector<uint64_t> ancestors;
  int64_t columns = 0, block_count = 0, rows = 0;
};

Plan random_plan(int64_t requests, int64_t page) {
  Plan plan;
  std::vector<int64_t> ends;
  for (int64_t r = 0; r < requests; r++) {
    const int64_t nodes = r == 1 ? 0 : pick(1, 24), context = r == 0 ? pick(300, 400) : pick(0, 120), first = plan.rows;
    const int64_t first_span = static_cast<int64_t>(plan.spans.size()) / 2;
    int64_t start = 0;
    for (int64_t s = pick(1, 3); s > 0 && start < context; s--) {
      const int64_t end = s == 1 ? context : pick(start, context) + 1;
      for (int64_t empty = pick(0, 2); empty > 0; empty--)  // an empty span, before and between others
        plan.spans.insert(plan.spans.end(), 2, static_cast<int32_t>(start));
      plan.spans.insert(plan.spans.end(), {static_cast<int32_t>(start), static_cast<int32_t>(end)});
      start = end + pick(0, 40);
    }
    const int64_t spans = static_cast<int64_t>(plan.spans.size()) / 2 - first_span;
    ends.push_back(context);
    for (int64_t v : {first, nodes, r, r * 128 + 1, first_span, spans}) plan.requests.push_back(static_cast<int32_t>(v));
    const bool chunk = r % 3 == 2;  // rows that see more and more of the pages, and no tree
    const int64_t shift = pick(0, 100);
    for (int64_t i = 0; i < nodes; i++) {
      plan.upto.push_back(static_cast<int32_t>(chunk ? context - nodes + i + 1 : context));
      plan.dense_at.push_back(chunk ? -1 : static_cast<int32_t>(r * 128 + 1 + i + shift));
      const size_t parent = 2 * static_cast<size_t>(first + pick(0, i + 1));
      uint64_t words[2] = {0, 0};
      if (!chunk) {
        for (size_t w = 0; w < 2 && i > 0 && parent < plan.ancestors.size(); w++) words[w] = plan.ancestors[parent + w];
        words[(i + shift) / 64] |= 1ull << (i + shift) % 64;
      }
      plan.ancestors.insert(plan.ancestors.end(), {words[0], words[1]});
    }
    plan.rows += nodes;
  }
  for (int64_t end : ends) plan.columns = std::max(plan.columns, (end + page - 1) / page);
  plan.columns = std::max<int64_t>(plan.columns, 1);
  plan.block_count = requests * plan.columns;
  plan.blocks.resize(plan.block_count);
  for (int64_t i = 0; i < plan.block_count; i++) plan.blocks[i] = static_cast<int32_t>(i);
  std::shuffle(plan.blocks.begin(), plan.blocks.end(), rng);
  return plan;
}

double error_of_row(const Plan& plan, const States& query, const States& cache, const States& key, const States& value,
                    const States& out, const int32_t* request, int64_t row, int64_t head, int64_t group, int64_t page,
                    double scale) {
  const int64_t D = query.D, kv = head / group;
  std::vector<double> logits, sums(D);
  std::vector<std::pair<bool, int64_t>> keys;  // paged: position in the cache's rows; else row of `key`
  for (int64_t s = request[4]; s < request[4] + request[5]; s++)
    for (int64_t at = plan.spans[2 * s]; at < std::min(plan.spans[2 * s + 1], plan.upto[row]); at++)
      keys.emplace_back(true, plan.blocks[request[2] * plan.columns + at / page] * page + at % page);
  for (int64_t other = request[0]; other < request[0] + request[1]; other++) {
    const int64_t bit = plan.dense_at[other] - request[3];
    if (plan.dense_at[other] >= 0 && plan.ancestors[2 * row + bit / 64] >> bit % 64 & 1) keys.emplace_back(false, other);
  }
  double top = -INFINITY, total = 0;
  for (const auto& [paged, at] : keys) {
    double x = 0;
    for (int64_t d = 0; d < D; d++) x += query.get(row, head, d) * (paged ? cache.get(at, kv, d) : key.get(at, kv, d));
    logits.push_back(x * scale);
    top = std::max(top, logits.back());
  }
  for (size_t k = 0; k < keys.size(); k++) {
    const double weight = std::exp(logits[k] - top);
    total += weight;
    for (int64_t d = 0; d < D; d++)
      sums[d] += weight * (keys[k].first ? cache.get(keys[k].second, kv, D + d) : value.get(keys[k].second, kv, d));
  }
  double worst = 0;
  for (int64_t d = 0; d < D; d++) {
    const double wanted = total > 0 ? sums[d] / total : 0;
    const double error = std::fabs(out.get(row, head, d) - wanted) / std::max(1.0, std::fabs(wanted));
    worst = error < 1e9 ? std::max(worst, error) : 1e9;  // NaN too
  }
  return worst;
}

double call(const Number& number, int64_t D) {
  const int64_t heads = pick(1, 3), group = pick(1, 5), page = 16 * pick(1, 4), splits = pick(1, 5);
  const Plan plan = random_plan(pick(1, 4), page);
  const int64_t rows = plan.rows, requests = static_cast<int64_t>(plan.requests.size()) / 6;
  const States query(number, rows, heads * group, D), out(number, rows, heads * group, D);
  const States key(number, rows, heads, D), value(number, rows, heads, D);
  const States dense_key(number, requests * 128 + 1, heads, D), dense_value(number, requests * 128 + 1, heads, D);
  const States cache(number, plan.block_count * page, heads, 2 * D);  // [blocks, page, heads, 2 D]
  for (int64_t i = 0; i < rows; i++) query.fill(i), key.fill(i), value.fill(i);
  for (int64_t r = 0; r < requests; r++)  // what no span names stays NaN
    for (int64_t s = plan.requests[6 * r + 4]; s < plan.requests[6 * r + 4] + plan.requests[6 * r + 5]; s++)
      for (int64_t at = plan.spans[2 * s]; at < plan.spans[2 * s + 1]; at++)
        cache.fill(plan.blocks[r * plan.columns + at / page] * page + at % page);
  const Buffer<int32_t> blocks(plan.blocks), table(plan.requests), spans(plan.spans), upto(plan.upto);
  const Buffer<int32_t> dense_at(plan.dense_at);
  const Buffer<uint64_t> ancestors(plan.ancestors);
  const Buffer<float> partial_out(splits * rows * heads * group * D), partial_weight(splits * rows * heads * group);
  specvlm_gpu_attention p{};
  p.dtype = number.dtype, p.query_heads = static_cast<int32_t>(heads * group), p.heads = static_cast<int32_t>(heads);
  p.head_size = static_cast<int32_t>(D), p.page = static_cast<int32_t>(page);
  p.requests = static_cast<int32_t>(requests);
  p.listed = static_cast<int32_t>(rows), p.block_columns = static_cast<int32_t>(plan.columns);
  p.splits = static_cast<int32_t>(splits), p.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(D)));
  p.query = query.bytes.get(), p.out = out.bytes.get(), p.new_key = key.bytes.get(), p.new_value = value.bytes.get();
  p.cache_key = cache.bytes.get(), p.cache_value = cache.bytes.get() + D * number.size();
  p.dense_key = dense_key.bytes.get(), p.dense_value = dense_value.bytes.get();
  p.query_token_stride = p.out_token_stride = heads * group * D, p.query_head_stride = p.out_head_stride = D;
  p.new_key_token_stride = p.new_value_token_stride = p.dense_key_row_stride = p.dense_value_row_stride = heads * D;
  p.new_key_head_stride = p.new_value_head_stride = p.dense_key_head_stride = p.dense_value_head_stride = D;
  p.cache_slot_stride = heads * 2 * D, p.cache_block_stride = page * heads * 2 * D, p.cache_head_stride = 2 * D;
  p.table_stride = plan.columns, p.block_table = blocks.get(), p.request_table = table.get(), p.spans = spans.get();
  p.visible_upto = upto.get(), p.dense_at = dense_at.get(), p.ancestors = ancestors.get();
  p.partial_out = partial_out.get(), p.partial_weight = partial_weight.get();
  if (const int error = specvlm_gpu_attend(&p, nullptr)) return std::printf("error %d\n", error), 1e9;
  double worst = 0;
  for (int64_t r = 0; r < requests; r++) {
    const int32_t* const request = plan.requests.data() + 6 * r;
    for (int64_t row = request[0]; row < request[0] + request[1]; row++)
      for (int64_t head = 0; head < heads * group; head++)
        worst = std::max(
            worst, error_of_row(plan, query, cache, key, value, out, request, row, head, group, page, p.scale));
  }
  return worst;
}

bool commit() {
  const int64_t layers = 3, heads = 2, D = 64, page = 16, rows = 6, slots = 64;
  const Number number = {SPECVLM_BFLOAT16, 0};
  const States key(number, layers * rows, heads, D), value(number, layers * rows, heads, D);
  const States cache(number, layers * slots, heads, 2 * D);
  for (int64_t i = 0; i < layers * rows; i++) key.fill(i), value.fill(i);
  for (int64_t i = 0; i < layers * slots; i++) cache.fill(i);
  std::vector<int64_t> to = {40, -1, 3, -1, 63, 0};
  States wanted(number, layers * slots, heads, 2 * D);
  std::memcpy(wanted.at(0, 0), cache.at(0, 0), layers * slots * heads * 2 * D * 2);
  const Buffer<int64_t> places(to);
  specvlm_gpu_commit p{};
  p.element_size = 2, p.heads = heads, p.head_size = D, p.page = page, p.layers = layers, p.rows = rows;
  p.slots = places.get(), p.cache_block_stride = page * heads * 2 * D, p.cache_head_stride = 2 * D;
  p.cache_slot_stride = heads * 2 * D, p.dense_key_row_stride = p.dense_value_row_stride = heads * D;
  p.dense_key_head_stride = p.dense_value_head_stride = D;
  for (int64_t layer = 0; layer < layers; layer++) {
    p.cache[layer] = cache.at(layer * slots, 0);
    p.dense_key[layer] = key.at(layer * rows, 0), p.dense_value[layer] = value.at(layer * rows, 0);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t h = 0; to[i] >= 0 && h < heads; h++) {
        std::memcpy(wanted.at(layer * slots + to[i], h), key.at(layer * rows + i, h), D * 2);
        std::memcpy(wanted.at(layer * slots + to[i], h, D), value.at(layer * rows + i, h), D * 2);
      }
  }
  return specvlm_gpu_commit_rows(&p, nullptr) == 0 &&
         std::memcmp(wanted.at(0, 0), cache.at(0, 0), layers * slots * heads * 2 * D * 2) == 0;
}

struct Alone {  // a team of one
  int index() const { return 0; }
  int size() const { return 1; }
  void sync() const {}
};

template <class T>
bool same(const Buffer<T>& one, const Buffer<T>& other, int64_t count) {
  return std::memcmp(one.get(), other.get(), static_cast<size_t>(count) * sizeof(T)) == 0;
}

// Trees of random proposals, grown level by level and described, against the same functions called one after the other.
bool growth() {
  const int32_t requests = 3, capacity = 40, width = 6, top_k = 5;
  const int64_t nodes = requests * capacity, rows = requests * width, children = rows * top_k;
  struct Trees {
    Buffer<int32_t> counts{3}, parents{120}, origins{120}, frontier{18}, parent_rows{18}, depths{120};
    Buffer<int64_t> tokens{120}, codes{120}, ancestors{240};
    Buffer<double> scores{120};
  } device, host;
  const Buffer<int32_t> budgets(std::vector<int32_t>{40, 0, 7});
  for (Trees* trees : {&device, &host})
    for (int64_t i = 0; i < nodes; i++) {
      if (i < requests) trees->counts[i] = 0;
      if (i < rows) trees->frontier[i] = i % width ? -2 : -1, trees->parent_rows[i] = -1;
      // Behind a tree nothing is read; it is compared.
      trees->parents[i] = trees->origins[i] = 0, trees->tokens[i] = 0, trees->scores[i] = 0;
    }
  const auto arguments = [&](Trees& trees, const Buffer<int64_t>& proposed, const Buffer<float>& laws, int32_t level) {
    return specvlm_growth{requests,           capacity,           width,
                          top_k,              level,              budgets.get(),
                          proposed.get(),     laws.get(),         trees.counts.get(),
                          trees.tokens.get(), trees.parents.get(), trees.scores.get(),
                          trees.origins.get(), trees.frontier.get(), trees.parent_rows.get()};
  };
  for (int32_t level = 0; level < 5; level++) {
    const Buffer<int64_t> proposed(children);
    const Buffer<float> laws(children);
    for (int64_t i = 0; i < children; i++) {
      proposed[i] = pick(0, 30);
      laws[i] = (i % top_k ? laws[i - 1] : 0.0f) - static_cast<float>(pick(0, 9)) / 4;  // many are equal
    }
    const specvlm_growth p = arguments(device, proposed, laws, level), q = arguments(host, proposed, laws, level);
    if (specvlm_gpu_grow_level(&p, nullptr)) return false;
    const Buffer<char> memory(specvlm_as_it_is::Candidates::bytes(q));
    for (int32_t r = 0; r < requests; r++) specvlm_as_it_is::grow_level(q, r, memory.get(), Alone());
    if (!same(device.counts, host.counts, requests) || !same(device.tokens, host.tokens, nodes) ||
        !same(device.parents, host.parents, nodes) || !same(device.scores, host.scores, nodes) ||
        !same(device.origins, host.origins, nodes) || !same(device.frontier, host.frontier, rows) ||
        !same(device.parent_rows, host.parent_rows, rows))
      return false;
  }
  const auto tables = [&](Trees& trees) {
    return specvlm_tree_tables{requests, capacity, 5, trees.counts.get(), trees.tokens.get(), trees.parents.get(),
                               trees.codes.get(), trees.ancestors.get(), trees.depths.get()};
  };
  const specvlm_tree_tables p = tables(device), q = tables(host);
  if (specvlm_gpu_describe_trees(&p, nullptr)) return false;
  for (int32_t r = 0; r < requests; r++)
    for (int32_t i = 0; i < capacity; i++) specvlm_as_it_is::describe_node(q, r, i);
  return host.counts[0] == 40 && same(device.codes, host.codes, nodes) && same(device.depths, host.depths, nodes) &&
         same(device.ancestors, host.ancestors, 2 * nodes);
}

// Walks of random trees of few tokens, and races, likewise.
bool acceptance() {
  const int32_t trees = 150, most = 12, groups = 2, vocabulary = 2500, races = 4;  // more trees than a block has threads
  std::vector<int32_t> first_nodes = {0}, first_rows, parents;
  std::vector<int64_t> tokens, row_tokens;
  for (int32_t t = 0; t < trees; t++) {
    const int64_t count = pick(0, 20);
    first_rows.push_back(static_cast<int32_t>(row_tokens.size()));
    for (int64_t i = 0; i < count; i++) {
      parents.push_back(static_cast<int32_t>(pick(-1, i)));
      tokens.push_back(pick(-1, 3));
    }
    for (int64_t i = 0; i <= count; i++) row_tokens.push_back(pick(-1, 3));
    first_nodes.push_back(static_cast<int32_t>(parents.size()));
  }
  const int64_t nodes = static_cast<int64_t>(parents.size());
  std::vector<int64_t> linear(groups * nodes);
  for (size_t i = 0; i < linear.size(); i++) linear[i] = static_cast<int64_t>(7 * i);
  const Buffer<int32_t> p_parents(parents), p_first_nodes(first_nodes), p_first_rows(first_rows);
  const Buffer<int64_t> p_tokens(tokens), p_row_tokens(row_tokens), p_linear(linear);
  struct Walks {
    Buffer<int64_t> emitted, slots;
    Buffer<int32_t> path, counts;
    explicit Walks(int64_t n) : emitted(150 * 13), slots(2 * n), path(150 * 12), counts(150) {}
  } device(nodes), host(nodes);
  const auto walk = [&](Walks& walks) {
    return specvlm_walk{trees, static_cast<int32_t>(nodes), groups, most, p_tokens.get(), p_parents.get(),
                        p_first_nodes.get(), p_row_tokens.get(), p_first_rows.get(), p_linear.get(),
                        walks.emitted.get(), walks.path.get(), walks.counts.get(), walks.slots.get()};
  };
  const specvlm_walk p = walk(device), q = walk(host);
  if (specvlm_gpu_walk_trees(&p, nullptr)) return false;
  for (int32_t t = 0; t < trees; t++) specvlm_as_it_is::walk_tree(q, t);
  if (!same(device.emitted, host.emitted, trees * (most + 1)) || !same(device.path, host.path, trees * most) ||
      !same(device.counts, host.counts, trees) || !same(device.slots, host.slots, groups * nodes))
    return false;
  const Buffer<float> probs(races * vocabulary);
  const Buffer<int64_t> keys(races), winners(races);
  for (int64_t i = 0; i < races * vocabulary; i++) probs[i] = static_cast<float>(pick(0, 1000));
  for (int64_t i = 0; i < races; i++) keys[i] = static_cast<int64_t>(rng()) << 31 ^ rng();
  const specvlm_race race = {races, vocabulary, probs.get(), vocabulary, keys.get(), winners.get()};
  if (specvlm_gpu_race(&race, nullptr)) return false;
  for (int64_t row = 0; row < races; row++) {
    float speed = 0;
    int32_t token = -1;
    for (int32_t t = 0; t < vocabulary; t++) {
      const float mine = specvlm_as_it_is::race_speed(probs[row * vocabulary + t], keys[row], t);
      if (mine > speed) speed = mine, token = t;
    }
    if (winners[row] != token) return false;
  }
  return true;
}

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
