// The controllers, and the only file that asks which of them a model has, and how many layers.
//
// A kind of controller is a type for each direction: `Lstm` and `LstmBackward`, `Feedforward` and
// `FeedforwardBackward`. An object of such a type is one layer. It does the equations of one unit
// of the layer's weight, and knows which state and which saved tensors the layer has. `Controller`
// and `ControllerBackward` own what all kinds share, the weights and their products, and are what
// the loop over the steps calls.
//
// The input x arrives projected. The first layer adds it to the product of the recurrent weight
// with [the read vectors, and for an LSTM the layer's hidden state] of the step before. A layer
// above adds its bias to the product of its weight with [the hidden state of the layer below, of
// the same step, and for an LSTM its own of the step before]. A barrier separates the layers.
//
// Kernels are compiled with `Deep` for controllers of several layers and without for those of one,
// so that one layer pays nothing for the loop over layers and its indices. A kernel for several has
// no registers left to hold weights in.
#pragma once
#include "on_chip.cuh"
#include "thread_rows.cuh"
#include "weight.cuh"

namespace ntm {

__host__ __device__ inline int gate_size(const Sizes& sizes) {
  return (sizes.is_lstm ? 4 : 1) * sizes.C;
}

__host__ __device__ inline int recurrent_size(const Sizes& sizes) {
  return sizes.read_elements() + (sizes.is_lstm ? sizes.C : 0);
}

// What a layer above the first sees.
__host__ __device__ inline int upper_size(const Sizes& sizes) {
  return (sizes.is_lstm ? 2 : 1) * sizes.C;
}

// What goes from step to step: the read vectors, and the hidden state of every layer.
__host__ __device__ inline int state_size(const Sizes& sizes) {
  return sizes.read_elements() + sizes.L * sizes.C;
}

// Of the recurrent weight; a backward has it transposed.
__host__ __device__ inline Shape recurrent_shape(const Sizes& sizes, bool backward) {
  const Shape shape{gate_size(sizes), recurrent_size(sizes)};
  return backward ? shape.transposed() : shape;
}

// Of the weight of each layer above the first.
__host__ __device__ inline Shape upper_shape(const Sizes& sizes, bool backward) {
  const Shape shape{gate_size(sizes), upper_size(sizes)};
  return backward ? shape.transposed() : shape;
}

// How the rows of these weights, in a forward, are dealt to the warps. An element of an LSTM's
// hidden state has its four gates, which lie a quarter of the rows apart, in one unit.
__host__ __device__ inline Units gate_units(const Sizes& sizes) {
  return sizes.is_lstm ? rows_apart(gate_size(sizes)) : neighbouring_rows(gate_size(sizes));
}

// How a kernel keeps the controller's weights, NtmPlan::weights_held: nothing in registers; some
// units of the recurrent weight in the registers of each warp (weight.cuh); all weights on the
// chip, where each thread has its part of a row (thread_rows.cuh).
constexpr int kHoldNothing = 0, kHoldUnits = 1, kHoldRows = 2;

// The part of the recurrent weight that is in registers: by units, the fours of rows of a warp, and
// columns for a lane; by rows, the lanes that share a row, and fours of columns for each of them.
// It is as much as fits into the registers that a thread of a full block may have: 128 of them in a
// forward, and in a backward, which has half as many threads, 255.
struct HeldUnits {
  int units, columns;
};
constexpr HeldUnits kHeldForward{3, 4}, kHeldBackward{2, 13};
struct HeldRows {
  int lanes, fours;
};
constexpr HeldRows kRowsForward{1, 10}, kRowsBackward{2, 26};

// How many columns a lane loads together (weight.cuh). A backward has half as many threads, so each
// of them has twice as many loads under way.
constexpr int kAheadForward = 2, kAheadBackward = 4;

// The recurrent weight of a kernel, and its interface weight, whose few rows take four lanes each.
template <typename A>
using RowsForward = ThreadRows<A, kRowsForward.lanes, kRowsForward.fours>;
template <typename A>
using RowsBackward = ThreadRows<A, kRowsBackward.lanes, kRowsBackward.fours>;
template <typename A>
using InterfaceRows = ThreadRows<A, 4, 0>;

template <typename A, int Held>
using RecurrentForward = std::conditional_t<
    Held == kHoldRows, RowsForward<A>,
    Weight<A, Held == kHoldUnits ? kHeldForward.units : 0, kHeldForward.columns>>;
template <typename A, int Held>
using RecurrentBackward = std::conditional_t<
    Held == kHoldRows, RowsBackward<A>,
    Weight<A, Held == kHoldUnits ? kHeldBackward.units : 0, kHeldBackward.columns, kAheadBackward>>;
template <typename A, int Held, int Ahead>
using InterfaceWeight =
    std::conditional_t<Held == kHoldRows, InterfaceRows<A>, Weight<A, 0, 1, Ahead>>;

// Where the part of a layer's weight that is in shared memory begins. Those of all layers lie one
// after another, each [units, 4, columns]; layer L is where they end.
__host__ __device__ inline int64_t near_weight_at(const NtmPlan& plan, const Sizes& sizes,
                                                  bool backward, int layer) {
  if (layer == 0) return 0;
  const int64_t first = recurrent_shape(sizes, backward).columns;
  const int64_t upper = upper_shape(sizes, backward).columns;
  return kRowsAtOnce * (plan.near_units * first + (layer - 1) * plan.near_upper_units * upper);
}

// The elements of all these parts. With kHoldRows there is one layer, [fours of columns, rows, 4].
__host__ __device__ inline int64_t near_weights_size(const NtmPlan& plan, const Sizes& sizes,
                                                     bool backward) {
  if (plan.weights_held == kHoldRows)
    return backward ? RowsBackward<float>::near_size(recurrent_shape(sizes, true))
                    : RowsForward<float>::near_size(recurrent_shape(sizes, false));
  return near_weight_at(plan, sizes, backward, sizes.L);
}

template <typename A>
struct ControllerSpace {
  A* near_weights;  // of all layers
  A* state[2];      // [R*M + L*C] each: the read vectors, and the hidden state of every layer
  A* cells;         // [L, C]

  template <typename Pieces>
  __host__ __device__ ControllerSpace(Pieces& pieces, const Sizes& sizes) {
    near_weights = pieces.template take<A>(near_weights_size(pieces.plan(), sizes, false));
    for (A*& one : state) one = pieces.template take<A>(state_size(sizes));
    cells = pieces.template take<A>(sizes.L * sizes.C);
  }
};

template <typename A>
struct ControllerBackwardSpace {
  A* near_weights;  // of all layers
  A* d_state;       // [R*M + L*C]
  A* d_cells;       // [L, C]
  // [G], or of several layers [2, G]: those of a layer are read while those of the layer below are
  // written.
  A* d_gates;

  template <typename Pieces>
  __host__ __device__ ControllerBackwardSpace(Pieces& pieces, const Sizes& sizes) {
    near_weights = pieces.template take<A>(near_weights_size(pieces.plan(), sizes, true));
    d_state = pieces.template take<A>(state_size(sizes));
    d_cells = pieces.template take<A>(sizes.L * sizes.C);
    d_gates = pieces.template take<A>((sizes.L > 1 ? 2 : 1) * gate_size(sizes));
  }
};

// One layer of the controller, of the b-th sequence of the batch: its places in global arrays,
// where `at` is the place of a step in [T, B].
template <typename A, bool Deep>
struct Layer {
  const NtmSequenceParams& params;
  int64_t b;
  int C;
  int number;  // 0 is the first layer

  __device__ bool is_first() const { return !Deep || number == 0; }
  __device__ bool is_top() const { return !Deep || number == layers() - 1; }
  __device__ int layers() const { return Deep ? params.sizes.num_layers : 1; }
  __device__ int64_t batch() const { return gridDim.x; }

  // In an array [L, B].
  __device__ int64_t place() const { return Deep ? number * batch() + b : b; }
  // In an array [T, L, B].
  __device__ int64_t place(int64_t at) const { return Deep ? place_among(layers(), at) : at; }
  // In an array [T, U, B], which the top layer is not in.
  __device__ int64_t lower_place(int64_t at) const { return place_among(layers() - 1, at); }

  // What is added to row `row` of the product, of G rows.
  __device__ A given(int64_t at, int64_t row, int G) const {
    if (is_first()) return load<A>(params.x, at * G + row);
    return static_cast<const A*>(params.upper_bias)[static_cast<int64_t>(number - 1) * G + row];
  }

  __device__ void store_hidden(int64_t at, int unit, A value) const {
    if (is_top())
      store(params.out_hidden, at * C + unit, value);
    else if (params.saved_lower_hidden != nullptr)
      static_cast<A*>(params.saved_lower_hidden)[lower_place(at) * C + unit] = value;
  }
  // As `store_hidden` has left it in the forward.
  __device__ A stored_hidden(int64_t at, int unit) const {
    if (is_top()) return load<A>(params.out_hidden, at * C + unit);
    return static_cast<const A*>(params.saved_lower_hidden)[lower_place(at) * C + unit];
  }
  __device__ void clear_hidden(const Block& block, int64_t at) const {
    if (is_top())
      clear(block, params.out_hidden, at * C, C);
    else
      clear(block, plain<A>(params.saved_lower_hidden), lower_place(at) * C, C);
  }

 private:
  __device__ int64_t place_among(int layers, int64_t at) const {
    return (at - b) * layers + number * batch() + b;
  }
};

// The kinds of controller. Each has, forward:
//   load_state(block, hidden)                 the state before the first step
//   step(block, unit, sum, at, hidden)        the equations of one unit of the weight; `sum` is its
//                                             product, `at` the place of the step in [T, B]
//   store_state(block, hidden), clear_padding(block, at)
// and backward:
//   load_grads(block, d_hidden)               the gradient of the final state
//   step(unit, d_output, d_hidden, t, at, d_gates)   from dh to the gradients of the gates: dh is
//                                             `d_output`, and what the step after left in d_hidden
//   store_grads(block, d_hidden)

// c ← σ(f) c + σ(i) tanh(g), h ← σ(o) tanh(c). The four rows of a unit are the gates i, f, g, o of
// one element of the hidden state, so that a product leaves them in four neighbouring lanes.
template <typename A, bool Deep>
struct Lstm : Layer<A, Deep> {
  using Base = Layer<A, Deep>;
  using Base::params, Base::C, Base::place;
  A* cell;

  __device__ void load_state(const Block& block, A* hidden) const {
    load_vector(block, hidden, params.initial_hidden, place() * C, C);
    load_vector(block, cell, params.initial_cell, place() * C, C);
  }

  __device__ void step(const Block& block, int unit, A sum, int64_t at, A* hidden) const {
    const int gate = block.lane % 4, first = block.lane - gate;
    const bool real = unit < C;
    const int64_t row = gate * C + unit;
    const A raw = real ? sum + this->given(at, row, 4 * C) : sum;
    const A activated = gate == 2 ? tanh_of(raw) : sigmoid(raw);
    const A input = __shfl_sync(kAllLanes, activated, first);
    const A forget = __shfl_sync(kAllLanes, activated, first + 1);
    const A candidate = __shfl_sync(kAllLanes, activated, first + 2);
    const A output = __shfl_sync(kAllLanes, activated, first + 3);
    const A next_cell = forget * (real ? cell[unit] : A(0)) + input * candidate;
    const A next_hidden = output * tanh_of(next_cell);
    __syncwarp();  // all four lanes have read the cell that one of them now writes
    if (!real) return;
    if (params.saved_gates != nullptr)
      static_cast<A*>(params.saved_gates)[place(at) * (4 * C) + row] = activated;
    if (gate != 0) return;
    cell[unit] = next_cell;
    hidden[unit] = next_hidden;
    this->store_hidden(at, unit, next_hidden);
    if (params.saved_cells != nullptr)
      static_cast<A*>(params.saved_cells)[place(at) * C + unit] = next_cell;
  }

  __device__ void store_state(const Block& block, const A* hidden) const {
    store_vector(block, hidden, params.out_final_hidden, place() * C, C);
    store_vector(block, cell, params.out_final_cell, place() * C, C);
  }

  __device__ void clear_padding(const Block& block, int64_t at) const {
    this->clear_hidden(block, at);
    clear(block, plain<A>(params.saved_gates), place(at) * (4 * C), 4 * C);
    clear(block, plain<A>(params.saved_cells), place(at) * C, C);
  }
};

template <typename A, bool Deep>
struct LstmBackward : Layer<A, Deep> {
  using Base = Layer<A, Deep>;
  using Base::params, Base::C, Base::place;
  A* d_cell;

  __device__ void load_grads(const Block& block, A* d_hidden) const {
    load_or_clear(block, d_hidden, params.grad_final_hidden, place() * C, C);
    load_or_clear(block, d_cell, params.grad_final_cell, place() * C, C);
  }

  // One thread has all gates of a unit. d_cell[unit] becomes the gradient of the previous cell.
  __device__ void step(int unit, A d_output, const A* d_hidden, int t, int64_t at,
                       A* d_gates) const {
    const int64_t at_gates = place(at) * (4 * C) + unit;
    const A* gates = static_cast<const A*>(params.saved_gates) + at_gates;
    const A* cells = static_cast<const A*>(params.saved_cells) + unit;
    const A input = gates[0], forget = gates[C], candidate = gates[2 * C], output = gates[3 * C];
    const A previous = t == 0 ? load<A>(params.initial_cell, place() * C + unit)
                              : cells[(place(at) - this->layers() * this->batch()) * C];
    const A squashed = tanh_of(cells[place(at) * C]), d_h = d_output + d_hidden[unit];
    const A d_c = d_cell[unit] + d_h * output * (1 - squashed * squashed);
    const A d_raw[4] = {
        d_c * candidate * input * (1 - input), d_c * previous * forget * (1 - forget),
        d_c * input * (1 - candidate * candidate), d_h * squashed * output * (1 - output)};
    for (int gate = 0; gate < 4; ++gate) {
      d_gates[gate * C + unit] = d_raw[gate];
      store(params.d_gates, place(at) * (4 * C) + gate * C + unit, d_raw[gate]);
    }
    d_cell[unit] = d_c * forget;
  }

  __device__ void store_grads(const Block& block, const A* d_hidden) const {
    store_vector(block, d_hidden, params.d_initial_hidden, place() * C, C);
    store_vector(block, d_cell, params.d_initial_cell, place() * C, C);
  }
};

// h ← tanh(W [x, r]), and tanh(W h + b) in the layers above. It has no state beyond the read
// vectors, and its backward needs h alone.
template <typename A, bool Deep>
struct Feedforward : Layer<A, Deep> {
  __device__ void load_state(const Block&, A*) const {}

  __device__ void step(const Block& block, int unit, A sum, int64_t at, A* hidden) const {
    const int row = kRowsAtOnce * unit + block.lane % kRowsAtOnce;
    if (row >= this->C) return;
    hidden[row] = tanh_of(sum + this->given(at, row, this->C));
    this->store_hidden(at, row, hidden[row]);
  }

  __device__ void store_state(const Block&, const A*) const {}
  __device__ void clear_padding(const Block& block, int64_t at) const {
    this->clear_hidden(block, at);
  }
};

template <typename A, bool Deep>
struct FeedforwardBackward : Layer<A, Deep> {
  __device__ void load_grads(const Block&, A*) const {}

  __device__ void step(int unit, A d_output, const A*, int, int64_t at, A* d_gates) const {
    const A h = this->stored_hidden(at, unit);
    d_gates[unit] = d_output * (1 - h * h);
    store(this->params.d_gates, this->place(at) * this->C + unit, d_gates[unit]);
  }

  __device__ void store_grads(const Block&, const A*) const {}
};

// What the controllers of both directions share: the layers and where their weights lie. `Space` is
// that of the direction.
template <typename A, bool Deep, typename Space>
class Layers {
 public:
  __device__ Layers(const NtmSequenceParams& params, const NtmPlan& plan, const Sizes& sizes,
                    const Space& space)
      : params_(params), plan_(plan), sizes_(sizes), space_(space) {}

 protected:
  __device__ int layers() const { return Deep ? sizes_.L : 1; }

  // The layer of that number, whose first is 0.
  __device__ Layer<A, Deep> layer(int number) const {
    return {params_, blockIdx.x, size(), number};
  }
  // Where the hidden state of a layer lies in the state, or its gradient in that of the state.
  __device__ int hidden_in_state(int number) const {
    return sizes_.read_elements() + number * sizes_.C;
  }

  // The weight of a layer above the first.
  template <bool Backward>
  __device__ auto upper_weight(const Block& block, int number) const {
    Sizes sizes = sizes_;
    sizes.C = size();
    const Shape shape = upper_shape(sizes, Backward);
    const Units units = Backward ? neighbouring_rows(shape.rows) : gate_units(sizes);
    const A* weights = static_cast<const A*>(params_.upper_weight);
    return Weight<A, 0, 1, Backward ? kAheadBackward : kAheadForward>(
        block, weights + int64_t(number - 1) * shape.rows * shape.columns, shape, units,
        space_.near_weights + near_weight_at(plan_, sizes, Backward, number),
        plan_.near_upper_units);
  }

  const NtmSequenceParams& params_;
  const NtmPlan& plan_;
  const Sizes sizes_;
  const Space space_;

 private:
  // With several layers this is opaque. The compiler would otherwise compute what the loop over
  // layers derives from it once, and keep the results in registers through the whole kernel.
  __device__ int size() const { return Deep ? opaque(sizes_.C) : sizes_.C; }
};

// The controller in a forward. `Held` says how it keeps its weights.
//
// There are two buffers for the state. Step t leaves the hidden state of layer l in its place of
// buffer (t + 1 + l) % 2. So what a layer sees lies side by side in one buffer: the new hidden
// state of the layer below, and behind it the layer's own of the step before. The layer writes its
// new hidden state into the other buffer, where no warp still reads.
template <typename A, int Held, bool Deep>
class Controller : Layers<A, Deep, ControllerSpace<A>> {
  using Base = Layers<A, Deep, ControllerSpace<A>>;
  using Base::sizes_, Base::space_, Base::layers;

 public:
  __device__ Controller(const Block& block, const NtmSequenceParams& params, const NtmPlan& plan,
                        const Sizes& sizes, const ControllerSpace<A>& space)
      : Base(params, plan, sizes, space),
        weight_(block, params.recurrent_weight, recurrent_shape(sizes, false), gate_units(sizes),
                space.near_weights, plan.near_units) {}

  // The read vectors that step t sees. Step t − 1 fills them.
  __device__ A* read_vectors_before(int t) const { return buffer(t); }
  __device__ A* output_after(int t) const { return hidden_before(t + 1, layers() - 1); }

  __device__ void load_weights(const Block& block) {
    for (int number = 1; number < layers(); ++number)
      this->template upper_weight<false>(block, number).load(block);
    weight_.load(block);
  }
  __device__ void load_state(const Block& block) const {
    each_layer([&](const auto& layer) { layer.load_state(block, hidden_before(0, layer.number)); });
  }

  // One step of all layers, with a barrier before each layer above the first.
  __device__ void step(const Block& block, int t, int64_t at) const {
    layer_step(block, weight_, buffer(t), 0, t, at);
#pragma unroll 1
    for (int number = 1; number < layers(); ++number) {
      __syncthreads();
      const Block again;
      // The new hidden state of the layer below, and behind it the layer's own, not yet new.
      const A* seen = hidden_before(t + 1, number - 1);
      layer_step(again, this->template upper_weight<false>(again, number), seen, number, t, at);
    }
  }

  __device__ void store_state(const Block& block, int length) const {
    each_layer(
        [&](const auto& layer) { layer.store_state(block, hidden_before(length, layer.number)); });
  }
  __device__ void clear_padding(const Block& block, int64_t at) const {
    each_layer([&](const auto& layer) { layer.clear_padding(block, at); });
  }

 private:
  __device__ A* buffer(int number) const {
    return number % 2 == 0 ? space_.state[0] : space_.state[1];
  }
  __device__ A* hidden_before(int t, int number) const {
    return buffer(t + number) + this->hidden_in_state(number);
  }

  template <typename W>
  __device__ void layer_step(const Block& block, const W& weight, const A* seen, int number, int t,
                             int64_t at) const {
    visit(number, [&](const auto& layer) {
      weight.times(block, seen, [&](int unit, A sum) {
        layer.step(block, unit, sum, at, hidden_before(t + 1, number));
      });
    });
  }

  template <typename F>
  __device__ void each_layer(F f) const {
#pragma unroll 1
    for (int number = 0; number < layers(); ++number) visit(number, f);
  }
  template <typename F>
  __device__ void visit(int number, F f) const {
    const Layer<A, Deep> layer = this->layer(number);
    if (sizes_.is_lstm)
      f(Lstm<A, Deep>{layer, space_.cells + number * layer.C});
    else
      f(Feedforward<A, Deep>{layer});
  }

  RecurrentForward<A, Held> weight_;
};

// The controller in a backward. A step goes through the layers from the top to the first, with a
// barrier after each layer's gates: `output_backward` | `upper_backward` | `recurrent_backward`.
template <typename A, int Held, bool Deep>
class ControllerBackward : Layers<A, Deep, ControllerBackwardSpace<A>> {
  using Base = Layers<A, Deep, ControllerBackwardSpace<A>>;
  using Base::params_, Base::sizes_, Base::space_, Base::layers;

 public:
  __device__ ControllerBackward(const Block& block, const NtmSequenceParams& params,
                                const NtmPlan& plan, const Sizes& sizes,
                                const ControllerBackwardSpace<A>& space)
      : Base(params, plan, sizes, space),
        weight_(block, params.recurrent_weight, recurrent_shape(sizes, true),
                neighbouring_rows(recurrent_size(sizes)), space.near_weights, plan.near_units) {}

  // The gradient of the read vectors that the step after has seen.
  __device__ A* d_read_vectors() const { return space_.d_state; }

  __device__ void load_weights(const Block& block) {
    for (int number = 1; number < layers(); ++number)
      this->template upper_weight<true>(block, number).load(block);
    weight_.load(block);
  }
  __device__ void load_grads(const Block& block) const {
    each_layer([&](const auto& layer) { layer.load_grads(block, d_hidden(layer.number)); });
  }

  // From `d_output`, the gradient of one element of the output, to those of its gates.
  __device__ void output_backward(int unit, A d_output, int t, int64_t at) const {
    gates_backward(layers() - 1, unit, d_output, t, at);
  }
  // From the gates of the top layer to those of the first, with a barrier after each layer.
  __device__ void upper_backward(int t, int64_t at) const {
#pragma unroll 1
    for (int number = layers() - 1; number > 0; --number) {
      const Block block;
      this->template upper_weight<true>(block, number)
          .times_by_rows(block, d_gates(number), [&](int row, A d) {
            if (row < sizes_.C)
              gates_backward(number - 1, row, d, t, at);
            else
              d_hidden(number)[row - sizes_.C] = d;
          });
      __syncthreads();
    }
  }
  // From the gradients of the first layer's gates to that of the recurrent input; f(row, gradient)
  // sees it too.
  template <typename F>
  __device__ void recurrent_backward(const Block& block, F f) const {
    weight_.times_by_rows(block, d_gates(0), [&](int row, A d) {
      space_.d_state[row] = d;
      f(row, d);
    });
  }

  __device__ void store_grads(const Block& block) const {
    each_layer([&](const auto& layer) { layer.store_grads(block, d_hidden(layer.number)); });
  }
  __device__ void clear_padding(const Block& block, int64_t at) const {
    const int G = gate_size(sizes_);
    each_layer([&](const auto& layer) { clear(block, params_.d_gates, layer.place(at) * G, G); });
  }

 private:
  // Of a layer's hidden state, as the step after has seen it.
  __device__ A* d_hidden(int number) const {
    return space_.d_state + this->hidden_in_state(number);
  }
  __device__ A* d_gates(int number) const {
    return space_.d_gates + number % 2 * gate_size(sizes_);
  }

  __device__ void gates_backward(int number, int unit, A d_output, int t, int64_t at) const {
    visit(number, [&](const auto& layer) {
      layer.step(unit, d_output, d_hidden(number), t, at, d_gates(number));
    });
  }

  template <typename F>
  __device__ void each_layer(F f) const {
#pragma unroll 1
    for (int number = 0; number < layers(); ++number) visit(number, f);
  }
  template <typename F>
  __device__ void visit(int number, F f) const {
    const Layer<A, Deep> layer = this->layer(number);
    if (sizes_.is_lstm)
      f(LstmBackward<A, Deep>{layer, space_.d_cells + number * layer.C});
    else
      f(FeedforwardBackward<A, Deep>{layer});
  }

  RecurrentBackward<A, Held> weight_;
};

}  // namespace ntm
