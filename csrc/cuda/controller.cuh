// The controllers, and the only file that asks which of them a model has.
//
// A kind of controller is a type for each direction: `Lstm` and `LstmBackward`, `Feedforward` and
// `FeedforwardBackward`. It says how the rows of the recurrent weight are dealt to the warps, does
// the equations of one unit, and knows which state and which saved tensors it has. `Controller` and
// `ControllerBackward` own what all kinds share, the recurrent weight and its product, and are what
// the loop over the steps calls.
//
// The input x arrives projected: it is added to the product of the recurrent weight with the
// recurrent input, [the read vectors, and for an LSTM the hidden state] of the step before.
#pragma once
#include "on_chip.cuh"
#include "weight.cuh"

namespace ntm {

__host__ __device__ inline int gate_size(const Sizes& sizes) {
  return (sizes.is_lstm ? 4 : 1) * sizes.C;
}

__host__ __device__ inline int recurrent_size(const Sizes& sizes) {
  return sizes.read_elements() + (sizes.is_lstm ? sizes.C : 0);
}

// Of the recurrent weight; a backward has it transposed.
__host__ __device__ inline Shape recurrent_shape(const Sizes& sizes, bool backward) {
  const Shape shape{gate_size(sizes), recurrent_size(sizes)};
  return backward ? shape.transposed() : shape;
}

// The part of the recurrent weight that a warp holds in registers: units of four rows, and columns
// for a lane. It is as much as fits into the 128 registers that a thread of a full block may have.
// What is left of the paper's weights fits beside its memory in the shared memory of sm_80.
struct HeldUnits {
  int units, columns;
};
constexpr HeldUnits kHeldForward{3, 4}, kHeldBackward{1, 13};

template <typename A>
struct ControllerSpace {
  A* near_weights;  // [near_units, 4, columns]: the part of the weight that is in shared memory
  A* recurrent[2];  // the recurrent input of the even steps and of the odd ones
  A* cell;          // [C]

  template <typename Pieces>
  __host__ __device__ ControllerSpace(Pieces& pieces, const Sizes& sizes) {
    const int columns = recurrent_shape(sizes, false).columns;
    near_weights =
        pieces.template take<A>(int64_t(pieces.plan().near_units) * kRowsAtOnce * columns);
    for (A*& one : recurrent) one = pieces.template take<A>(sizes.read_elements() + sizes.C);
    cell = pieces.template take<A>(sizes.C);
  }
};

template <typename A>
struct ControllerBackwardSpace {
  A* near_weights;  // [near_units, 4, columns]
  A* d_recurrent;   // [R*M + C]
  A* d_cell;        // [C]
  A* d_gates;       // [G]

  template <typename Pieces>
  __host__ __device__ ControllerBackwardSpace(Pieces& pieces, const Sizes& sizes) {
    const int columns = recurrent_shape(sizes, true).columns;
    near_weights =
        pieces.template take<A>(int64_t(pieces.plan().near_units) * kRowsAtOnce * columns);
    d_recurrent = pieces.template take<A>(sizes.read_elements() + sizes.C);
    d_cell = pieces.template take<A>(sizes.C);
    d_gates = pieces.template take<A>(gate_size(sizes));
  }
};

// The kinds of controller. Each has, forward:
//   units(C)                                  how the rows of the weight are dealt to warps
//   load_state(block, hidden)                 the state before the first step
//   step(block, unit, sum, at, hidden)        the equations of one unit of the weight; `sum` is its
//                                             product, `at` the place of the step in [T, B]
//   store_state(block, hidden), clear_padding(block, at)
// and backward:
//   load_grads(block, d_hidden)               the gradient of the final state
//   step(unit, d_hidden, d_hidden_of_next, t, at, d_gates)   from dh to the gradients of the gates
//   store_grads(block, d_hidden)

// c ← σ(f) c + σ(i) tanh(g), h ← σ(o) tanh(c). The four rows of a unit are the gates i, f, g, o of
// one element of the hidden state, so that a product leaves them in four neighbouring lanes.
template <typename A>
struct Lstm {
  const NtmSequenceParams& params;
  int64_t b;
  int C;
  A* cell;

  static __device__ Units units(int C) { return rows_apart(4 * C); }

  __device__ void load_state(const Block& block, A* hidden) const {
    load_vector(block, hidden, params.initial_hidden, b * C, C);
    load_vector(block, cell, params.initial_cell, b * C, C);
  }

  __device__ void step(const Block& block, int unit, A sum, int64_t at, A* hidden) const {
    const int gate = block.lane % 4, first = block.lane - gate;
    const bool real = unit < C;
    const int64_t gate_at = at * (4 * C) + gate * C + unit;
    const A raw = real ? sum + load<A>(params.x, gate_at) : sum;
    const A activated = gate == 2 ? tanh_of(raw) : sigmoid(raw);
    const A input = __shfl_sync(kAllLanes, activated, first);
    const A forget = __shfl_sync(kAllLanes, activated, first + 1);
    const A candidate = __shfl_sync(kAllLanes, activated, first + 2);
    const A output = __shfl_sync(kAllLanes, activated, first + 3);
    const A next_cell = forget * (real ? cell[unit] : A(0)) + input * candidate;
    const A next_hidden = output * tanh_of(next_cell);
    __syncwarp();  // all four lanes have read the cell that one of them now writes
    if (!real) return;
    if (params.saved_gates != nullptr) static_cast<A*>(params.saved_gates)[gate_at] = activated;
    if (gate != 0) return;
    cell[unit] = next_cell;
    hidden[unit] = next_hidden;
    store(params.out_hidden, at * C + unit, next_hidden);
    if (params.saved_cells != nullptr)
      static_cast<A*>(params.saved_cells)[at * C + unit] = next_cell;
  }

  __device__ void store_state(const Block& block, const A* hidden) const {
    store_vector(block, hidden, params.out_final_hidden, b * C, C);
    store_vector(block, cell, params.out_final_cell, b * C, C);
  }

  __device__ void clear_padding(const Block& block, int64_t at) const {
    clear(block, plain<A>(params.saved_gates), at * (4 * C), 4 * C);
    clear(block, plain<A>(params.saved_cells), at * C, C);
  }
};

template <typename A>
struct LstmBackward {
  const NtmSequenceParams& params;
  int64_t b;
  int C;
  A* d_cell;

  __device__ void load_grads(const Block& block, A* d_hidden) const {
    load_or_clear(block, d_hidden, params.grad_final_hidden, b * C, C);
    load_or_clear(block, d_cell, params.grad_final_cell, b * C, C);
  }

  // One thread has all gates of a unit. d_cell[unit] becomes the gradient of the previous cell.
  __device__ void step(int unit, A d_output, const A* d_hidden, int t, int64_t at,
                       A* d_gates) const {
    const A* gates = static_cast<const A*>(params.saved_gates) + at * (4 * C) + unit;
    const A* cells = static_cast<const A*>(params.saved_cells) + unit;
    const A input = gates[0], forget = gates[C], candidate = gates[2 * C], output = gates[3 * C];
    const A previous =
        t == 0 ? load<A>(params.initial_cell, b * C + unit) : cells[(at - gridDim.x) * C];
    const A squashed = tanh_of(cells[at * C]), d_h = d_output + d_hidden[unit];
    const A d_c = d_cell[unit] + d_h * output * (1 - squashed * squashed);
    const A d_raw[4] = {
        d_c * candidate * input * (1 - input), d_c * previous * forget * (1 - forget),
        d_c * input * (1 - candidate * candidate), d_h * squashed * output * (1 - output)};
    for (int gate = 0; gate < 4; ++gate) {
      d_gates[gate * C + unit] = d_raw[gate];
      store(params.d_x, at * (4 * C) + gate * C + unit, d_raw[gate]);
    }
    d_cell[unit] = d_c * forget;
  }

  __device__ void store_grads(const Block& block, const A* d_hidden) const {
    store_vector(block, d_hidden, params.d_initial_hidden, b * C, C);
    store_vector(block, d_cell, params.d_initial_cell, b * C, C);
  }
};

// h ← tanh(W [x, r]). It has no state beyond the read vectors, and saves nothing: its backward
// needs h alone, which is an output.
template <typename A>
struct Feedforward {
  const NtmSequenceParams& params;
  int C;

  static __device__ Units units(int C) { return neighbouring_rows(C); }

  __device__ void load_state(const Block&, A*) const {}

  __device__ void step(const Block& block, int unit, A sum, int64_t at, A* hidden) const {
    const int row = kRowsAtOnce * unit + block.lane % kRowsAtOnce;
    if (row >= C) return;
    hidden[row] = tanh_of(sum + load<A>(params.x, at * C + row));
    store(params.out_hidden, at * C + row, hidden[row]);
  }

  __device__ void store_state(const Block&, const A*) const {}
  __device__ void clear_padding(const Block&, int64_t) const {}
};

template <typename A>
struct FeedforwardBackward {
  const NtmSequenceParams& params;
  int C;

  __device__ void load_grads(const Block&, A*) const {}

  __device__ void step(int unit, A d_output, const A*, int, int64_t at, A* d_gates) const {
    const A h = load<A>(params.out_hidden, at * C + unit);
    d_gates[unit] = d_output * (1 - h * h);
    store(params.d_x, at * C + unit, d_gates[unit]);
  }

  __device__ void store_grads(const Block&, const A*) const {}
};

// The controller in a forward. With `InRegisters` part of its weight is held in registers.
template <typename A, bool InRegisters>
class Controller {
 public:
  __device__ Controller(const Block& block, const NtmSequenceParams& params, const NtmPlan& plan,
                        const Sizes& sizes, const ControllerSpace<A>& space)
      : params_(params),
        sizes_(sizes),
        space_(space),
        weight_(block, params.recurrent_weight, recurrent_shape(sizes, false),
                sizes.is_lstm ? Lstm<A>::units(sizes.C) : Feedforward<A>::units(sizes.C),
                space.near_weights, plan.near_units) {}

  // What step t sees of the step before it, [read vectors, hidden]. A step reads this buffer and
  // fills that of the next step.
  __device__ A* recurrent(int t) const {
    return t % 2 == 0 ? space_.recurrent[0] : space_.recurrent[1];
  }
  __device__ A* hidden_before(int t) const { return recurrent(t) + sizes_.read_elements(); }

  __device__ void load_weight(const Block& block) { weight_.load(block); }
  __device__ void load_state(const Block& block) const {
    visit([&](const auto& kind) { kind.load_state(block, hidden_before(0)); });
  }
  __device__ void step(const Block& block, int t, int64_t at) const {
    visit([&](const auto& kind) {
      weight_.times(block, recurrent(t), [&](int unit, A sum) {
        kind.step(block, unit, sum, at, hidden_before(t + 1));
      });
    });
  }
  __device__ void store_state(const Block& block, int length) const {
    visit([&](const auto& kind) { kind.store_state(block, hidden_before(length)); });
  }
  __device__ void clear_padding(const Block& block, int64_t at) const {
    clear(block, params_.out_hidden, at * sizes_.C, sizes_.C);
    visit([&](const auto& kind) { kind.clear_padding(block, at); });
  }

 private:
  template <typename F>
  __device__ void visit(F f) const {
    if (sizes_.is_lstm)
      f(Lstm<A>{params_, blockIdx.x, sizes_.C, space_.cell});
    else
      f(Feedforward<A>{params_, sizes_.C});
  }

  const NtmSequenceParams& params_;
  const Sizes sizes_;
  const ControllerSpace<A> space_;
  Weight<A, InRegisters ? kHeldForward.units : 0, kHeldForward.columns> weight_;
};

// The controller in a backward. A barrier stands between the two halves of a step.
template <typename A, bool InRegisters>
class ControllerBackward {
 public:
  __device__ ControllerBackward(const Block& block, const NtmSequenceParams& params,
                                const NtmPlan& plan, const Sizes& sizes,
                                const ControllerBackwardSpace<A>& space)
      : params_(params),
        sizes_(sizes),
        space_(space),
        weight_(block, params.recurrent_weight, recurrent_shape(sizes, true),
                neighbouring_rows(recurrent_size(sizes)), space.near_weights, plan.near_units) {}

  // The gradient of the recurrent input of the step after, [read vectors, hidden].
  __device__ A* d_read_vectors() const { return space_.d_recurrent; }
  __device__ A* d_hidden() const { return space_.d_recurrent + sizes_.read_elements(); }

  __device__ void load_weight(const Block& block) { weight_.load(block); }
  __device__ void load_grads(const Block& block) const {
    visit([&](const auto& kind) { kind.load_grads(block, d_hidden()); });
  }
  // From `d_output`, the gradient of one element of the output, to those of its gates.
  __device__ void gates_backward(int unit, A d_output, int t, int64_t at) const {
    visit([&](const auto& kind) { kind.step(unit, d_output, d_hidden(), t, at, space_.d_gates); });
  }
  // From the gradients of all gates to that of the recurrent input; f(row, gradient) sees it too.
  template <typename F>
  __device__ void recurrent_backward(const Block& block, F f) const {
    weight_.times_by_rows(block, space_.d_gates, [&](int row, A d) {
      space_.d_recurrent[row] = d;
      f(row, d);
    });
  }
  __device__ void store_grads(const Block& block) const {
    visit([&](const auto& kind) { kind.store_grads(block, d_hidden()); });
  }
  __device__ void clear_padding(const Block& block, int64_t at) const {
    clear(block, params_.d_x, at * gate_size(sizes_), gate_size(sizes_));
  }

 private:
  template <typename F>
  __device__ void visit(F f) const {
    if (sizes_.is_lstm)
      f(LstmBackward<A>{params_, blockIdx.x, sizes_.C, space_.d_cell});
    else
      f(FeedforwardBackward<A>{params_, sizes_.C});
  }

  const NtmSequenceParams& params_;
  const Sizes sizes_;
  const ControllerBackwardSpace<A> space_;
  Weight<A, InRegisters ? kHeldBackward.units : 0, kHeldBackward.columns> weight_;
};

}  // namespace ntm
