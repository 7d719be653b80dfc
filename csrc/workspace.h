// Working memory that is kept from call to call, so that no kernel waits for the system to map
// pages.
#pragma once

#include <cstddef>

namespace ntm {

// A block of memory that belongs to this lease until it ends. Any thread may make one.
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

// Gives all blocks that are not leased back to the system, and returns their bytes. Any thread may
// call it.
size_t release_workspaces();

}  // namespace ntm
