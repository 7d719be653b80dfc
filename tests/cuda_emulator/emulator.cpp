// CUDA threads as fibers on one thread of the host, their barriers and warp-wide operations, and
// shared memory.
#include "emulator.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define WITH_ASAN(...) __VA_ARGS__
#else
#define WITH_ASAN(...)
#endif

#ifndef __x86_64__
#error "the emulator's switch between fibers is written for x86-64"
#endif

// Saves the registers that a call preserves, and continues where another fiber saved its own.
extern "C" void cuda_emulator_switch(void** save, void* load);
asm(R"(
  .text
  .globl cuda_emulator_switch
  .type cuda_emulator_switch, @function
cuda_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size cuda_emulator_switch, . - cuda_emulator_switch
)");

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_emulator {

Observer* observer = nullptr;
Fiber* current = nullptr;

namespace {

constexpr size_t kGap = 1024;  // around every piece of shared memory
int schedule() {
  const char* seed = std::getenv("CUDA_EMULATOR_SCHEDULE");
  return seed ? std::atoi(seed) : 0;
}

std::string failure;  // of the running or the last launch; empty while all is well

void* host_stack_pointer;
const void* host_stack;
size_t host_stack_bytes;
void* host_sanitizer_stack;

const std::function<void()>* thread_body;
std::vector<Fiber*> idle_fibers;
size_t fibers_made = 0;

using Resident = std::vector<std::unique_ptr<Block>>;

/// The barrier of all threads of a cooperative launch.
struct Grid {
  bool cooperative = false;
  size_t threads = 0, arrived = 0;
  unsigned generation = 0;
  Site site{};
  Resident* blocks = nullptr;
} grid;

void switch_to_host([[maybe_unused]] bool for_good) {
  Fiber* self = current;
  WITH_ASAN(__sanitizer_start_switch_fiber(for_good ? nullptr : &self->sanitizer_stack, host_stack,
                                           host_stack_bytes);)
  cuda_emulator_switch(&self->stack_pointer, host_stack_pointer);
  WITH_ASAN(__sanitizer_finish_switch_fiber(self->sanitizer_stack, &host_stack, &host_stack_bytes);)
}

void complete_barrier(Block& block) {
  int* results = block.results[block.barriers & 1];
  results[int(Predicate::any)] = block.any;
  results[int(Predicate::all)] = block.all;
  results[int(Predicate::count)] = block.count;
  block.any = block.count = block.at_barrier = 0;
  block.all = 1;
  ++block.barriers;
  for (Fiber* fiber : block.fibers)
    if (fiber->state == State::at_barrier) fiber->state = State::ready;
  if (observer) observer->block_synchronised(block);
}

void complete_grid_barrier() {
  for (auto& block : *grid.blocks) {
    ++block->barriers;
    for (Fiber* fiber : block->fibers) fiber->state = State::ready;
    if (observer) observer->block_synchronised(*block);
  }
  if (observer) observer->grid_synchronised();
  grid.arrived = 0;
  ++grid.generation;
}

/// Lets the lanes go on if all that its mask names, and have not left the kernel, are there.
bool complete(Rendezvous& meeting, Block& block, unsigned warp) {
  const unsigned required = meeting.mask & block.warps[warp].alive;
  if (!meeting.arrived || (meeting.arrived & required) != required) return false;
  for (unsigned lane = 0; lane < kWarp; ++lane)
    if (meeting.arrived >> lane & 1) block.fibers[warp * kWarp + lane]->state = State::ready;
  // The instrumentation knows only meetings of whole warps as an order.
  if (observer && meeting.orders_memory && required == block.warps[warp].alive)
    observer->warp_synchronised(block, warp);
  meeting.arrived = 0;
  ++meeting.generation;
  return true;
}

/// What waits for all threads that have not left the kernel may now be complete.
void leave(Fiber& fiber) {
  Block& block = *fiber.block;
  Warp& warp = block.warps[fiber.warp];
  fiber.state = State::done;
  ++block.exited;
  warp.alive &= ~(1u << fiber.lane);
  if (block.at_barrier && block.at_barrier == block.fibers.size() - block.exited)
    complete_barrier(block);
  for (Rendezvous& meeting : warp.rendezvous) complete(meeting, block, fiber.warp);
}

void fiber_main() {
  WITH_ASAN(__sanitizer_finish_switch_fiber(nullptr, &host_stack, &host_stack_bytes);)
  (*thread_body)();
  leave(*current);
  switch_to_host(true);
  std::abort();
}

void resume(Fiber& fiber) {
  current = &fiber;
  threadIdx = fiber.index;
  blockIdx = fiber.block->index;
  WITH_ASAN(__sanitizer_start_switch_fiber(&host_sanitizer_stack, fiber.stack, kStackBytes);)
  cuda_emulator_switch(&host_stack_pointer, fiber.stack_pointer);
  WITH_ASAN(__sanitizer_finish_switch_fiber(host_sanitizer_stack, nullptr, nullptr);)
  current = nullptr;
}

Fiber* new_fiber() {
  if (!idle_fibers.empty()) {
    Fiber* fiber = idle_fibers.back();
    idle_fibers.pop_back();
    return fiber;
  }
  constexpr size_t guard = 4096;
  void* memory = mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("a stack for a CUDA thread");
    std::abort();
  }
  // Two mappings a stack: the kernel of the host allows about 65,000, so the later ones have no
  // guard.
  if (++fibers_made <= 16384) mprotect(memory, guard, PROT_NONE);
  Fiber* fiber = new Fiber{};
  fiber->stack = static_cast<char*>(memory) + guard;
  return fiber;
}

void start(Fiber& fiber) {
  // The return address of the first switch, above the six registers that it restores.
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
  fiber.state = State::ready;
}

void* allocate_shared(Block& block, size_t bytes, size_t alignment) {
  const size_t begin = (block.shared_end + alignment - 1) / alignment * alignment;
  char* address = block.shared.get() + begin;
  block.shared_end = begin + bytes + kGap;
  WITH_ASAN(__asan_unpoison_memory_region(address, bytes);)
  return address;
}

std::unique_ptr<Block> begin_block(unsigned serial, const Configuration& configuration,
                                   std::mt19937* shuffled) {
  auto block = std::make_unique<Block>();
  const dim3 grid = configuration.grid, size = configuration.block;
  block->serial = serial;
  block->index = {serial % grid.x, serial / grid.x % grid.y, serial / grid.x / grid.y};
  block->dynamic_bytes = configuration.dynamic_shared;
  block->shared_bytes = configuration.dynamic_shared + 2 * kStaticLimit + 4 * kGap;
  void* memory = nullptr;
  if (posix_memalign(&memory, 1024, block->shared_bytes)) std::abort();
  std::memset(memory, 0xff, block->shared_bytes);
  WITH_ASAN(__asan_poison_memory_region(memory, block->shared_bytes);)
  block->shared = {static_cast<char*>(memory), [](void* address) { std::free(address); }};
  allocate_shared(*block, configuration.dynamic_shared, 1024);

  const unsigned threads = size.x * size.y * size.z;
  block->warps.resize((threads + kWarp - 1) / kWarp);
  block->fibers.reserve(threads);
  block->order.reserve(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber* fiber = new_fiber();
    fiber->block = block.get();
    fiber->index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    fiber->linear = i;
    fiber->warp = i / kWarp;
    fiber->lane = i % kWarp;
    start(*fiber);
    block->fibers.push_back(fiber);
    block->order.push_back(i);
    block->warps[i / kWarp].alive |= 1u << (i % kWarp);
  }
  if (shuffled) std::shuffle(block->order.begin(), block->order.end(), *shuffled);
  if (observer) observer->block_begins(*block);
  return block;
}

void end_block(Block& block) {
  if (observer) observer->block_ends(block);
  WITH_ASAN(__asan_unpoison_memory_region(block.shared.get(), block.shared_bytes);)
  for (Fiber* fiber : block.fibers) {
    // A thread that a failure cut short leaves its stack as it was.
    WITH_ASAN(if (fiber->state != State::done)
                  __asan_unpoison_memory_region(fiber->stack, kStackBytes);)
    idle_fibers.push_back(fiber);
  }
}

/// Gives every thread that can go on one turn; tells whether there was one.
bool advance(Block& block) {
  bool progress = false;
  for (const unsigned i : block.order) {
    if (block.fibers[i]->state != State::ready) continue;
    resume(*block.fibers[i]);
    progress = true;
    if (!failure.empty()) break;
  }
  return progress;
}

std::string name_of(const Block& block) {
  char text[64];
  std::snprintf(text, sizeof text, "block (%u, %u, %u)", block.index.x, block.index.y,
                block.index.z);
  return text;
}

void report_deadlock(const Block& block) {
  std::string text = "no thread can go on in " + name_of(block) + ": " +
                     std::to_string(block.exited) + " of " + std::to_string(block.fibers.size()) +
                     " have left the kernel";
  const Fiber* previous = nullptr;
  int shown = 0;
  for (const Fiber* fiber : block.fibers) {
    if (fiber->state == State::done) continue;
    if (previous && previous->site.line == fiber->site.line && previous->mask == fiber->mask)
      continue;
    if (++shown > 6) break;
    char mask[32] = "";
    if (fiber->state == State::in_warp_operation)
      std::snprintf(mask, sizeof mask, "(mask %08x)", fiber->mask);
    text += "; thread " + std::to_string(fiber->linear) + " waits in " + fiber->operation + mask +
            " at " + describe(fiber->site);
    previous = fiber;
  }
  fail(text);
}

/// Blocks that are on the device together: their number, and the order of blocks and threads, is
/// what schedules differ in. 0: one at a time, in order; 1: in reverse; others: up to 4, shuffled.
/// Those of a cooperative launch all are.
void run_blocks(const Configuration& configuration, unsigned blocks, unsigned& barriers) {
  const int seed = schedule();
  std::mt19937 random(seed);
  std::vector<unsigned> order(blocks);
  for (unsigned i = 0; i < blocks; ++i) order[i] = seed == 1 ? blocks - 1 - i : i;
  if (seed > 1) std::shuffle(order.begin(), order.end(), random);
  const size_t together = configuration.cooperative ? blocks : seed > 1 ? 1 + seed % 4 : 1;
  Resident resident;
  grid = {.cooperative = configuration.cooperative,
          .threads = size_t(blocks) * blockDim.x * blockDim.y * blockDim.z,
          .blocks = &resident};
  size_t next = 0;
  while (failure.empty() && (next < blocks || !resident.empty())) {
    while (resident.size() < together && next < blocks)
      resident.push_back(begin_block(order[next++], configuration, seed > 1 ? &random : nullptr));
    bool progress = false;
    for (size_t i = 0; i < resident.size() && failure.empty();) {
      Block& block = *resident[i];
      progress |= advance(block);
      if (failure.empty() && block.exited == block.fibers.size()) {
        barriers = std::max(barriers, block.barriers);
        end_block(block);
        resident.erase(resident.begin() + i);
      } else {
        ++i;
      }
    }
    if (!progress && failure.empty()) report_deadlock(*resident.front());
  }
  for (auto& block : resident) end_block(*block);
}

Rendezvous& arrive(unsigned mask, uint64_t value, const char* operation, Site site, unsigned& slot,
                   bool orders_memory = false) {
  Fiber& self = *current;
  Warp& warp = self.block->warps[self.warp];
  if (!(mask >> self.lane & 1))
    fail(std::string(operation) + " at " + describe(site) + ": the mask lacks the calling lane " +
         std::to_string(self.lane));
  const size_t count = warp.rendezvous.size();
  size_t index = 0;
  while (index < count && warp.rendezvous[index].mask != mask) ++index;
  if (index == count) warp.rendezvous.emplace_back().mask = mask;
  Rendezvous* meeting = &warp.rendezvous[index];
  if (!meeting->arrived) {
    meeting->operation = operation;
    meeting->site = site;
    meeting->orders_memory = orders_memory;
    meeting->present[meeting->generation & 1] = 0;
  } else if (meeting->operation != operation || meeting->site.line != site.line ||
             std::strcmp(meeting->site.file, site.file)) {
    fail("the lanes of a warp meet in different operations: lane " + std::to_string(self.lane) +
         " in " + operation + " at " + describe(site) + ", others in " + meeting->operation +
         " at " + describe(meeting->site));
  }
  const unsigned generation = meeting->generation;
  slot = generation & 1;
  meeting->values[slot][self.lane] = value;
  meeting->present[slot] |= 1u << self.lane;
  meeting->arrived |= 1u << self.lane;
  self.operation = operation;
  self.mask = mask;
  self.site = site;
  self.state = State::in_warp_operation;
  if (complete(*meeting, *self.block, self.warp)) self.state = State::ready;
  while (warp.rendezvous[index].generation == generation) switch_to_host(false);
  return warp.rendezvous[index];
}

}  // namespace

std::string debug_information(const void* address, const char* options) {
  Dl_info info;
  if (!dladdr(address, &info)) return "";
  char command[4096], line[4096];
  std::snprintf(command, sizeof command, "addr2line %s -e '%s' 0x%zx 2>/dev/null", options,
                info.dli_fname,
                size_t(static_cast<const char*>(address) - static_cast<char*>(info.dli_fbase)));
  std::string text;
  if (FILE* pipe = popen(command, "r")) {
    while (std::fgets(line, sizeof line, pipe)) text += line;
    pclose(pipe);
  }
  return text;
}

std::string kernel_name(const void* function, const char* fallback) {
  static std::map<const void*, std::string> known;
  std::string& name = known[function];
  if (name.empty()) {
    name = debug_information(function, "-f -C");
    name = name.substr(0, name.find('\n'));
    name = name.substr(0, name.rfind('('));
    if (name.rfind("void ", 0) == 0) name = name.substr(5);
    if (name.empty() || name == "??") name = fallback;
  }
  return name;
}

std::string describe(const Site& site) {
  return std::string(site.file) + ":" + std::to_string(site.line);
}

void fail(const std::string& message) {
  if (failure.empty()) failure = message;
  if (current) {
    switch_to_host(true);
    std::abort();
  }
}

void* dynamic_shared() {
  return current->block->shared.get();
}

void* static_shared(const void* identity, size_t bytes, size_t alignment) {
  Block& block = *current->block;
  for (const StaticShared& known : block.statics)
    if (known.identity == identity) return known.address;
  block.static_bytes = (block.static_bytes + alignment - 1) / alignment * alignment + bytes;
  if (block.static_bytes > kStaticLimit ||
      block.static_bytes + block.dynamic_bytes > device().shared_per_block)
    fail("static and dynamic shared memory do not fit a block of this architecture");
  void* address = allocate_shared(block, bytes, alignment);
  block.statics.push_back({identity, address});
  return address;
}

int barrier(Predicate kind, int predicate, Site site) {
  Fiber& self = *current;
  Block& block = *self.block;
  if (!block.at_barrier) {
    block.barrier_site = site;
  } else if (block.barrier_site.line != site.line ||
             std::strcmp(block.barrier_site.file, site.file)) {
    fail("the threads of " + name_of(block) + " meet in different barriers: thread " +
         std::to_string(self.linear) + " at " + describe(site) + ", others at " +
         describe(block.barrier_site));
  }
  block.any |= predicate != 0;
  block.all &= predicate != 0;
  block.count += predicate != 0;
  const unsigned generation = block.barriers;
  self.state = State::at_barrier;
  self.operation = "__syncthreads";
  self.mask = 0;
  self.site = site;
  if (++block.at_barrier == block.fibers.size() - block.exited) complete_barrier(block);
  while (block.barriers == generation) switch_to_host(false);
  return block.results[generation & 1][int(kind)];
}

void grid_barrier(Site site) {
  Fiber& self = *current;
  if (!grid.cooperative)
    fail("a barrier of the grid at " + describe(site) + ", and the launch is not cooperative");
  if (!grid.arrived)
    grid.site = site;
  else if (grid.site.line != site.line || std::strcmp(grid.site.file, site.file))
    fail("the threads of the grid meet in different barriers: thread " +
         std::to_string(self.linear) + " of " + name_of(*self.block) + " at " + describe(site) +
         ", others at " + describe(grid.site));
  const unsigned generation = grid.generation;
  self.state = State::at_grid_barrier;
  self.operation = "the grid's sync";
  self.mask = 0;
  self.site = site;
  // A block that has left the kernel is missed for ever.
  if (++grid.arrived == grid.threads) complete_grid_barrier();
  while (grid.generation == generation) switch_to_host(false);
}

void sync_warp(unsigned mask, Site site) {
  unsigned slot;
  arrive(mask, 0, "__syncwarp", site, slot, true);
}

unsigned ballot(unsigned mask, bool predicate, Site site) {
  unsigned slot, votes = 0;
  const Rendezvous& meeting = arrive(mask, predicate, "a warp vote", site, slot);
  for (unsigned lane = 0; lane < kWarp; ++lane)
    if (meeting.present[slot] >> lane & 1) votes |= unsigned(meeting.values[slot][lane]) << lane;
  return votes;
}

uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t value, int argument, int width, Site site) {
  static const char* const names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
                                      "__shfl_xor_sync"};
  unsigned slot;
  const Rendezvous& meeting = arrive(mask, value, names[int(kind)], site, slot);
  const int lane = int(current->lane), first = lane & ~(width - 1), last = first + width - 1;
  int source = lane;
  switch (kind) {
    case Shuffle::index:
      source = first | (argument & (width - 1));
      break;
    case Shuffle::up:
      source = lane - argument < first ? lane : lane - argument;
      break;
    case Shuffle::down:
      source = lane + argument > last ? lane : lane + argument;
      break;
    case Shuffle::exclusive_or:
      source = (lane ^ argument) > last ? lane : lane ^ argument;
      break;
  }
  if (!(meeting.present[slot] >> source & 1))
    fail(std::string(names[int(kind)]) + " at " + describe(site) + ": lane " +
         std::to_string(lane) + " reads lane " + std::to_string(source) +
         ", which takes no part (not in the mask, or it has left the kernel)");
  return meeting.values[slot][source];
}

void fence() {
  if (observer) observer->fenced();
}

void atomic_access(const void* address, size_t bytes) {
  if (observer) observer->atomic(address, bytes);
}

void check_launch_bounds(unsigned max_threads, unsigned, unsigned) {
  if (blockDim.x * blockDim.y * blockDim.z > max_threads)
    fail("launched with more threads than its __launch_bounds__ of " + std::to_string(max_threads));
}

std::string execute(const char* kernel, const void* function, const Configuration& configuration,
                    const std::function<void()>& thread) {
  if (current) {
    std::fprintf(stderr, "a launch from inside a kernel\n");
    std::abort();
  }
  failure.clear();
  thread_body = &thread;
  blockDim = configuration.block;
  gridDim = configuration.grid;
  unsigned barriers = 0;
  if (observer) observer->launch_begins(kernel, function);
  run_blocks(configuration, configuration.grid.x * configuration.grid.y * configuration.grid.z,
             barriers);
  if (observer) observer->launch_ends(barriers, !failure.empty());
  return failure.empty() ? "" : kernel_name(function, kernel) + ": " + failure;
}

}  // namespace cuda_emulator
