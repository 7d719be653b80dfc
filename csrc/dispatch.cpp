// Chooses the instruction set, once a process: the best that this machine has, or the one that
// NTM_KERNELS_ISA names.
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace ntm::cpu {

namespace baseline {
extern const Isa isa;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Isa isa;
}
namespace avx512 {
extern const Isa isa;
}
#endif

namespace {

struct Candidate {
  const Isa* isa;
  bool supported;
};

const Isa& choose() {
  const Candidate best_first[] = {
#if defined(__x86_64__)
      {&avx512::isa, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")},
      {&avx2::isa, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
      {&baseline::isa, true},
  };
  const char* const named = std::getenv("NTM_KERNELS_ISA");
  std::string supported;
  for (const Candidate& candidate : best_first) {
    if (!candidate.supported) continue;
    if (!named || !*named || candidate.isa->name == std::string(named)) return *candidate.isa;
    supported += std::string(supported.empty() ? "" : ", ") + candidate.isa->name;
  }
  throw std::runtime_error("NTM_KERNELS_ISA is " + std::string(named) + ", this machine has " +
                           supported);
}

#if defined(__x86_64__) && defined(__linux__)
// Whether the processor has AMX and the conversions to bfloat16 of AVX-512. Not every compiler that
// knows these instructions has names for them in __builtin_cpu_supports.
bool has_amx() {
  constexpr unsigned kAmxBfloat16 = 1u << 22, kAmxTile = 1u << 24, kAvx512Bfloat16 = 1u << 5;
  unsigned eax, ebx, ecx, edx, converts;
  if (!__get_cpuid_count(7, 1, &converts, &ebx, &ecx, &edx)) return false;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  return (converts & kAvx512Bfloat16) && (edx & kAmxBfloat16) && (edx & kAmxTile);
}

// Asks the system for the tiles of AMX, which a process may use only with its permission.
bool may_use_amx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl; see arch/x86
  return has_amx() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool may_use_amx() {
  return false;
}
#endif

}  // namespace

const Isa& isa() {
  static const Isa& chosen = choose();
  return chosen;
}

bool multiplies_in_bfloat16() {
  static const bool may = isa().has_amx && may_use_amx();
  return may;
}

}  // namespace ntm::cpu
