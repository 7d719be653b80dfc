// Chooses the instruction set, once a process: the best that this machine has, or the one that
// NTM_KERNELS_ISA names.
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

}  // namespace

const Isa& isa() {
  static const Isa& chosen = choose();
  return chosen;
}

}  // namespace ntm::cpu
