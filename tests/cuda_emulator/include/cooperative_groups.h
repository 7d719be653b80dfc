// What the emulator has of cooperative groups: the grid of a cooperative launch.
#pragma once
#include <cuda_runtime.h>

namespace cooperative_groups {

class grid_group {
 public:
  void sync(CUDA_EMULATOR_SITE) const { ::cuda_emulator::grid_barrier(site); }
};

inline grid_group this_grid() {
  return {};
}

}  // namespace cooperative_groups
