// Tree attention on the CPU. Compiled once per instruction set; SPECVLM_VARIANT names it.
#include "dense.h"
#include "item.h"
#include "race.h"
#include "rounding.h"

#if defined(__AVX512BF16__)
#include "fast.h"
#endif

namespace {

template <class T, class Step>
class Attention {
  typedef typename Step::Word Word;
  static constexpr int kWord = Step::kDepth;  // elements of query or probabilities in a word
  static constexpr bool kFast = kWord == 2;

 public:
  Attention(const specvlm_tree_attention& p, const specvlm_item& item, void* scratch)
      : p_(p), item_(item), request_(p.requests[item.request]), pages_(p, request_, item.head), dense_(p, item),
        w_(p, item, dense_.count, scratch), blocks_(w_.rows), D_(p.head_size) {}

  static int64_t bytes(const specvlm_tree_attention& p, const specvlm_item& item) {
    return Workspace<T>(p, item, DenseRows<T>(p, item).count, nullptr).bytes;
  }

  void run() {
    w_.fill_rows(p_, item_);
    for (int64_t b = 0; b < blocks_.count; b++) load_queries(b);
    for (int64_t i = 0; i < w_.rows * D_; i++) w_.sums[i] = 0.0f;
    dense_products();
    // Keys are taken in order: paged by index, then dense; a tile may hold both.
    const int64_t all = w_.paged + dense_.count;
    for (int64_t low = 0; low < all; low += p_.tile) {
      paged_products(low);
      for (int64_t r = 0; r < w_.rows; r++) probabilities(r, low);
      paged_sums(low);
      for (int64_t r = 0; r < w_.rows; r++) dense_sums(r, low);
    }
    for (int64_t r = 0; r < w_.rows; r++) finish(r);
  }

 private:
  // Paged keys of row r in the tile that starts at index low.
  int64_t paged_here(int64_t r, int64_t low) const { return larger(0, smaller(w_.row[r].paged - low, p_.tile)); }
  Word* queries(int64_t block) const { return (Word*)w_.query + blocks_.begin(block) * D_ / kWord; }

  // The queries of a row block, word by word beside each other.
  void load_queries(int64_t block) {
    const int64_t first = blocks_.begin(block), rows = blocks_.size(block);
    Word* const to = queries(block);
    for (int64_t r = 0; r < rows; r++) {
      const T* from = (const T*)p_.query + w_.row[first + r].token * p_.query_token_stride +
                      w_.row[first + r].query_head * p_.query_head_stride;
      float scaled[16];
      for (int64_t d = 0; d < D_; d += 16) {
        if constexpr (kFast) {
          for (int64_t i = 0; i < 8; i++) memcpy(to + (d / 2 + i) * rows + r, from + d + 2 * i, sizeof(Word));
        } else {
          store(scaled, load(from + d) * broadcast(p_.scale));
          for (int64_t i = 0; i < 16; i++) to[(d + i) * rows + r] = scaled[i];
        }
      }
    }
  }

  // Logits of one row block for the first `count` keys of a run.
  void products(int64_t block, const Run<T>& run, int64_t count, float* to, int64_t stride) {
    float* const first = to + blocks_.begin(block) * stride;
    multiply<Step, T>({queries(block), 0, run.rows, run.stride, first, stride, D_ / kWord, false}, blocks_.size(block),
                      (count + 15) / 16);
  }

  void dense_products() {
    for (int64_t first = 0; first < dense_.count; first += kRun) {
      const Run<T> run = dense_.keys(first, smaller(kRun, dense_.count - first), w_.tile);
      for (int64_t b = 0; b < blocks_.count; b++)
        products(b, run, run.count, w_.dense_logits + first, w_.dense_stride);
    }
    for (int64_t r = 0; r < w_.rows; r++) dense_.keep_ancestors(w_.row[r].listed, w_.dense_logits + r * w_.dense_stride);
  }

  void paged_products(int64_t low) {
    // What is used by several row blocks should stay in the first-level cache meanwhile.
    const int64_t here = smaller(p_.tile, w_.paged - low), most = sizeof(T) == 4 && blocks_.count > 1 ? kRun / 2 : kRun;
    for (int64_t b = 0; b < blocks_.count; b++) {
      w_.bound[b] = 0;
      for (int64_t r = blocks_.begin(b); r < blocks_.begin(b + 1); r++)
        w_.bound[b] = larger(w_.bound[b], paged_here(r, low));
    }
    for (int64_t k = 0; k < here;) {
      const Run<T> run = pages_.keys(low + k, smaller(most, here - k), w_.tile);
      for (int64_t b = 0; b < blocks_.count; b++)
        if (w_.bound[b] > k) products(b, run, smaller(w_.bound[b] - k, run.count), w_.logits + k, w_.logit_stride);
      k += run.count;
    }
  }

  // Keys of row r in the tile at low: the paged ones, then what of the dense ones falls into it.
  int64_t keys_here(int64_t r, int64_t low) const {
    return larger(0, smaller(p_.tile, w_.row[r].paged + w_.row[r].dense - low));
  }

  void probabilities(int64_t r, int64_t low) {
    const int64_t in_pages = paged_here(r, low), n = keys_here(r, low);
    if (n == 0) return;
    float* const row = w_.logits + r * w_.logit_stride;
    const float* const dense = w_.dense_logits + r * w_.dense_stride + larger(0, low - w_.row[r].paged);
    for (int64_t i = in_pages; i < n; i++) row[i] = dense[i - in_pages];
    const float factor = Step::softmax(row, n, w_.row[r].state, p_);
    if (low > 0 && factor != 1.0f)
      for (int64_t d = 0; d < D_; d += 16)
        store(w_.sums + r * D_ + d, load(w_.sums + r * D_ + d) * broadcast(factor));
  }

  const Word* weights(int64_t r) const { return (const Word*)(w_.logits + r * w_.logit_stride); }

  // sums of row r += weights [first, first + count) times the rows that row(i) points at, one by one.
  template <class Rows>
  void add_rows(int64_t r, int64_t first, int64_t count, const Rows& row) {
    const auto* const weight = Step::elements(weights(r)) + first;
    float* const sums = w_.sums + r * D_;
    int64_t d = 0;
    for (; d + 64 <= D_; d += 64) add_rows<4>(weight, count, row, d, sums + d);
    for (; d < D_; d += 16) add_rows<1>(weight, count, row, d, sums + d);
  }
  template <int C, class Weight, class Rows>
  static void add_rows(const Weight* weight, int64_t count, const Rows& row, int64_t d, float* to) {
    Lanes sum[C];
    for (int c = 0; c < C; c++) sum[c] = load(to + 16 * c);
    for (int64_t i = 0; i < count; i++) {
      const Lanes spread = broadcast(as_number(weight[i]));
      for (int c = 0; c < C; c++) sum[c] = Step::single(spread, load(row(i) + d + 16 * c), sum[c]);
    }
    for (int c = 0; c < C; c++) store(to + 16 * c, sum[c]);
  }

  void paged_sums(int64_t low) {
    const int64_t here = smaller(p_.tile, w_.paged - low), most = 32 * 1024 / (D_ * (int64_t)sizeof(T));
    for (int64_t b = 0; b < blocks_.count; b++) {
      w_.bound[b] = p_.tile;
      for (int64_t r = blocks_.begin(b); r < blocks_.begin(b + 1); r++)
        w_.bound[b] = smaller(w_.bound[b], paged_here(r, low));
    }
    for (int64_t k = 0; k < here;) {
      const Run<T> run = pages_.values(low + k, smaller(most, here - k), w_.tile);
      for (int64_t b = 0; b < blocks_.count; b++) add_run(b, low, k, run);
      k += run.count;
    }
  }

  // Keys that every row of the block sees go together, the few that only some see row by row: a value that a row does
  // not see never meets it, not even with weight 0.
  void add_run(int64_t b, int64_t low, int64_t k, const Run<T>& run) {
    const int64_t first = blocks_.begin(b), end = blocks_.begin(b + 1);
    int64_t together = smaller(run.count, w_.bound[b] - k);
    // A run that starts at an odd place splits a pair of probabilities.
    together = k % kWord ? 0 : larger(0, together) / kWord * kWord;
    if (together)
      multiply<Step, T>({weights(first) + k / kWord, w_.logit_stride, run.rows, run.stride, w_.sums + first * D_, D_,
                         together / kWord, true},
                        end - first, D_ / 16);
    if (together == run.count) return;
    for (int64_t r = first; r < end; r++) {
      const int64_t rest = smaller(run.count, paged_here(r, low) - k) - together;
      if (rest > 0) add_rows(r, k + together, rest, [&](int64_t i) { return run.rows + (together + i) * run.stride; });
    }
  }

  void dense_sums(int64_t r, int64_t low) {
    const int64_t in_pages = paged_here(r, low), count = keys_here(r, low) - in_pages;
    if (count == 0) return;
    const T* rows[kDense];
    dense_.values(w_.row[r].listed, rows);
    const T** const begin = rows + larger(0, low - w_.row[r].paged);
    add_rows(r, in_pages, count, [&](int64_t i) { return begin[i]; });
  }

  void finish(int64_t r) {
    T* const to = (T*)p_.out + w_.row[r].token * p_.out_token_stride + w_.row[r].query_head * p_.out_head_stride;
    const float sum = w_.row[r].state.sum;
    const Lanes inverse = broadcast(sum == 0.0f ? 0.0f : 1.0f / sum);
    for (int64_t d = 0; d < D_; d += 16)
      narrow(to + d, inverse * load(w_.sums + r * D_ + d), p_.arithmetic == SPECVLM_AVX512_BF16);
  }

  static float as_number(float x) { return x; }
  static float as_number(Bf16 x) { return as_float((uint32_t)x.bits << 16); }

  const specvlm_tree_attention& p_;
  const specvlm_item& item_;
  const specvlm_request& request_;
  const Pages<T> pages_;
  const DenseRows<T> dense_;
  const Workspace<T> w_;
  const RowBlocks blocks_;
  const int64_t D_;
};

template <class T>
void attend_as(const specvlm_tree_attention& p, const specvlm_item& item, void* scratch) {
  if (p.arithmetic == SPECVLM_AVX2) Attention<T, Separate>(p, item, scratch).run();
  else Attention<T, Fused>(p, item, scratch).run();
}

void attend(const specvlm_tree_attention* p, const specvlm_item* item, void* scratch) {
#if defined(__AVX512BF16__)
  if (p->fast && p->dtype == SPECVLM_BFLOAT16) return Attention<Bf16, Dot>(*p, *item, scratch).run();
#endif
  if (p->dtype == SPECVLM_FLOAT) attend_as<float>(*p, *item, scratch);
  else if (p->dtype == SPECVLM_HALF) attend_as<Half>(*p, *item, scratch);
  else attend_as<Bf16>(*p, *item, scratch);
}

int64_t scratch_bytes(const specvlm_tree_attention* p, const specvlm_item* item) {
  return p->dtype == SPECVLM_FLOAT ? Attention<float, Fused>::bytes(*p, *item)
                                   : Attention<Bf16, Fused>::bytes(*p, *item);
}

#if defined(__AVX512BF16__)
constexpr int kHasFast = 1;
#else
constexpr int kHasFast = 0;
#endif

#define SPECVLM_TEXT(x) #x
#define SPECVLM_NAME(x) SPECVLM_TEXT(x)
#define SPECVLM_JOIN(a, b) a##b
#define SPECVLM_SYMBOL(x) SPECVLM_JOIN(specvlm_cpu_variant_, x)

}  // namespace

extern "C" __attribute__((visibility("hidden"))) const specvlm_cpu_variant SPECVLM_SYMBOL(SPECVLM_VARIANT) = {
    SPECVLM_NAME(SPECVLM_VARIANT), kRows, kHasFast, scratch_bytes, attend, race_rows};
