// Registers the operators for CUDA tensors. Only the stable ABI is used and no CUDA header: the kernels are in a library
// of their own, libspecvlm_cuda.so beside this one, behind abi/gpu.h. It is loaded at the first call, so that this
// library also works where there is no GPU, or was built without nvcc. The tests compile this file once more with
// SPECVLM_EMULATED: the same binding over the emulated kernels, for CPU tensors, under a name of its own.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../abi/gpu.h"
#include "checks.h"
#include "trees.h"

namespace {

struct Kernels {
  decltype(&specvlm_gpu_has_head_size) has_head_size;
  decltype(&specvlm_gpu_splits) splits;
  decltype(&specvlm_gpu_attend) attend;
  decltype(&specvlm_gpu_commit_rows) commit_rows;
  decltype(&specvlm_gpu_walk_trees) walk_trees;
  decltype(&specvlm_gpu_race) race;
  decltype(&specvlm_gpu_grow_level) grow_level;
  decltype(&specvlm_gpu_describe_trees) describe_trees;
  decltype(&specvlm_gpu_try_wrappers) try_wrappers;
  decltype(&specvlm_gpu_message) message;
};

#if defined(SPECVLM_EMULATED)

bool on_gpu(const Tensor& t) { return t.is_cpu(); }
void* current_stream(int32_t) { return nullptr; }
const Kernels& kernels() {
  static const Kernels all = {specvlm_gpu_has_head_size, specvlm_gpu_splits,         specvlm_gpu_attend,
                              specvlm_gpu_commit_rows,   specvlm_gpu_walk_trees,     specvlm_gpu_race,
                              specvlm_gpu_grow_level,    specvlm_gpu_describe_trees, specvlm_gpu_try_wrappers,
                              specvlm_gpu_message};
  return all;
}
struct OnDevice {
  explicit OnDevice(const Tensor&) {}
};

#else

bool on_gpu(const Tensor& t) { return t.is_cuda(); }

// libtorch_cuda has this function since torch 2.6; builds of torch for CPUs have not, hence no ordinary linking.
void* current_stream(int32_t device) {
  static void* const library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
  static const auto get = reinterpret_cast<int32_t (*)(int32_t, void**)>(
      library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  void* stream = nullptr;
  STD_TORCH_CHECK(get && get(device, &stream) == 0, "vllm_specvlm: torch does not tell its current CUDA stream.");
  return stream;
}

Kernels load_kernels() {
  Dl_info here;
  STD_TORCH_CHECK(dladdr(reinterpret_cast<void*>(&load_kernels), &here), "vllm_specvlm: dladdr failed.");
  std::string path = here.dli_fname;
  path = path.substr(0, path.rfind('/') + 1) + "libspecvlm_cuda.so";
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  STD_TORCH_CHECK(library, "vllm_specvlm: no CUDA kernels (", dlerror(),
                  "); build the package where nvcc and a CUDA build of torch are installed.");
  const auto find = [&](const char* name) {
    void* const symbol = dlsym(library, name);
    STD_TORCH_CHECK(symbol, "vllm_specvlm: ", path, " lacks ", name, "; build the package again.");
    return symbol;
  };
  const int abi = reinterpret_cast<decltype(&specvlm_gpu_abi)>(find("specvlm_gpu_abi"))();
  STD_TORCH_CHECK(abi == SPECVLM_GPU_ABI, "vllm_specvlm: ", path, " is of another version; build the package again.");
  return {reinterpret_cast<decltype(&specvlm_gpu_has_head_size)>(find("specvlm_gpu_has_head_size")),
          reinterpret_cast<decltype(&specvlm_gpu_splits)>(find("specvlm_gpu_splits")),
          reinterpret_cast<decltype(&specvlm_gpu_attend)>(find("specvlm_gpu_attend")),
          reinterpret_cast<decltype(&specvlm_gpu_commit_rows)>(find("specvlm_gpu_commit_rows")),
          reinterpret_cast<decltype(&specvlm_gpu_walk_trees)>(find("specvlm_gpu_walk_trees")),
          reinterpret_cast<decltype(&specvlm_gpu_race)>(find("specvlm_gpu_race")),
          reinterpret_cast<decltype(&specvlm_gpu_grow_level)>(find("specvlm_gpu_grow_level")),
          reinterpret_cast<decltype(&specvlm_gpu_describe_trees)>(find("specvlm_gpu_describe_trees")),
          reinterpret_cast<decltype(&specvlm_gpu_try_wrappers)>(find("specvlm_gpu_try_wrappers")),
          reinterpret_cast<decltype(&specvlm_gpu_message)>(find("specvlm_gpu_message"))};
}
const Kernels& kernels() {
  static const Kernels all = load_kernels();  // an error is not kept: the next call tries again
  return all;
}
struct OnDevice {
  explicit OnDevice(const Tensor& t) : guard(t.get_device_index()) {}
  torch::stable::accelerator::DeviceGuard guard;
};

#endif

// Kernels copy 16 bytes at a time, so every head of every row must start at such a place.
void check_aligned(const Tensor& t, const char* operation, const char* name, int64_t outer) {
  const int64_t unit = 16 / static_cast<int64_t>(t.element_size());
  bool aligned = reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0;
  for (int64_t i = 0; i < outer; i++) aligned = aligned && (t.size(i) <= 1 || t.stride(i) % unit == 0);
  STD_TORCH_CHECK(aligned, operation, ": ", name, " must start, and have strides, at multiples of 16 bytes.");
}

void check_cache(const Tensor& cache, const Tensor& states, const char* operation) {
  STD_TORCH_CHECK(cache.scalar_type() == states.scalar_type(), operation,
                  ": kv_cache must be of the same dtype as query; quantised caches (fp8) are not supported, use "
                  "kv_cache_dtype 'auto'.");
  STD_TORCH_CHECK(cache.dim() == 4 && (cache.numel() == 0 || cache.stride(3) == 1), operation,
                  ": the last dimension of kv_cache must be contiguous.");
  check_aligned(cache, operation, "kv_cache", 3);
}

void check_result(const char* operation, int error) {
  STD_TORCH_CHECK(error == 0, operation, ": the CUDA kernels could not be started: ", kernels().message(error), ".");
}

void tree_attention(Tensor out, const Tensor query, const Tensor key, const Tensor value, const Tensor kv_cache,
                    const Tensor block_table, Tensor dense_key, Tensor dense_value, const Tensor requests,
                    const Tensor spans, const Tensor visible_upto, const Tensor dense_at, const Tensor ancestors,
                    double scale, std::string layout, bool, std::optional<Tensor> visible_from, double soft_cap) {
  constexpr const char* kName = "tree_attention";
  STD_TORCH_CHECK(on_gpu(query), "tree_attention: query is not on a GPU.");
  dtype_of(query);
  check_cache(kv_cache, query, kName);
  const Sizes s = check_call(out, query, key, value, kv_cache, block_table, dense_key, dense_value, requests, spans,
                             visible_upto, dense_at, ancestors, scale, 16);
  STD_TORCH_CHECK(layout == "rows", "tree_attention: layout '", layout, "' is a CPU's; caches of GPUs are 'rows'.");
  STD_TORCH_CHECK(std::isfinite(soft_cap) && soft_cap >= 0.0, "tree_attention: soft_cap must be finite, 0 for none.");
  if (visible_from) check_table(*visible_from, "visible_from", ScalarType::Int, "int32", query, {s.listed});
  const struct { const Tensor& tensor; const char* name; } states[] = {
      {out, "out"},     {query, "query"},         {key, "key"},
      {value, "value"}, {dense_key, "dense_key"}, {dense_value, "dense_value"}};
  for (const auto& state : states) check_aligned(state.tensor, kName, state.name, 2);
  if (s.listed == 0 || requests.size(0) == 0) return;

  const OnDevice guard(query);
  STD_TORCH_CHECK(kernels().has_head_size(static_cast<int32_t>(s.head_size)), "tree_attention: head size ", s.head_size,
                  " has no CUDA kernel, there are 64, 80, 96, 128 and 256.");
  const auto ints = [](const Tensor& t) { return static_cast<const int32_t*>(t.data_ptr()); };
  const auto narrow = [](int64_t x) { return static_cast<int32_t>(x); };
  specvlm_gpu_attention p{};
  p.dtype = s.dtype;
  p.query_heads = narrow(s.query_heads), p.heads = narrow(s.heads), p.head_size = narrow(s.head_size);
  p.page = narrow(s.page), p.requests = narrow(requests.size(0)), p.listed = narrow(s.listed);
  p.block_columns = narrow(block_table.size(1));
  p.scale = static_cast<float>(scale), p.soft_cap = static_cast<float>(soft_cap);
  p.query = query.data_ptr(), p.out = out.data_ptr(), p.new_key = key.data_ptr(), p.new_value = value.data_ptr();
  p.cache_key = kv_cache.data_ptr();
  p.cache_value = static_cast<const char*>(p.cache_key) + s.head_size * static_cast<int64_t>(query.element_size());
  p.dense_key = dense_key.data_ptr(), p.dense_value = dense_value.data_ptr();
  p.query_token_stride = query.stride(0), p.query_head_stride = query.stride(1);
  p.out_token_stride = out.stride(0), p.out_head_stride = out.stride(1);
  p.new_key_token_stride = key.stride(0), p.new_key_head_stride = key.stride(1);
  p.new_value_token_stride = value.stride(0), p.new_value_head_stride = value.stride(1);
  p.cache_block_stride = kv_cache.stride(0), p.cache_head_stride = kv_cache.stride(1);
  p.cache_slot_stride = kv_cache.stride(2), p.table_stride = block_table.stride(0);
  p.dense_key_row_stride = dense_key.stride(0), p.dense_key_head_stride = dense_key.stride(1);
  p.dense_value_row_stride = dense_value.stride(0), p.dense_value_head_stride = dense_value.stride(1);
  p.block_table = ints(block_table), p.request_table = ints(requests), p.spans = ints(spans);
  p.visible_from = visible_from ? ints(*visible_from) : nullptr;
  p.visible_upto = ints(visible_upto), p.dense_at = ints(dense_at);
  p.ancestors = static_cast<const uint64_t*>(ancestors.data_ptr());
  p.splits = kernels().splits(&p);
  std::optional<Tensor> partial_out, partial_weight;  // they live until the kernels are queued: torch reuses in order
  if (p.splits > 1) {
    partial_out = torch::stable::new_empty(query, {p.splits, s.listed, s.query_heads, s.head_size}, ScalarType::Float);
    partial_weight = torch::stable::new_empty(query, {p.splits, s.listed, s.query_heads}, ScalarType::Float);
    p.partial_out = static_cast<float*>(partial_out->data_ptr());
    p.partial_weight = static_cast<float*>(partial_weight->data_ptr());
  }
  check_result(kName, kernels().attend(&p, current_stream(query.get_device_index())));
}

bool same_strides(const Tensor& a, const Tensor& b) {
  bool same = a.dim() == b.dim();
  for (int64_t i = 0; same && i < a.dim(); i++) same = a.size(i) == b.size(i) && a.stride(i) == b.stride(i);
  return same;
}

void commit_rows(std::vector<Tensor> caches, std::vector<Tensor> keys, std::vector<Tensor> values, const Tensor slots) {
  constexpr const char* kName = "commit_rows";
  STD_TORCH_CHECK(caches.size() == keys.size() && keys.size() == values.size(), "commit_rows: ", caches.size(),
                  " caches need as many dense keys and values, got ", keys.size(), " and ", values.size(), ".");
  if (caches.empty()) return;
  STD_TORCH_CHECK(slots.scalar_type() == ScalarType::Long && slots.dim() == 1 && slots.is_contiguous(),
                  "commit_rows: slots must be int64 [rows] and contiguous.");
  const Tensor &cache = caches[0], &key = keys[0], &value = values[0];
  STD_TORCH_CHECK(on_gpu(cache), "commit_rows: kv_caches are not on a GPU.");
  const int64_t D = key.dim() == 3 ? key.size(2) : 0, heads = key.dim() == 3 ? key.size(1) : 0, rows = slots.size(0);
  check_cache(cache, key, kName);
  STD_TORCH_CHECK(D > 0 && D % (16 / static_cast<int64_t>(key.element_size())) == 0 && value.dim() == 3 &&
                      value.size(1) == heads && value.size(2) == D && cache.size(1) == heads &&
                      cache.size(3) == 2 * D && rows <= key.size(0) && rows <= value.size(0),
                  "commit_rows: caches [blocks, heads, page, 2 * head size], keys and values [rows, heads, head size] "
                  "and slots [rows] do not fit each other.");
  for (size_t i = 0; i < caches.size(); i++) {
    STD_TORCH_CHECK(same_strides(caches[i], cache) && same_strides(keys[i], key) && same_strides(values[i], value) &&
                        caches[i].scalar_type() == cache.scalar_type() && keys[i].scalar_type() == key.scalar_type() &&
                        values[i].scalar_type() == key.scalar_type(),
                    "commit_rows: layer ", i, " differs from the first one in shape, strides or dtype; commit layers "
                    "of each kind by themselves.");
    const Tensor* const all[] = {&caches[i], &keys[i], &values[i]};
    for (const Tensor* t : all) {
      STD_TORCH_CHECK(t->get_device_index() == slots.get_device_index() && t->is_cpu() == slots.is_cpu(),
                      "commit_rows: the tensors of layer ", i, " are not on the device of slots.");
      STD_TORCH_CHECK(t->numel() == 0 || t->stride(t->dim() - 1) == 1,
                      "commit_rows: the last dimensions of layer ", i, " must be contiguous.");
      check_aligned(*t, kName, "every tensor", t->dim() - 1);
    }
  }
  const OnDevice guard(cache);
  specvlm_gpu_commit p{};
  p.element_size = static_cast<int32_t>(key.element_size()), p.heads = static_cast<int32_t>(heads);
  p.head_size = static_cast<int32_t>(D), p.page = static_cast<int32_t>(cache.size(2));
  p.rows = static_cast<int32_t>(rows), p.slots = static_cast<const int64_t*>(slots.data_ptr());
  p.cache_block_stride = cache.stride(0), p.cache_head_stride = cache.stride(1), p.cache_slot_stride = cache.stride(2);
  p.dense_key_row_stride = key.stride(0), p.dense_key_head_stride = key.stride(1);
  p.dense_value_row_stride = value.stride(0), p.dense_value_head_stride = value.stride(1);
  for (size_t first = 0; first < caches.size(); first += SPECVLM_GPU_MOST_LAYERS) {
    p.layers = static_cast<int32_t>(std::min<size_t>(caches.size() - first, SPECVLM_GPU_MOST_LAYERS));
    for (int32_t i = 0; i < p.layers; i++) {
      p.cache[i] = caches[first + i].data_ptr();
      p.dense_key[i] = keys[first + i].data_ptr();
      p.dense_value[i] = values[first + i].data_ptr();
    }
    check_result(kName, kernels().commit_rows(&p, current_stream(cache.get_device_index())));
  }
}

void walk_trees(const Tensor tokens, const Tensor parents, const Tensor first_nodes, const Tensor row_tokens,
                const Tensor first_rows, const Tensor linear_slots, Tensor emitted, Tensor path, Tensor counts,
                Tensor slots) {
  STD_TORCH_CHECK(on_gpu(tokens), "walk_trees: tokens are not on a GPU.");
  const specvlm_walk p = check_walk(tokens, parents, first_nodes, row_tokens, first_rows, linear_slots, emitted, path,
                                    counts, slots);
  const OnDevice guard(tokens);
  check_result("walk_trees", kernels().walk_trees(&p, current_stream(tokens.get_device_index())));
}

Tensor race(const Tensor probs, const Tensor keys) {
  STD_TORCH_CHECK(on_gpu(probs), "race: probs are not on a GPU.");
  const OnDevice guard(probs);
  Tensor winners = torch::stable::new_empty(keys, {keys.dim() == 1 ? keys.size(0) : 0}, ScalarType::Long);
  const specvlm_race p = check_race(probs, keys, winners);
  check_result("race", kernels().race(&p, current_stream(probs.get_device_index())));
  return winners;
}

void grow_level(const Tensor budgets, const Tensor proposed, const Tensor log_probs, int64_t level, Tensor counts,
                Tensor tokens, Tensor parents, Tensor scores, Tensor origins, Tensor frontier, Tensor parent_rows) {
  STD_TORCH_CHECK(on_gpu(budgets), "grow_level: budgets are not on a GPU.");
  const specvlm_growth p = check_growth(budgets, proposed, log_probs, level, counts, tokens, parents, scores, origins,
                                        frontier, parent_rows);
  const OnDevice guard(budgets);
  check_result("grow_level", kernels().grow_level(&p, current_stream(budgets.get_device_index())));
}

void describe_trees(const Tensor counts, const Tensor tokens, const Tensor parents, int64_t bits, Tensor codes,
                    Tensor ancestors, Tensor depths) {
  STD_TORCH_CHECK(on_gpu(tokens), "describe_trees: tokens are not on a GPU.");
  const specvlm_tree_tables p = check_tables(counts, tokens, parents, bits, codes, ancestors, depths);
  const OnDevice guard(tokens);
  check_result("describe_trees", kernels().describe_trees(&p, current_stream(tokens.get_device_index())));
}

void try_wrappers(const Tensor left, const Tensor right, const Tensor exponents, Tensor plain, Tensor transposed,
                  Tensor zeroed, Tensor product, Tensor powers) {
  constexpr const char* kName = "try_wrappers";
  STD_TORCH_CHECK(on_gpu(left), "try_wrappers: left is not on a GPU.");
  const ScalarType dtype = left.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Half || dtype == ScalarType::BFloat16, "try_wrappers: left must be float16 or "
                  "bfloat16.");
  const struct { const Tensor& tensor; ScalarType dtype; int64_t count; } all[] = {
      {left, dtype, 256},          {right, dtype, 256},          {exponents, ScalarType::Float, 32},
      {plain, ScalarType::Int, 128},  {transposed, ScalarType::Int, 128}, {zeroed, ScalarType::Int, 128},
      {product, ScalarType::Float, 256}, {powers, ScalarType::Float, 32}};
  for (const auto& one : all)
    STD_TORCH_CHECK(one.tensor.scalar_type() == one.dtype && one.tensor.numel() == one.count &&
                        one.tensor.is_contiguous() && one.tensor.is_cpu() == left.is_cpu() &&
                        one.tensor.get_device_index() == left.get_device_index(),
                    "try_wrappers: a tensor is not of the shape, dtype or device that belongs to it.");
  check_aligned(left, kName, "left", 1);
  check_aligned(right, kName, "right", 1);
  const OnDevice guard(left);
  specvlm_gpu_wrappers p{};
  p.bf16 = dtype == ScalarType::BFloat16;
  p.left = static_cast<const uint16_t*>(left.data_ptr()), p.right = static_cast<const uint16_t*>(right.data_ptr());
  p.exponents = static_cast<const float*>(exponents.data_ptr());
  p.plain = static_cast<uint32_t*>(plain.data_ptr()), p.transposed = static_cast<uint32_t*>(transposed.data_ptr());
  p.zeroed = static_cast<uint32_t*>(zeroed.data_ptr());
  p.product = static_cast<float*>(product.data_ptr()), p.powers = static_cast<float*>(powers.data_ptr());
  check_result(kName, kernels().try_wrappers(&p, current_stream(left.get_device_index())));
}

}  // namespace

#if defined(SPECVLM_EMULATED)
STABLE_TORCH_LIBRARY(vllm_specvlm_emulated, m) {
  m.def(SPECVLM_TREE_ATTENTION_SCHEMA);
  m.def(SPECVLM_COMMIT_SCHEMA);
  m.def(SPECVLM_WALK_SCHEMA);
  m.def(SPECVLM_RACE_SCHEMA);
  m.def(SPECVLM_GROW_SCHEMA);
  m.def(SPECVLM_DESCRIBE_SCHEMA);
  m.def(SPECVLM_WRAPPERS_SCHEMA);
}
STABLE_TORCH_LIBRARY_IMPL(vllm_specvlm_emulated, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(vllm_specvlm, CUDA, m) {
#endif
  m.impl("tree_attention", TORCH_BOX(&tree_attention));
  m.impl("commit_rows", TORCH_BOX(&commit_rows));
  m.impl("walk_trees", TORCH_BOX(&walk_trees));
  m.impl("race", TORCH_BOX(&race));
  m.impl("grow_level", TORCH_BOX(&grow_level));
  m.impl("describe_trees", TORCH_BOX(&describe_trees));
  m.impl("try_wrappers", TORCH_BOX(&try_wrappers));
}
