// What one core of this machine can do at most: multiply-adds in registers, streaming, and the
// exponential function of the kernels.
#include <cstddef>

#include "cpu/math.h"

#if defined(__AVX512F__)
constexpr std::size_t kBytes = 64;
#elif defined(__AVX__)
constexpr std::size_t kBytes = 32;
#else
constexpr std::size_t kBytes = 16;
#endif

typedef float Vector __attribute__((vector_size(kBytes)));
constexpr std::size_t kLanes = kBytes / sizeof(float);
constexpr int kChains = 12;  // enough to hide the latency of an addition on two or three units

extern "C" {

// Runs `turns` multiply-adds in each of kChains registers; returns the operations done.
double multiply_add(long turns, float* out) {
  Vector chain[kChains];  // each with values of its own, or the compiler would keep only one
  for (int i = 0; i < kChains; ++i) chain[i] = Vector{} + static_cast<float>(i);
  const Vector scale = Vector{} + out[0], offset = Vector{} + out[1];
  for (long turn = 0; turn < turns; ++turn)
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * scale + offset;
  Vector sum = {};
  for (int i = 0; i < kChains; ++i) sum += chain[i];
  for (std::size_t lane = 0; lane < kLanes; ++lane) out[lane % 2] += sum[lane];
  return 2.0 * static_cast<double>(turns) * kChains * kLanes;
}

// to = from + 1 over `count` floats, `turns` times; returns the bytes read and written.
double stream(long turns, std::size_t count, const float* from, float* to) {
  for (long turn = 0; turn < turns; ++turn) {
    for (std::size_t i = 0; i < count; ++i) to[i] = from[i] + 1.0f;
    asm volatile("" ::"r"(to) : "memory");
  }
  return 8.0 * static_cast<double>(turns) * static_cast<double>(count);
}

// to = e^from over `count` floats, `turns` times; returns how many exponentials were computed.
double exponentials(long turns, std::size_t count, const float* from, float* to) {
  using namespace ntm::cpu::limits;
  for (long turn = 0; turn < turns; ++turn) {
    each<float>(static_cast<int64_t>(count), [&](int64_t i, auto lanes) {
      store(to + i, exp<float>(load(from + i, lanes)), lanes);
    });
    asm volatile("" ::"r"(to) : "memory");
  }
  return static_cast<double>(turns) * static_cast<double>(count);
}
}
