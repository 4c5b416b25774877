// Tree attention on the CPU. Compiled once per instruction set; SPECVLM_VARIANT names it.
#include "blocks.h"
#include "cache.h"
#include "dense.h"
#include "softmax.h"

#if defined(__AVX512BF16__)
#endif

namespace {

// Row blocks of nearly equal size, none above kRows.
struct RowBlocks {
  int64_t rows, count;
  explicit RowBlocks(int64_t n) : rows(n), count((n + kRows - 1) / kRows) {}
  int64_t begin(int64_t i) const { return i * rows / count; }
  int64_t size(int64_t i) const { return begin(i + 1) - begin(i); }
};

// What one item needs, cut out of its scratch.
struct Workspace {
  int64_t rows, paged, dense, logit_stride, dense_stride, bytes;
  float *query, *sums, *tile, *logits, *dense_logits;
  RowState* state;

  Workspace(const specvlm_tree_attention& p, const specvlm_item& item, void* scratch) {
    const specvlm_request& request = p.requests[item.request];
    const int64_t group = p.query_heads / p.heads, first = item.first_row / group, last = (item.last_row - 1) / group;
    rows = item.last_row - item.first_row;
    paged = 0;
    uint64_t seen[2] = {0, 0};
    for (int64_t token = first; token <= last; token++) {
      const int64_t listed = request.first_listed + token;
      paged = larger(paged, p.paged_keys[listed]);
      for (int w = 0; w < 2; w++) seen[w] |= p.ancestors[2 * listed + w];
    }
    dense = __builtin_popcountll(seen[0]) + __builtin_popcountll(seen[1]);
    // An odd multiple of 16 floats keeps the rows of a block apart in the first-level cache.
    logit_stride = round_up(smaller(p.tile, paged + dense), 16) + 16;
    logit_stride |= 16;
    dense_stride = round_up(dense, 16);
    char* next = (char*)scratch;
    query = take<float>(next, rows * p.head_size);
    sums = take<float>(next, rows * p.head_size);
    tile = take<float>(next, kTile * p.head_size);
    logits = take<float>(next, rows * logit_stride);
    dense_logits = take<float>(next, rows * dense_stride);
    state = take<RowState>(next, rows);
    bytes = next - (char*)scratch;
  }

  float* logit_row(int64_t r) const { return logits + r * logit_stride; }

 private:
  template <class T>
  static T* take(char*& next, int64_t count) {
    T* const at = (T*)next;
    next += round_up(count * (int64_t)sizeof(T), 64);
    return at;
  }
};

template <class T, class Step>
class Attention {
 public:
  Attention(const specvlm_tree_attention& p, const specvlm_item& item, void* scratch)
      : p_(p), item_(item), request_(p.requests[item.request]), pages_(p, request_, item.head), dense_(p, item),
        w_(p, item, scratch), blocks_(w_.rows), D_(p.head_size), group_(p.query_heads / p.heads) {}

  void run() {
    load_queries();
    for (int64_t i = 0; i < w_.rows * D_; i++) w_.sums[i] = 0.0f;
    for (int64_t r = 0; r < w_.rows; r++) w_.state[r] = RowState();
    dense_products();
    // Keys are taken in order: paged by index, then dense; a tile may hold both.
    const int64_t all = w_.paged + w_.dense;
    for (int64_t low = 0; low < all; low += p_.tile) {
      paged_products(low);
      for (int64_t r = 0; r < w_.rows; r++) probabilities(r, low);
      paged_sums(low);
      for (int64_t r = 0; r < w_.rows; r++) dense_sums(r, low);
    }
    for (int64_t r = 0; r < w_.rows; r++) finish(r);
  }

 private:
  int64_t token(int64_t r) const { return (item_.first_row + r) / group_; }
  int64_t listed(int64_t r) const { return request_.first_listed + token(r); }
  int64_t query_head(int64_t r) const { return item_.head * group_ + (item_.first_row + r) % group_; }
  int64_t paged(int64_t r) const { return p_.paged_keys[listed(r)]; }
  // Paged keys of row r in the tile that starts at index low.
  int64_t paged_here(int64_t r, int64_t low) const { return larger(0, smaller(paged(r) - low, p_.tile)); }
  int64_t most_paged(int64_t block, int64_t low) const {
    int64_t most = 0;
    for (int64_t r = blocks_.begin(block); r < blocks_.begin(block + 1); r++) most = larger(most, paged_here(r, low));
    return most;
  }
  int64_t least_paged(int64_t block, int64_t low) const {
    int64_t least = p_.tile;
    for (int64_t r = blocks_.begin(block); r < blocks_.begin(block + 1); r++) least = smaller(least, paged_here(r, low));
    return least;
  }

  void load_queries() {
    const Lanes scale = broadcast(p_.scale);
    for (int64_t r = 0; r < w_.rows; r++) {
      const T* from = (const T*)p_.query + (request_.first_token + token(r)) * p_.query_token_stride +
                      query_head(r) * p_.query_head_stride;
      for (int64_t d = 0; d < D_; d += 16) store(w_.query + r * D_ + d, load(from + d) * scale);
    }
  }

  // logits of one row block against the packed tile.
  void products(int64_t block, int64_t keys, float* to, int64_t stride) {
    const int64_t r = blocks_.begin(block);
    multiply<Step>({w_.query + r * D_, D_, w_.tile, kTile, to + r * stride, stride, D_, false}, blocks_.size(block),
                   (keys + 15) / 16);
  }

  void dense_products() {
    for (int64_t first = 0; first < dense_.count; first += kTile) {
      const int64_t keys = smaller(kTile, dense_.count - first);
      dense_.pack_keys(first, keys, w_.tile);
      for (int64_t b = 0; b < blocks_.count; b++) products(b, keys, w_.dense_logits + first, w_.dense_stride);
    }
    for (int64_t r = 0; r < w_.rows; r++) dense_.keep_ancestors(listed(r), w_.dense_logits + r * w_.dense_stride);
  }

  void paged_products(int64_t low) {
    const int64_t here = smaller(p_.tile, w_.paged - low);
    for (int64_t k = 0; k < here; k += kTile) {
      pages_.pack_keys(low + k, smaller(kTile, here - k), w_.tile);
      for (int64_t b = 0; b < blocks_.count; b++)
        products(b, smaller(kTile, most_paged(b, low) - k), w_.logits + k, w_.logit_stride);
    }
  }

  void probabilities(int64_t r, int64_t low) {
    const int64_t ancestors = dense_.ancestors(listed(r)), in_pages = paged_here(r, low);
    const int64_t n = larger(0, smaller(p_.tile, paged(r) + ancestors - low));
    if (n == 0) return;
    float* const row = w_.logit_row(r);
    const float* const dense = w_.dense_logits + r * w_.dense_stride + larger(0, low - paged(r));
    for (int64_t i = in_pages; i < n; i++) row[i] = dense[i - in_pages];
    const float factor = softmax_row(row, n, w_.state[r], p_.arithmetic);
    if (low == 0 || factor == 1.0f) return;
    float* const sums = w_.sums + r * D_;
    for (int64_t d = 0; d < D_; d += 16) store(sums + d, load(sums + d) * broadcast(factor));
  }

  void paged_sums(int64_t low) {
    const int64_t here = smaller(p_.tile, w_.paged - low);
    Slot<T> slots[kTile];
    for (int64_t k = 0; k < here; k += kTile) {
      const int64_t keys = smaller(kTile, here - k);
      pages_.find_values(low + k, keys, slots);
      pack_values(slots, keys, D_, w_.tile);
      for (int64_t b = 0; b < blocks_.count; b++) {
        // Keys that every row of the block sees go together, the few that only some see row by row: a value that a row
        // does not see never meets it, not even with weight 0.
        const int64_t first = blocks_.begin(b), together = larger(0, smaller(keys, least_paged(b, low) - k));
        multiply<Step>({w_.logit_row(first) + k, w_.logit_stride, w_.tile, D_, w_.sums + first * D_, D_, together, true},
                       together ? blocks_.size(b) : 0, D_ / 16);
        for (int64_t r = first; r < blocks_.begin(b + 1); r++) {
          const int64_t rest = smaller(keys, paged_here(r, low) - k) - together;
          add_values<Step>(w_.logit_row(r) + k + together, slots + together, rest, w_.sums + r * D_, D_);
        }
      }
    }
  }

  void dense_sums(int64_t r, int64_t low) {
    Slot<T> slots[kDense];
    const int64_t in_pages = paged_here(r, low), count = dense_.find_values(listed(r), slots);
    const int64_t done = larger(0, low - paged(r)), room = p_.tile - in_pages;
    if (count > done && room > 0)
      add_values<Step>(w_.logit_row(r) + in_pages, slots + done, smaller(count - done, room), w_.sums + r * D_, D_);
  }

  void finish(int64_t r) {
    T* const to = (T*)p_.out + (request_.first_token + token(r)) * p_.out_token_stride +
                  query_head(r) * p_.out_head_stride;
    const float sum = w_.state[r].sum;
    const Lanes inverse = broadcast(sum == 0.0f ? 0.0f : 1.0f / sum);
    for (int64_t d = 0; d < D_; d += 16)
      narrow(to + d, inverse * load(w_.sums + r * D_ + d), p_.arithmetic == SPECVLM_AVX512_BF16);
  }

  const specvlm_tree_attention& p_;
  const specvlm_item& item_;
  const specvlm_request& request_;
  const Pages<T> pages_;
  const DenseKeys<T> dense_;
  const Workspace w_;
  const RowBlocks blocks_;
  const int64_t D_, group_;
};

template <class T>
void attend_as(const specvlm_tree_attention& p, const specvlm_item& item, void* scratch) {
  if (p.arithmetic == SPECVLM_AVX2) Attention<T, Separate>(p, item, scratch).run();
  else Attention<T, Fused>(p, item, scratch).run();
}

int64_t scratch_bytes(const specvlm_tree_attention* p, const specvlm_item* item) {
  return Workspace(*p, *item, nullptr).bytes;
}

void attend(const specvlm_tree_attention* p, const specvlm_item* item, void* scratch) {
  if (p->dtype == SPECVLM_FLOAT) attend_as<float>(*p, *item, scratch);
  else if (p->dtype == SPECVLM_HALF) attend_as<Half>(*p, *item, scratch);
  else attend_as<Bf16>(*p, *item, scratch);
}

#define SPECVLM_TEXT(x) #x
#define SPECVLM_NAME(x) SPECVLM_TEXT(x)
#define SPECVLM_JOIN(a, b) a##b
#define SPECVLM_SYMBOL(x) SPECVLM_JOIN(specvlm_cpu_variant_, x)

}  // namespace

extern "C" __attribute__((visibility("hidden"))) const specvlm_cpu_variant SPECVLM_SYMBOL(SPECVLM_VARIANT) = {
    SPECVLM_NAME(SPECVLM_VARIANT), kRows, 0, scratch_bytes, attend};
