#include "workspace.h"

#include <mutex>
#include <new>
#include <vector>

namespace ntm {
namespace {

struct Block {
  void* data;
  size_t bytes;
};

constexpr std::align_val_t kAlignment{4096};
constexpr size_t kMostBytesKept = size_t{256} << 20;

// Never destroyed: a kernel may still run in another thread while the process ends.
struct Pool {
  std::mutex mutex;
  std::vector<Block> blocks;
  size_t bytes = 0;
};
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

}  // namespace

Lease::Lease(size_t bytes) : data_(nullptr), bytes_((bytes + 4095) / 4096 * 4096) {
  Pool& from = pool();
  {
    const std::lock_guard<std::mutex> lock(from.mutex);
    size_t best = from.blocks.size();
    for (size_t i = 0; i < from.blocks.size(); ++i) {
      const bool fits = from.blocks[i].bytes >= bytes_ && from.blocks[i].bytes / 4 <= bytes_;
      if (fits && (best == from.blocks.size() || from.blocks[i].bytes < from.blocks[best].bytes)) {
        best = i;
      }
    }
    if (best < from.blocks.size()) {
      data_ = from.blocks[best].data;
      bytes_ = from.blocks[best].bytes;
      from.bytes -= bytes_;
      from.blocks[best] = from.blocks.back();
      from.blocks.pop_back();
    }
  }
  if (!data_) data_ = ::operator new(bytes_, kAlignment);
}

Lease::~Lease() {
  Pool& to = pool();
  {
    const std::lock_guard<std::mutex> lock(to.mutex);
    if (to.bytes + bytes_ <= kMostBytesKept) {
      to.blocks.push_back({data_, bytes_});
      to.bytes += bytes_;
      data_ = nullptr;
    }
  }
  if (data_) ::operator delete(data_, kAlignment);
}

}  // namespace ntm
