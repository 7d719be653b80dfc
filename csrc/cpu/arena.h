// Cuts the arrays of a kernel out of one leased block.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ntm::cpu::NTM_ISA {

// Laid out twice: over null to learn the size, then over the block.
class Arena {
 public:
  explicit Arena(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    T* at = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(base_) + used_);
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    return at;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace ntm::cpu::NTM_ISA
