#include "workspace.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <deque>
#include <mutex>
#include <new>

namespace ntm {
namespace {

struct Block {
  void* data;
  size_t bytes;
};

constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;
constexpr size_t kMostBytesKept = size_t{256} << 20;

size_t alignment(size_t bytes) {
  return bytes < kHugePage ? kPage : kHugePage;
}
size_t rounded(size_t bytes) {
  const size_t step = alignment(bytes);
  return (bytes + step - 1) / step * step;
}

Block allocate(size_t bytes) {
  void* const data = ::operator new(bytes, std::align_val_t{alignment(bytes)});
#if defined(MADV_HUGEPAGE)
  // A huge page has the size of 512 others: the system maps and clears a large block in as many
  // fewer pieces.
  if (bytes >= kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return {data, bytes};
}
void release(const Block& block) {
  ::operator delete(block.data, std::align_val_t{alignment(block.bytes)});
}

// The blocks that are not leased, in the order in which they were given back.
class Pool {
 public:
  Block take(size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto best = blocks_.end();
      for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
        const bool fits = block->bytes >= bytes && block->bytes / 4 <= bytes;
        if (fits && (best == blocks_.end() || block->bytes < best->bytes)) best = block;
      }
      if (best != blocks_.end()) {
        const Block found = *best;
        blocks_.erase(best);
        bytes_ -= found.bytes;
        return found;
      }
    }
    return allocate(bytes);
  }

  void give_back(const Block& block) {
    if (block.bytes > kMostBytesKept) return release(block);
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_.push_back(block);
    bytes_ += block.bytes;
    for (; bytes_ > kMostBytesKept; blocks_.pop_front()) {
      bytes_ -= blocks_.front().bytes;
      release(blocks_.front());
    }
  }

  size_t clear() {
    std::deque<Block> found;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      found.swap(blocks_);
      bytes_ = 0;
    }
    size_t bytes = 0;
    for (const Block& block : found) bytes += block.bytes, release(block);
    return bytes;
  }

 private:
  std::mutex mutex_;
  std::deque<Block> blocks_;
  size_t bytes_ = 0;
};

// Never destroyed: a kernel may still run in another thread while the process ends.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

}  // namespace

Lease::Lease(size_t bytes) {
  const Block block = pool().take(rounded(bytes));
  data_ = block.data, bytes_ = block.bytes;
}

Lease::~Lease() {
  pool().give_back({data_, bytes_});
}

size_t release_workspaces() {
  const size_t bytes = pool().clear();
#if defined(__GLIBC__)
  malloc_trim(0);  // without this malloc keeps freed memory for itself
#endif
  return bytes;
}

}  // namespace ntm
