// Sees every load and store of kernels compiled with -fsanitize=thread, through the calls that the
// compiler puts before them. Reports races by CUDA's own rules of order (block barriers,
// __syncwarp, fence and atomic; a shuffle orders nothing) and reads of shared memory that nobody
// has written; on demand counts 32-byte sectors of global and wavefronts of shared memory.
//
// Memory is watched in granules of two bytes: neighbouring single bytes count as one. A __syncwarp
// orders if its mask names the whole warp.
#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <unordered_map>

#include "emulator.h"

namespace cuda_emulator {
namespace {

constexpr size_t kGranule = 2;
constexpr size_t kSector = 32;
constexpr unsigned kBanks = 32;

struct Access {
  uint32_t pc = 0;  // offset in this library; 0: there was none
  uint32_t block = 0, barriers = 0;
  uint16_t thread = 0, warp_meetings = 0;
};

/// The last write of a granule, and what has read it since.
struct Granule {
  uint32_t epoch = 0;
  Access write, read;
  uint32_t lanes = 0;  // that read since their warp met
  bool atomic = false, many_warps = false, many_blocks = false;
};

struct Request {
  uintptr_t address;
  uint32_t pc;
  uint8_t bytes;
  bool store, shared;
};

/// What another block's fence and atomic have made known: its accesses before that barrier.
struct Release {
  uint32_t barriers = 0;
  uint16_t thread = 0;
};
using Releases = std::map<uint32_t, Release>;

struct BlockRecord {
  std::vector<Granule> shared;
  std::vector<uint16_t> warp_meetings;
  std::vector<bool> fenced;  // per thread, since its last atomic operation
  Releases seen;
  std::vector<std::vector<Request>> requests;  // per thread, since the last barrier
};

struct Traffic {
  uint64_t requests = 0, bytes = 0, transactions = 0, ideal = 0;
};

struct SectorTraffic {
  uint32_t sectors[2] = {}, bytes[2] = {};
};

struct LaunchRecord {
  std::string kernel;
  dim3 grid, block;
  unsigned barriers = 0, warp_meetings = 0;
  size_t shared_bytes = 0;
  Traffic traffic[2][2];  // [shared][store]
};

uintptr_t image_begin, image_end;

int find_image(dl_phdr_info* info, size_t, void*) {
  const uintptr_t here = reinterpret_cast<uintptr_t>(&find_image);
  uintptr_t begin = UINTPTR_MAX, end = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type != PT_LOAD) continue;
    begin = std::min(begin, uintptr_t(info->dlpi_addr + header.p_vaddr));
    end = std::max(end, uintptr_t(info->dlpi_addr + header.p_vaddr + header.p_memsz));
  }
  if (here < begin || here >= end) return 0;
  image_begin = begin;
  image_end = end;
  return 1;
}

/// Source lines of an instruction: innermost first, with the places it was inlined into.
std::string source_of(uint32_t pc) {
  const std::string lines = debug_information(reinterpret_cast<void*>(image_begin + pc - 1), "-i");
  std::string text;
  for (size_t begin = 0, end; (end = lines.find('\n', begin)) != std::string::npos;
       begin = end + 1) {
    const std::string line = lines.substr(begin, end - begin);
    text += (text.empty() ? "" : ", from ") + line.substr(0, line.find(' '));
  }
  return text.empty() ? "an unknown place" : text;
}

class Instrument final : public Observer {
 public:
  Instrument() {
    dl_iterate_phdr(find_image, nullptr);
    observer = this;
  }

  void launch_begins(const char* kernel, const void* function) override {
    ++epoch_;
    global_.clear();
    released_.clear();
    pthread_attr_t attributes;
    void* stack = nullptr;
    size_t bytes = 0;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &bytes);
    pthread_attr_destroy(&attributes);
    host_stack_ = reinterpret_cast<uintptr_t>(stack);
    host_stack_bytes_ = bytes;
    if (counting_) launches_.push_back({kernel_name(function, kernel), gridDim, blockDim});
  }

  void launch_ends(unsigned barriers, bool failed) override {
    if (!counting_) return;
    if (failed)
      launches_.pop_back();
    else
      launches_.back().barriers = barriers;
  }

  void block_begins(Block& block) override {
    auto* record = new BlockRecord;
    record->shared.resize(block.shared_bytes / kGranule + 1);
    record->warp_meetings.resize(block.warps.size());
    record->fenced.resize(block.fibers.size());
    record->requests.resize(block.fibers.size());
    block.observed = record;
  }

  void block_ends(Block& block) override {
    if (counting_) {
      count_requests(block);
      LaunchRecord& launch = launches_.back();
      launch.shared_bytes = std::max(launch.shared_bytes, block.static_bytes + block.dynamic_bytes);
      if (block.serial == 0)
        for (const auto meetings : record_of(block).warp_meetings)
          launch.warp_meetings = std::max(launch.warp_meetings, unsigned(meetings));
    }
    delete static_cast<BlockRecord*>(block.observed);
    block.observed = nullptr;
  }

  void block_synchronised(Block& block) override {
    if (counting_) count_requests(block);
  }

  /// All that was done to global memory before is in order with all that comes.
  void grid_synchronised() override { ++epoch_; }

  void warp_synchronised(Block& block, unsigned warp) override {
    ++record_of(block).warp_meetings[warp];
  }

  void fenced() override { record_of(*current->block).fenced[current->linear] = true; }

  void atomic(const void* address, size_t bytes) override {
    BlockRecord& record = record_of(*current->block);
    Releases& released = released_[address];
    for (const auto& [block, release] : released) {
      Release& seen = record.seen[block];
      if (seen.barriers < release.barriers) seen = release;
    }
    if (record.fenced[current->linear]) {
      record.fenced[current->linear] = false;
      released[current->block->serial] = {current->block->barriers, uint16_t(current->linear)};
      for (const auto& [block, release] : record.seen) {
        Release& passed_on = released[block];
        if (passed_on.barriers < release.barriers) passed_on = release;
      }
    }
    access(reinterpret_cast<uintptr_t>(address), bytes, true, true,
           reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
  }

  void access(uintptr_t address, size_t bytes, bool store, bool is_atomic, uintptr_t pc) {
    Block& block = *current->block;
    const uintptr_t shared = reinterpret_cast<uintptr_t>(block.shared.get());
    const bool is_shared = address - shared < block.shared_bytes;
    if (!is_shared && is_private(address)) return;
    BlockRecord& record = record_of(block);
    Access now;
    now.pc = uint32_t(pc - image_begin);
    now.block = block.serial;
    now.barriers = block.barriers;
    now.thread = uint16_t(current->linear);
    now.warp_meetings = record.warp_meetings[current->warp];
    for (uintptr_t at = address / kGranule; at <= (address + bytes - 1) / kGranule; ++at) {
      Granule& granule = is_shared ? record.shared[at - shared / kGranule] : global_granule(at);
      if (!is_shared && granule.epoch != epoch_) granule = Granule{.epoch = epoch_};
      if (is_shared && !store && !granule.write.pc)
        fail("thread " + std::to_string(now.thread) + " of " + block_name(now.block) +
             " reads shared memory that nobody has written, at " + source_of(now.pc));
      check(granule, now, store, is_atomic, record.seen, is_shared);
    }
    if (counting_)
      record.requests[current->linear].push_back(
          {address, now.pc, uint8_t(bytes), store, is_shared});
  }

  void start_counting(bool on) {
    counting_ = on;
    launches_.clear();
    sectors_.clear();
  }

  void traffic(uintptr_t begin, size_t bytes, uint64_t result[4]) const {
    std::fill_n(result, 4, 0);
    for (uintptr_t at = begin / kSector; bytes && at <= (begin + bytes - 1) / kSector; ++at) {
      const auto found = sectors_.find(at);
      if (found == sectors_.end()) continue;
      for (int store = 0; store < 2; ++store) {
        result[2 * store] += found->second.bytes[store];
        result[2 * store + 1] += found->second.sectors[store];
      }
    }
  }

  std::string counts() const {
    std::string text = "[";
    for (const LaunchRecord& launch : launches_) {
      char head[512];
      std::snprintf(head, sizeof head,
                    "%s{\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], "
                    "\"barriers\": %u, \"warp_barriers\": %u, \"shared_bytes\": %zu",
                    text.size() > 1 ? ", " : "", launch.kernel.c_str(), launch.grid.x,
                    launch.grid.y, launch.grid.z, launch.block.x, launch.block.y, launch.block.z,
                    launch.barriers, launch.warp_meetings, launch.shared_bytes);
      text += head;
      for (int shared = 0; shared < 2; ++shared)
        for (int store = 0; store < 2; ++store) {
          const Traffic& traffic = launch.traffic[shared][store];
          std::snprintf(head, sizeof head,
                        ", \"%s_%ss\": {\"requests\": %lu, \"bytes\": %lu, \"%s\": %lu, "
                        "\"ideal\": %lu}",
                        shared ? "shared" : "global", store ? "store" : "load", traffic.requests,
                        traffic.bytes, shared ? "wavefronts" : "sectors", traffic.transactions,
                        traffic.ideal);
          text += head;
        }
      text += "}";
    }
    return text + "]";
  }

 private:
  static BlockRecord& record_of(Block& block) { return *static_cast<BlockRecord*>(block.observed); }

  static std::string block_name(uint32_t serial) { return "block " + std::to_string(serial); }

  /// Stacks and the program's own data: local variables, parameters, threadIdx.
  bool is_private(uintptr_t address) const {
    return address - reinterpret_cast<uintptr_t>(current->stack) < kStackBytes ||
           address - image_begin < image_end - image_begin ||
           address - host_stack_ < host_stack_bytes_;
  }

  Granule& global_granule(uintptr_t index) {
    constexpr uintptr_t page = 2048;
    auto& granules = global_[index / page];
    if (granules.empty()) granules.resize(page);
    return granules[index % page];
  }

  static bool is_ordered(const Access& before, const Access& now, const Releases& seen) {
    if (before.block == now.block)
      return before.thread == now.thread || before.barriers < now.barriers ||
             (before.thread / kWarp == now.thread / kWarp &&
              before.warp_meetings < now.warp_meetings);
    const auto release = seen.find(before.block);
    return release != seen.end() &&
           (before.barriers < release->second.barriers || before.thread == release->second.thread);
  }

  static bool reads_are_ordered(const Granule& granule, const Access& now, const Releases& seen) {
    const Access& read = granule.read;
    if (granule.many_blocks) return false;
    if (read.block != now.block || read.barriers < now.barriers) return is_ordered(read, now, seen);
    if (granule.many_warps || read.thread / kWarp != now.thread / kWarp) return false;
    return read.warp_meetings < now.warp_meetings || !(granule.lanes & ~(1u << now.thread % kWarp));
  }

  static void add_read(Granule& granule, const Access& now, const Releases& seen) {
    const uint32_t lane = 1u << now.thread % kWarp;
    if (!granule.read.pc || reads_are_ordered(granule, now, seen)) {
      granule.lanes = lane;
      granule.many_warps = false;
    } else if (granule.read.block != now.block) {
      granule.many_blocks = true;
    } else if (granule.read.thread / kWarp != now.thread / kWarp) {
      granule.many_warps = true;
    } else {
      granule.lanes |= lane;
    }
    granule.read = now;
  }

  static void check(Granule& granule, const Access& now, bool store, bool is_atomic,
                    const Releases& seen, bool is_shared) {
    const Access& write = granule.write;
    if (write.pc && !(is_atomic && granule.atomic) && !is_ordered(write, now, seen))
      report(write, "wrote", now, store, is_shared);
    if (!store) return add_read(granule, now, seen);
    if (granule.read.pc && !reads_are_ordered(granule, now, seen))
      report(granule.read, "read", now, store, is_shared);
    granule.write = now;
    granule.atomic = is_atomic;
    granule.read = {};
    granule.lanes = 0;
    granule.many_warps = granule.many_blocks = false;
  }

  static void report(const Access& before, const char* did, const Access& now, bool store,
                     bool is_shared) {
    const auto who = [](const Access& access) {
      return "thread " + std::to_string(access.thread) + " of " + block_name(access.block);
    };
    fail(std::string("race on ") + (is_shared ? "shared" : "global") + " memory: " + who(now) +
         (store ? " writes" : " reads") + " at " + source_of(now.pc) + " what " + who(before) +
         " " + did + " at " + source_of(before.pc) + ", and nothing orders the two");
  }

  /// Joins the accesses of a warp's lanes into requests: the n-th execution of one instruction.
  void count_requests(Block& block) {
    struct Lane {
      uint32_t pc, nth;
      unsigned lane;
      const Request* request;
    };
    BlockRecord& record = record_of(block);
    std::vector<Lane> lanes;
    for (unsigned warp = 0; warp < block.warps.size(); ++warp) {
      lanes.clear();
      for (unsigned lane = 0; lane < kWarp && warp * kWarp + lane < block.fibers.size(); ++lane) {
        std::unordered_map<uint32_t, uint32_t> executions;
        for (const Request& request : record.requests[warp * kWarp + lane])
          lanes.push_back({request.pc, executions[request.pc]++, lane, &request});
      }
      std::sort(lanes.begin(), lanes.end(), [](const Lane& a, const Lane& b) {
        return std::tie(a.pc, a.nth, a.lane) < std::tie(b.pc, b.nth, b.lane);
      });
      for (size_t begin = 0, end; begin < lanes.size(); begin = end) {
        for (end = begin; end < lanes.size() && lanes[end].pc == lanes[begin].pc &&
                          lanes[end].nth == lanes[begin].nth;)
          ++end;
        const Request& first = *lanes[begin].request;
        Traffic& total = launches_.back().traffic[first.shared][first.store];
        ++total.requests;
        std::vector<uintptr_t> units;  // sectors, or words
        const size_t unit = first.shared ? 4 : kSector;
        for (size_t i = begin; i < end; ++i) {
          const Request& request = *lanes[i].request;
          if (first.shared) total.bytes += request.bytes;
          for (uintptr_t at = request.address / unit;
               at <= (request.address + request.bytes - 1) / unit; ++at)
            units.push_back(at);
        }
        std::sort(units.begin(), units.end());
        units.erase(std::unique(units.begin(), units.end()), units.end());
        if (first.shared) {
          total.ideal += (units.size() + kBanks - 1) / kBanks;
          total.transactions += wavefronts(&lanes[begin], end - begin, first.bytes);
        } else {
          total.transactions += units.size();
          count_sectors(&lanes[begin], end - begin, units, first.store, total);
        }
      }
    }
    for (auto& requests : record.requests) requests.clear();
  }

  /// Banks serve one word each at a time; 8-byte accesses go by half-warps, 16-byte ones by
  /// quarter-warps.
  template <class Lane>
  static uint64_t wavefronts(const Lane* lanes, size_t count, size_t bytes) {
    const unsigned together = bytes >= 16 ? 8 : bytes == 8 ? 16 : 32;
    uint64_t total = 0;
    for (unsigned first = 0; first < kWarp; first += together) {
      std::vector<uintptr_t> words;
      for (size_t i = 0; i < count; ++i) {
        if (lanes[i].lane < first || lanes[i].lane >= first + together) continue;
        const Request& request = *lanes[i].request;
        for (uintptr_t word = request.address / 4;
             word <= (request.address + request.bytes - 1) / 4; ++word)
          words.push_back(word);
      }
      std::sort(words.begin(), words.end());
      words.erase(std::unique(words.begin(), words.end()), words.end());
      unsigned per_bank[kBanks] = {}, most = 0;
      for (const uintptr_t word : words) most = std::max(most, ++per_bank[word % kBanks]);
      total += most;
    }
    return total;
  }

  template <class Lane>
  void count_sectors(const Lane* lanes, size_t count, const std::vector<uintptr_t>& sectors,
                     bool store, Traffic& total) {
    for (const uintptr_t sector : sectors) ++sectors_[sector].sectors[store];
    std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
    for (size_t i = 0; i < count; ++i)
      ranges.emplace_back(lanes[i].request->address,
                          lanes[i].request->address + lanes[i].request->bytes);
    std::sort(ranges.begin(), ranges.end());
    uintptr_t covered = 0;
    uint64_t distinct = 0;
    for (auto [begin, end] : ranges) {
      begin = std::max(begin, covered);
      while (begin < end) {
        const uintptr_t stop = std::min(end, (begin / kSector + 1) * kSector);
        sectors_[begin / kSector].bytes[store] += uint32_t(stop - begin);
        distinct += stop - begin;
        begin = stop;
      }
      covered = std::max(covered, end);
    }
    total.bytes += distinct;
    total.ideal += (distinct + kSector - 1) / kSector;
  }

  uint32_t epoch_ = 0;  // of global memory: it changes with launches and the grid's barriers
  bool counting_ = false;
  uintptr_t host_stack_ = 0;
  size_t host_stack_bytes_ = 0;
  std::unordered_map<uintptr_t, std::vector<Granule>> global_;
  std::unordered_map<const void*, Releases> released_;
  std::vector<LaunchRecord> launches_;
  std::unordered_map<uintptr_t, SectorTraffic> sectors_;
};

Instrument instrument;

inline void seen(const void* address, size_t bytes, bool store, const void* pc) {
  if (!current) return;
  instrument.access(reinterpret_cast<uintptr_t>(address), bytes, store, false,
                    reinterpret_cast<uintptr_t>(pc));
}

}  // namespace
}  // namespace cuda_emulator

using cuda_emulator::instrument;

extern "C" {

/// Begins (or ends) counting, from zero.
void cuda_emulator_count(int on) {
  instrument.start_counting(on);
}

/// What was counted, launch by launch, as JSON; valid until the next call.
const char* cuda_emulator_counts() {
  static std::string text;
  text = instrument.counts();
  return text.c_str();
}

/// Bytes and sectors loaded, bytes and sectors stored, in a range of global memory.
void cuda_emulator_traffic(const void* begin, size_t bytes, uint64_t result[4]) {
  instrument.traffic(reinterpret_cast<uintptr_t>(begin), bytes, result);
}

// What the compiler calls.
#define ACCESS(bytes)                                                        \
  void __tsan_read##bytes(void* address) {                                   \
    cuda_emulator::seen(address, bytes, false, __builtin_return_address(0)); \
  }                                                                          \
  void __tsan_write##bytes(void* address) {                                  \
    cuda_emulator::seen(address, bytes, true, __builtin_return_address(0));  \
  }                                                                          \
  void __tsan_unaligned_read##bytes(void* address) {                         \
    cuda_emulator::seen(address, bytes, false, __builtin_return_address(0)); \
  }                                                                          \
  void __tsan_unaligned_write##bytes(void* address) {                        \
    cuda_emulator::seen(address, bytes, true, __builtin_return_address(0));  \
  }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* address, size_t bytes) {
  cuda_emulator::seen(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  cuda_emulator::seen(address, bytes, true, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
/// The guard of a launcher's static variables, which no kernel has.
uint8_t __tsan_atomic8_load(const volatile uint8_t* address, int order) {
  return __atomic_load_n(address, order);
}

}  // extern "C"
