#include "simt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

// Saves the registers a call preserves, changes the stack, and goes on there.
extern "C" void simt_switch(void** save, void* load);
asm(R"(.text
.globl simt_switch
.hidden simt_switch
.type simt_switch,@function
simt_switch:
 pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
 movq %rsp,(%rdi)
 movq %rsi,%rsp
 popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
 ret
.size simt_switch,.-simt_switch
)");

namespace simt {

thread_local Block* block;
thread_local Fiber* fiber;

namespace {

constexpr size_t kStack = 64 << 10;
constexpr size_t kMostShared = 99 << 10;  // what every GPU from sm_80 on lets a block have
uint64_t seed_of_runs = 0;
char launch_end;

struct Unwatched {  // the emulator's own bookkeeping is none of ThreadSanitizer's business
#if defined(__SANITIZE_THREAD__)
  Unwatched() { AnnotateIgnoreReadsBegin(__FILE__, 0), AnnotateIgnoreWritesBegin(__FILE__, 0); }
  ~Unwatched() { AnnotateIgnoreWritesEnd(__FILE__, 0), AnnotateIgnoreReadsEnd(__FILE__, 0); }
#else
  Unwatched() {}
#endif
};

void release([[maybe_unused]] void* at) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(at);
#endif
}
void acquire([[maybe_unused]] void* at) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(at);
#endif
}

SIMT_RAW void switch_to(Fiber& next) {
  fiber = &next;
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(next.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&block->host_asan, next.stack, kStack);
#endif
  simt_switch(&block->host_stack_pointer, next.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(block->host_asan, nullptr, nullptr);
#endif
}

SIMT_RAW void switch_to_host() {
  Fiber* const me = fiber;
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(block->host_tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(me->state == State::kDone ? nullptr : &me->asan, block->host_bottom, block->host_size);
#endif
  simt_switch(&me->stack_pointer, block->host_stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(me->asan, &block->host_bottom, &block->host_size);
#endif
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block->host_bottom, &block->host_size);
#endif
  (*block->body)();
  for (const std::vector<Copy>& group : fiber->copies)
    if (!group.empty()) fail("a cp.async was never waited for");
  release(&launch_end);
  fiber->state = State::kDone;
  switch_to_host();
  __builtin_trap();
}

// Every thread waits: all at one source line, or the barrier diverges.
SIMT_RAW void open_barrier() {
  int line = -1;
  for (Fiber& f : block->fibers) {
    if (f.state == State::kDone) fail("a thread left the kernel while others wait at __syncthreads()");
    if (line < 0) line = f.line;
    if (f.line != line) fail("threads wait at different __syncthreads()");
    f.state = State::kRunning;
  }
  block->waiting = 0;
  block->voted = block->vote;
  block->vote = false;
}

char* new_stack() {
  void* const stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) fail("no memory for a stack");
  return static_cast<char*>(stack);
}

void start_fibers(Block& b, std::vector<char*>& stacks) {
  for (unsigned i = 0; i < b.fibers.size(); i++) {
    Fiber& f = b.fibers[i];
    f.number = i;
    f.thread = dim3(i % b.threads.x, i / b.threads.x % b.threads.y, i / b.threads.x / b.threads.y);
    if (stacks.size() <= i) stacks.push_back(new_stack());
    f.stack = stacks[i];
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(f.stack, kStack);  // the fiber before left its marks: it never returned
#endif
    void** const top = reinterpret_cast<void**>(f.stack + kStack - 64);
    memset(top, 0, 48);
    top[6] = reinterpret_cast<void*>(&fiber_main);
    f.stack_pointer = top;
#if defined(__SANITIZE_THREAD__)
    f.tsan = __tsan_create_fiber(0);
#endif
  }
}

SIMT_RAW void run_block(Block& b, std::vector<char*>& stacks) {
  Unwatched unwatched;
  block = &b;
  const unsigned count = b.threads.x * b.threads.y * b.threads.z;
  b.fibers.resize(count);
  b.warps.resize((count + 31) / 32);
#if defined(__SANITIZE_THREAD__)
  b.host_tsan = __tsan_get_current_fiber();
#endif
  if (b.dynamic_bytes) shared(-1, b.dynamic_bytes);
  start_fibers(b, stacks);
  unsigned done = 0, first = 0, stride = 1;
  while (done < count) {
    bool ran = false;
    if (b.random) {
      b.random = b.random * 6364136223846793005ull + 1442695040888963407ull;
      first = static_cast<unsigned>(b.random >> 33) % count;
      stride = b.random >> 20 & 1 ? 1 : count - 1;
    }
    for (unsigned i = 0; i < count; i++) {
      Fiber& f = b.fibers[(first + i * stride) % count];
      if (f.state != State::kRunning) continue;
      ran = true;
      switch_to(f);
      if (f.state == State::kDone) done++;
    }
    if (ran || done == count) continue;
    if (!b.waiting || b.waiting != count - done) fail("deadlock: some threads wait where the others never come");
    open_barrier();
  }
#if defined(__SANITIZE_THREAD__)
  for (Fiber& f : b.fibers) __tsan_destroy_fiber(f.tsan);
  for (char* stack : stacks) munmap(stack, kStack);  // clears their shadow: the next block reuses the addresses
  stacks.clear();
#endif
  for (auto& [site, memory] : b.shared) free(memory);
}

}  // namespace

[[noreturn]] SIMT_RAW void fail(const char* why) {
  fprintf(stderr, "SIMT ERROR: %s", why);
  if (block) {
    fprintf(stderr, " (block %u,%u,%u)\n", block->index.x, block->index.y, block->index.z);
    static const char* const kNames[] = {"running", "at __syncthreads()", "in a warp operation", "done"};
    std::map<std::string, int> counts;
    for (const Fiber& f : block->fibers) {
      char text[96];
      snprintf(text, sizeof text, "%s, operation %d, mask %08x, line %d", kNames[static_cast<int>(f.state)], f.operation,
               f.mask, f.line % 100000);
      counts[text]++;
    }
    for (const auto& [text, threads] : counts) fprintf(stderr, "  %d threads: %s\n", threads, text.c_str());
  }
  fflush(stderr);
  _exit(66);
}

void set_seed(uint64_t seed) { seed_of_runs = seed; }

SIMT_RAW void barrier(int line) { barrier_or(line, false); }

SIMT_RAW bool barrier_or(int line, bool vote) {
  release(&block->barrier);
  fiber->state = State::kAtBarrier;
  fiber->line = line;
  block->waiting++;
  if (vote) block->vote = true;
  switch_to_host();
  acquire(&block->barrier);
  return block->voted;
}

SIMT_RAW const Slots& meet(uint32_t mask, int operation, const uint64_t* words, int count) {
  Fiber* const me = fiber;
  const unsigned lane = me->lane(), first = me->number - lane;
  if (!(mask >> lane & 1)) fail("a lane takes part in a warp operation whose mask lacks it");
  Warp& warp = block->warps[me->number / 32];
  int at = 0;
  while (at < 8 && warp.meetings[at].mask && warp.meetings[at].mask != mask) at++;
  if (at == 8) fail("more than 8 masks in one warp");
  Meeting& meeting = warp.meetings[at];
  meeting.mask = mask;
  Slots& slots = meeting.slots[meeting.generation & 1];
  for (int i = 0; i < count; i++) slots.word[lane][i] = words[i];
  meeting.arrived |= 1u << lane;
  me->operation = operation;
  me->mask = mask;
  if (meeting.arrived != mask) {
    me->state = State::kInWarp;
    switch_to_host();
    return slots;
  }
  for (unsigned l = 0; l < 32; l++) {
    if (!(mask >> l & 1) || l == lane) continue;
    Fiber& other = block->fibers[first + l];
    if (other.operation != operation) fail("lanes of one mask are at different warp operations");
    other.state = State::kRunning;
  }
  meeting.arrived = 0;
  meeting.generation++;
  return slots;
}

SIMT_RAW void warp_barrier(uint32_t mask) {
  char* const at = &block->warps[fiber->number / 32].barrier;
  release(at);
  meet(mask, 5, nullptr, 0);
  acquire(at);
}

void* shared(int site, size_t bytes) {
  Unwatched unwatched;
  const auto found = block->shared.find(site);
  if (found != block->shared.end()) return found->second;
  void* const memory = aligned_alloc(128, (bytes + 127) / 128 * 128);
  memset(memory, 0xff, bytes);
  block->shared[site] = memory;
  return memory;
}

void run(dim3 grid, dim3 threads, size_t dynamic_bytes, const std::function<void()>& body) {
  const size_t total = static_cast<size_t>(grid.x) * grid.y * grid.z, count = threads.x * threads.y * threads.z;
  if (!total || grid.y > 65535 || grid.z > 65535 || !count || count > 1024 || dynamic_bytes > kMostShared)
    fail("a launch outside the limits of the GPUs");
  static thread_local std::vector<char*> stacks;
  const uint64_t seed = seed_of_runs;
  for (size_t i = 0; i < total; i++) {
    Unwatched unwatched;
    Block b;
    const size_t at = seed && total % 7919 ? (i * 7919 + seed) % total : i;
    b.index = dim3(at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y);
    b.threads = threads;
    b.grid = grid;
    b.dynamic_bytes = dynamic_bytes;
    b.body = &body;
    b.random = seed ? seed + at * 2 + 1 : 0;
    run_block(b, stacks);
  }
  acquire(&launch_end);
  block = nullptr;
}

}  // namespace simt

extern "C" __attribute__((visibility("default"))) void specvlm_simt_seed(uint64_t seed) { simt::set_seed(seed); }
