// Scratch memory that outlives a call, so that no kernel waits for the system to map pages.
#pragma once

#include <cstddef>

namespace ntm {

// A block that nobody else has until the lease ends. Safe from any thread.
class Lease {
 public:
  explicit Lease(size_t bytes);
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  void* data() const { return data_; }

 private:
  void* data_;
  size_t bytes_;
};

// Give the blocks that nobody has back to the system; returns their bytes. Safe from any thread.
size_t release_workspaces();

}  // namespace ntm
