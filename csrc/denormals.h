// Denormal numbers count as zero inside the kernels.
//
// Most processors take many times longer for an operation on denormal numbers than for any other,
// and a memory that fades away, or that starts at 1e-40, is full of them. So each thread switches
// them off while it runs a kernel. The mode belongs to the thread: it is put back afterwards, and
// no code of the caller ever runs in it.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ntm {

// While it lives, the thread that made it reads denormal numbers as zero and writes zero for them.
// On processors other than x86-64 and AArch64 it does nothing.
class DenormalsAreZero {
 public:
  DenormalsAreZero() : before_(mode()) { set_mode(before_ | kZero); }
  ~DenormalsAreZero() { set_mode(before_); }
  DenormalsAreZero(const DenormalsAreZero&) = delete;
  DenormalsAreZero& operator=(const DenormalsAreZero&) = delete;

 private:
#if defined(__x86_64__)
  using Mode = unsigned;
  static constexpr Mode kZero = _MM_FLUSH_ZERO_ON | 0x40;  // bit 6: inputs are taken for zero too
  static Mode mode() { return _mm_getcsr(); }
  static void set_mode(Mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
  using Mode = uint64_t;
  static constexpr Mode kZero = Mode{1} << 24;  // inputs and results
  static Mode mode() {
    Mode mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set_mode(Mode mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
  using Mode = int;
  static constexpr Mode kZero = 0;
  static Mode mode() { return 0; }
  static void set_mode(Mode) {}
#endif

  const Mode before_;
};

}  // namespace ntm
