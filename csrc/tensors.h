// From tensors to the arrays of the kernels and back: inputs are made contiguous and put into the
// arithmetic type, float or double; results get new tensors.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/accumulate.h>

#include <array>
#include <memory>
#include <vector>

#include "denormals.h"
#include "records.h"
#include "workspace.h"

namespace ntm {

using at::Tensor;
using Tensors = std::vector<Tensor>;

template <typename T>
constexpr at::ScalarType kType = sizeof(T) == sizeof(double) ? at::kDouble : at::kFloat;

// body(double{}) for a tensor in float64, and body(float{}) for all others.
template <typename Body>
auto in_arithmetic_of(const Tensor& like, const Body& body) {
  return like.scalar_type() == at::kDouble ? body(double{}) : body(float{});
}

// The first tensor of a record of inputs; of an op without a controller, its memory if it has one.
template <typename Inputs>
Tensor first_of(const Inputs& inputs) {
  Tensor first;
  Inputs(inputs).each([&](const Tensor& tensor) {
    if (!first.defined()) first = tensor;
  });
  return first;
}

// The dtype of each kind of tensor in a record of inputs, for the results of that kind. A kind
// without a tensor has the memory's, or the first tensor's of an op without a memory.
class Dtypes {
 public:
  template <typename Inputs>
  explicit Dtypes(const Inputs& inputs) {
    size_t index = 0;
    Inputs(inputs).each([&](const Tensor& tensor) {
      const auto kind = static_cast<size_t>(Inputs::kinds[index++]);
      if (tensor.defined() && types_[kind] == at::ScalarType::Undefined)
        types_[kind] = tensor.scalar_type();
    });
    auto leading = types_[static_cast<size_t>(ops::Kind::memory)];
    if (leading == at::ScalarType::Undefined) leading = first_of(inputs).scalar_type();
    for (auto& type : types_) {
      if (type == at::ScalarType::Undefined) type = leading;
    }
    types_[static_cast<size_t>(ops::Kind::arithmetic)] =
        leading == at::kDouble ? at::kDouble : at::kFloat;
  }
  at::ScalarType operator[](ops::Kind kind) const { return types_[static_cast<size_t>(kind)]; }

 private:
  std::array<at::ScalarType, static_cast<size_t>(ops::Kind::arithmetic) + 1> types_ = [] {
    decltype(types_) none;
    none.fill(at::ScalarType::Undefined);
    return none;
  }();
};

// A floating-point input, contiguous and of type T. It owns the copy, if one was needed, and has to
// live as long as pointers into it are used.
template <typename T>
class Lifted {
 public:
  Lifted() = default;
  explicit Lifted(const Tensor& given) {
    if (!given.defined() || !given.is_floating_point()) return;
    tensor_ = given.resolve_neg();
    if (tensor_.scalar_type() != kType<T>) tensor_ = tensor_.to(kType<T>);
    tensor_ = tensor_.contiguous();
  }
  operator const T*() const { return tensor_.defined() ? tensor_.const_data_ptr<T>() : nullptr; }

 private:
  Tensor tensor_;
};

template <typename T, typename Record>
auto lifted(const Record& record) {
  return record.template map<Lifted<T>>([](const Tensor& tensor) { return Lifted<T>(tensor); });
}

// Allocates the storage of tensors in leased blocks.
class Leased final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    auto lease = std::make_unique<Lease>(bytes);
    void* const data = lease->data();
    return {data, lease.release(), end, at::kCPU};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void end(void* lease) { delete static_cast<Lease*>(lease); }
};

// New tensors of this many bytes and more live in leased blocks. Memory of that size malloc gives
// back to the system, which then has to map and clear it again at the next call.
constexpr size_t kLeased = size_t{1} << 17;

// A new tensor of type T for a kernel to fill, and the dtype in which the caller gets it; or none.
template <typename T>
struct New {
  Tensor tensor;
  at::ScalarType wanted = kType<T>;

  New() = default;
  explicit New(at::IntArrayRef shape, at::ScalarType wanted = kType<T>) : wanted(wanted) {
    static Leased leased;
    const bool large = c10::multiply_integers(shape) * sizeof(T) >= kLeased;
    const c10::DispatchKeySet cpu(c10::DispatchKey::CPU);
    tensor = large ? at::detail::empty_generic(shape, &leased, cpu, kType<T>, std::nullopt)
                   : at::empty(shape, at::TensorOptions().dtype(kType<T>));
  }
  operator T*() const { return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr; }
  Tensor result() const {
    return !tensor.defined() || wanted == kType<T> ? tensor : tensor.to(wanted);
  }
};

// New tensors for the fields of a record that are there, in the dtypes of their kinds.
template <typename T, template <typename> class Record>
Record<New<T>> allocate(const Sizes& s, const Dtypes& dtypes) {
  return Record<New<T>>::make(s, [&](const ops::Field& field) {
    if (!field.present) return New<T>();
    return New<T>({field.shape.sizes, field.shape.rank}, dtypes[field.kind]);
  });
}

template <typename P, typename Record>
auto pointers(const Record& record) {
  return record.template map<P>([](const auto& one) -> P { return one; });
}

template <typename Record>
auto results(const Record& record) {
  return record.template map<Tensor>([](const auto& one) { return one.result(); });
}

// Below this many multiplications, waking other threads costs more than it saves.
constexpr double kWorthThreads = 1 << 21;

// body(begin, end) for parts of 0 … n − 1, on several threads if it is worth it. Every kernel
// of an op runs in here, so this is where denormal numbers are switched off, in each thread for
// itself.
template <typename Body>
void parallel(int64_t n, double work, const Body& body) {
  if (n == 0) return;
  const auto part = [&](int64_t begin, int64_t end) {
    const DenormalsAreZero mode;
    body(begin, end);
  };
  if (work < kWorthThreads) return part(0, n);
  at::parallel_for(0, n, 1, part);
}

// The sizes of a call on a memory [B, N, M].
inline Sizes sizes_of(const Tensor& memory, int64_t num_read_heads, int64_t num_write_heads,
                      int64_t num_taps) {
  Sizes s;
  s.batch = memory.size(0), s.memory_size = memory.size(1), s.word_size = memory.size(2);
  s.num_read_heads = num_read_heads, s.num_write_heads = num_write_heads, s.num_taps = num_taps;
  return s;
}

// Multiplications of one step of one sequence of the batch, roughly.
inline double step_work(const Sizes& s) {
  return double(s.num_heads()) * s.memory_size * (3 * s.word_size + s.num_taps + 60);
}

// A kernel over all sequences of the batch.
template <typename Kernel, typename Arguments>
void run(Kernel kernel, const Sizes& s, double work, const Arguments& arguments) {
  parallel(s.batch, work, [&](int64_t begin, int64_t end) { kernel(s, arguments, begin, end); });
}

}  // namespace ntm
