// What the emulator's files know of one another: the device, and a running launch.
#pragma once
#include <cuda_runtime.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace cuda_emulator {

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kStaticLimit = 48 << 10;  // bytes of shared memory that a kernel need not ask for

/// The device that is emulated: an H100, or what CUDA_EMULATOR_ARCHITECTURE names.
struct Device {
  int major, minor, processors, threads_per_processor;
  size_t shared_per_block, shared_per_processor;
};
const Device& device();

enum class State { ready, at_barrier, at_grid_barrier, in_warp_operation, done };

struct Block;

/// One CUDA thread: a stack, and where it waits.
struct Fiber {
  void* stack_pointer;
  char* stack;
  Block* block;
  uint3 index;
  unsigned linear, warp, lane;
  State state;
  const char* operation;
  unsigned mask;
  Site site;
  void* sanitizer_stack;
};

/// The lanes of one mask that have come to a warp-wide operation. Results are kept for one
/// generation, for lanes that wake up after others have gone on to the next one.
struct Rendezvous {
  unsigned mask = 0, arrived = 0, generation = 0;
  const char* operation = nullptr;
  bool orders_memory = false;
  Site site{};
  uint64_t values[2][kWarp];
  unsigned present[2] = {};
};

struct Warp {
  unsigned alive = 0;
  std::vector<Rendezvous> rendezvous;
};

struct StaticShared {
  const void* identity;
  void* address;
};

/// A resident block. Its shared memory is one stretch: dynamic first, then static variables, with
/// gaps between that nothing may touch.
struct Block {
  uint3 index;
  unsigned serial;  // of all blocks of the launch
  std::vector<Fiber*> fibers;
  std::vector<unsigned> order;
  std::vector<Warp> warps;
  std::unique_ptr<char[], void (*)(void*)> shared{nullptr, nullptr};
  size_t dynamic_bytes = 0, shared_bytes = 0, static_bytes = 0, shared_end = 0;
  std::vector<StaticShared> statics;
  unsigned exited = 0, at_barrier = 0, barriers = 0;
  Site barrier_site{};
  int any = 0, all = 1, count = 0;
  int results[2][4] = {};
  void* observed = nullptr;  // what the observer keeps of it
};

/// Sees every access and every ordering; there is one in an instrumented build.
class Observer {
 public:
  virtual void launch_begins(const char* kernel, const void* function) = 0;
  virtual void launch_ends(unsigned barriers, bool failed) = 0;
  virtual void block_begins(Block&) = 0;
  virtual void block_ends(Block&) = 0;
  virtual void block_synchronised(Block&) = 0;
  virtual void grid_synchronised() = 0;
  virtual void warp_synchronised(Block&, unsigned warp) = 0;
  virtual void fenced() = 0;
  virtual void atomic(const void* address, size_t bytes) = 0;

 protected:
  ~Observer() = default;
};
extern Observer* observer;

/// The running CUDA thread; null outside kernels.
extern Fiber* current;

/// Runs a launch to its end, and returns what went wrong in the kernel; empty if nothing.
std::string execute(const char* kernel, const void* function, const Configuration&,
                    const std::function<void()>& thread);
/// Ends the launch with a message. Does not return when called from a CUDA thread.
void fail(const std::string& message);
std::string describe(const Site&);

/// What addr2line says of an address in this library, empty if nothing.
std::string debug_information(const void* address, const char* options);
/// A kernel's name with its template arguments, or the launch's text where there is no debug
/// information.
std::string kernel_name(const void* function, const char* fallback);

}  // namespace cuda_emulator
