// Cuts the arrays that a kernel works in out of one leased block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "workspace.h"

namespace ntm::cpu::NTM_ISA {

// Each array starts at a cache line. Over a null block the arrays have no memory, but `used` says
// how much they need.
class Arena {
 public:
  explicit Arena(void* block = nullptr) : block_(static_cast<char*>(block)) {}

  template <typename T>
  T* take(int64_t count) {
    T* at = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(block_) + used_);
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    return at;
  }
  size_t used() const { return used_; }

 private:
  char* block_;
  size_t used_ = 0;
};

// A Scratch(arena, arguments...), which takes its arrays from the arena, and the block for them. It
// is made twice: once to learn how much it needs, then over a block of that size.
template <typename Scratch>
class InBlock {
 public:
  template <typename... Arguments>
  explicit InBlock(const Arguments&... arguments)
      : lease_(bytes(arguments...)), arena_(lease_.data()), scratch_(arena_, arguments...) {}

  Scratch& operator*() { return scratch_; }

 private:
  template <typename... Arguments>
  static size_t bytes(const Arguments&... arguments) {
    Arena measure;
    Scratch(measure, arguments...);
    return measure.used();
  }

  Lease lease_;
  Arena arena_;
  Scratch scratch_;
};

}  // namespace ntm::cpu::NTM_ISA
