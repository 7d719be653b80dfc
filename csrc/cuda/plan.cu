// Plans: what of a call goes into registers, shared memory and the workspace.
//
// If all that a block needs fits into its shared memory, the memory of the sequence stays there.
// What is then left of it goes to a sequence's weights, and what is left after that to more than
// one memory of a segment. Otherwise `address` and `step` cut the memory into tiles for many
// blocks, and `sequence` streams it through its block tile by tile. What fits in no way is refused,
// and the reason is given.
#include <stdio.h>

#include <algorithm>

#include "plan.cuh"
#include "sequence.cuh"
#include "tiled.cuh"

namespace ntm {

namespace {

constexpr int kLeastTileRows = 64;

// Where many blocks share a memory, each has no more shared memory than this if 32 rows have room
// in it. So even a memory of a few megabytes has a tile for each of many blocks.
constexpr int kSmallTileBytes = 48 * 1024;

// The most elements of the memory for which a thread is enough. Each warp repeats what does not
// depend on the number of rows: addresses, loops, and the last additions of every sum. So a call
// that has nothing else to do takes few warps. In a sequence the warps also hold the weights.
constexpr int kElementsOfThread = 16, kElementsOfThreadInSequence = 4;

// The number of threads of a block, by its memory or by the same amount of work in the controller's
// products. Small problems do not pay for idle warps.
int threads_for(int op, bool backward, const NtmSizes& sizes, bool is_double) {
  const int64_t memory = static_cast<int64_t>(sizes.memory_size) * sizes.word_size;
  const int64_t controller = static_cast<int64_t>(sizes.hidden_size) * sizes.hidden_size / 8;
  const int64_t work = memory > controller ? memory : controller;
  const int each = op == NTM_SEQUENCE ? kElementsOfThreadInSequence : kElementsOfThread;
  int threads = 2 * kWarp;
  const int most = is_double                        ? kMostThreads<double>
                   : op == NTM_SEQUENCE && backward ? kMostThreadsOfSequenceBackward
                                                    : kMostThreads<float>;
  while (threads < most && work > each * threads) threads *= 2;
  return threads;
}

// The bytes of all buffers of a kernel.
void set_bytes(const CountedPieces& pieces, NtmPlan& plan) {
  plan.shared_bytes = pieces.shared_bytes();
  plan.workspace_bytes = pieces.workspace_bytes();
  if (!pieces.fit())
    snprintf(plan.why_not, sizeof plan.why_not,
             "the kernel has more buffers than NtmPlan has offsets: a mistake in csrc/cuda");
}

template <typename Space>
void lay_out(const Sizes& sizes, NtmPlan& plan) {
  CountedPieces pieces(plan);
  const Space space(pieces, sizes, plan.tile_rows, plan.threads / kWarp);
  (void)space;
  set_bytes(pieces, plan);
}

template <typename A>
void lay_out_tiled(bool backward, const Sizes& sizes, NtmPlan& plan) {
  CountedPieces pieces(plan);
  const TiledSpace<A> space(pieces, sizes, plan.tile_rows, plan.threads / kWarp, backward);
  (void)space;
  set_bytes(pieces, plan);
}

template <typename A>
void lay_out(int op, bool backward, const Sizes& sizes, NtmPlan& plan) {
  if (plan.tiled)
    lay_out_tiled<A>(backward, sizes, plan);
  else if (op == NTM_SEQUENCE)
    backward ? lay_out<SequenceBackwardSpace<A>>(sizes, plan)
             : lay_out<SequenceForwardSpace<A>>(sizes, plan);
  else
    backward ? lay_out<BackwardSpace<A>>(sizes, plan) : lay_out<ForwardSpace<A>>(sizes, plan);
}

struct Planner {
  int op;
  bool backward, is_double;
  const NtmSizes& given;
  int64_t limit;
  NtmPlan plan;

  void count() {
    const Sizes sizes(given);
    is_double ? lay_out<double>(op, backward, sizes, plan)
              : lay_out<float>(op, backward, sizes, plan);
    plan.workspace_bytes *= given.batch;
  }

  // Chooses as many rows for a tile as fit beside all else, a multiple of 32 if possible. If not
  // even one row fits, the bytes of one row are counted, which the refusal then names.
  bool fit_rows() {
    plan.tile_rows = 32;
    count();
    const int64_t some = plan.shared_bytes;
    plan.tile_rows = 64;
    count();
    const int64_t row_bytes = (plan.shared_bytes - some) / 32, fixed = some - 32 * row_bytes;
    const int64_t rows = (limit - fixed) / row_bytes;
    plan.tile_rows =
        static_cast<int>(rows >= kWarp ? rows / kWarp * kWarp : std::max(int64_t(1), rows));
    count();
    while (plan.shared_bytes > limit && plan.tile_rows > 1) {  // pieces are rounded up
      plan.tile_rows -= 1;
      count();
    }
    return plan.shared_bytes <= limit;
  }

  // Tiles for many blocks. They are small enough for two blocks or more on a multiprocessor, unless
  // a tile would then have fewer than 32 rows.
  void tile(int whole) {
    plan.tiled = plan.weightings_away = 1;
    plan.threads = kTiledThreads;
    const int rest = whole - kTiledStatic;
    for (int room : {std::min(rest / 2, kSmallTileBytes), rest / 2, rest}) {
      limit = room;
      if (!fit_rows() || (plan.tile_rows < kWarp && room < rest)) continue;
      if (plan.tile_rows > given.memory_size) plan.tile_rows = given.memory_size;
      count();
      return;
    }
    plan.shared_bytes += kTiledStatic;
    limit = whole;
    refuse("one row of the memory and the heads' parameters do not fit in shared memory");
  }

  // How many of a weight's units of four rows fit in the room that is left. Several weights of one
  // shape share the room equally.
  int near_units(int units, const Shape& shape, int weights = 1) const {
    const int64_t bytes = int64_t(kRowsAtOnce) * shape.columns * weights * element_bytes();
    const int64_t room = (limit - plan.shared_bytes - 16) / bytes;
    return static_cast<int>(std::max(int64_t(0), std::min(room, int64_t(units))));
  }

  // What the memory leaves free goes to the weights: of the controller's first layer, of the layers
  // above it, and of the interface. Kernels that hold weights in registers have no workspace, so
  // beside weightings in the workspace the weights have shared memory alone.
  void place_weights() {
    if (plan.weightings_away == 0 && place_rows()) return;
    const Shape recurrent = recurrent_shape(Sizes(given), backward);
    const Shape upper = upper_shape(Sizes(given), backward);
    const Shape interface = interface_shape(Sizes(given), backward);
    // The kernels for several layers have no registers to spare.
    const bool held = !is_double && plan.weightings_away == 0 && upper_layers() == 0 &&
                      recurrent.columns <= most_held().columns * kWarp;
    plan.weights_held = held ? kHoldUnits : kHoldNothing;
    plan.near_units = near_units(units_of(recurrent.rows) - held_units(), recurrent);
    count();
    if (upper_layers() > 0) {
      plan.near_upper_units = near_units(units_of(upper.rows), upper, upper_layers());
      count();
    }
    plan.near_interface_units = near_units(units_of(interface.rows), interface);
    count();
  }

  // The other way: each thread has its part of a row of the weights, if all of them have room on
  // the chip and their columns come in fours. So must the read vectors, for the hidden state behind
  // them to be loaded in fours.
  bool place_rows() {
    const Sizes sizes(given);
    const Shape recurrent = recurrent_shape(sizes, backward);
    const Shape interface = interface_shape(sizes, backward);
    const bool allowed = backward ? RowsBackward<float>::allows(recurrent, plan.threads)
                                  : RowsForward<float>::allows(recurrent, plan.threads);
    if (is_double || upper_layers() > 0 || !allowed || sizes.read_elements() % 4 != 0 ||
        !InterfaceRows<float>::allows(interface, plan.threads))
      return false;
    const NtmPlan before = plan;
    plan.weights_held = kHoldRows;
    count();
    if (plan.shared_bytes <= limit) return true;
    plan = before;
    return false;
  }

  // The bytes of the weights in registers, in shared memory, and loaded from L2 at each step.
  void count_weights() {
    const Shape recurrent = recurrent_shape(Sizes(given), backward);
    const Shape upper = upper_shape(Sizes(given), backward);
    const Shape interface = interface_shape(Sizes(given), backward);
    if (plan.weights_held == kHoldRows) {
      const int64_t whole = (int64_t(recurrent.rows) * recurrent.columns +
                             int64_t(interface.rows) * interface.columns) *
                            element_bytes();
      plan.weight_bytes[1] = (near_weights_size(plan, Sizes(given), backward) +
                              InterfaceRows<float>::near_size(interface)) *
                             element_bytes();
      plan.weight_bytes[0] = whole - plan.weight_bytes[1];
      return;
    }
    const int64_t row = recurrent.columns * element_bytes();
    const int64_t upper_row = upper_layers() * upper.columns * element_bytes();
    const int64_t interface_row = interface.columns * element_bytes();
    const int held = std::min(kRowsAtOnce * held_units(), recurrent.rows);
    const int near = std::min(kRowsAtOnce * plan.near_units, recurrent.rows - held);
    const int near_upper = std::min(kRowsAtOnce * plan.near_upper_units, upper.rows);
    const int near_interface = std::min(kRowsAtOnce * plan.near_interface_units, interface.rows);
    plan.weight_bytes[0] = held * row;
    plan.weight_bytes[1] = near * row + near_upper * upper_row + near_interface * interface_row;
    plan.weight_bytes[2] = (recurrent.rows - held - near) * row +
                           (upper.rows - near_upper) * upper_row +
                           (interface.rows - near_interface) * interface_row;
  }

  // Layers of the controller above the first.
  int upper_layers() const { return given.num_layers - 1; }
  int64_t element_bytes() const { return is_double ? 8 : 4; }
  HeldUnits most_held() const { return backward ? kHeldBackward : kHeldForward; }
  // Units of the recurrent weight that all warps of a block together hold in registers.
  int held_units() const {
    return plan.weights_held == kHoldUnits ? most_held().units * plan.threads / kWarp : 0;
  }

  // Gives what a resident memory leaves of shared memory to the weights, and then to memories of a
  // segment.
  void use_the_rest() {
    place_weights();
    if (backward) place_memories();
    count_weights();
  }

  // What the weights leave free goes to memories of a segment: of each that has room, the backward
  // does not have to replay the writes again.
  void place_memories() {
    const int64_t memory =
        int64_t(given.memory_size) * Tile<float>::stride_of(given.word_size) * element_bytes();
    const int64_t more = (limit - plan.shared_bytes - 16) / memory;
    const int64_t most = std::min(given.checkpoint_every, given.time);
    plan.memories = static_cast<int>(std::max(int64_t(1), std::min(1 + more, most)));
    count();
  }

  void refuse(const char* what) {
    snprintf(plan.why_not, sizeof plan.why_not, "%s: %lld bytes, a block has %lld", what,
             static_cast<long long>(plan.shared_bytes), static_cast<long long>(limit));
  }
};

}  // namespace

NtmPlan plan_of(int op, bool backward, bool is_double, const NtmSizes& sizes, int shared_limit) {
  Planner planner{op, backward, is_double, sizes, shared_limit, {}};
  NtmPlan& plan = planner.plan;
  plan.threads = threads_for(op, backward, sizes, is_double);
  plan.tile_rows = sizes.memory_size;
  plan.memories = 1;
  planner.count();
  if (plan.shared_bytes <= shared_limit) {
    if (op == NTM_SEQUENCE) planner.use_the_rest();
    return plan;
  }
  if (op == NTM_ADDRESS || op == NTM_STEP) {
    planner.tile(shared_limit);
    return plan;
  }
  if (op != NTM_SEQUENCE) {
    planner.refuse("the memory of a sequence does not fit in shared memory");
    return plan;
  }
  // The weightings stay in shared memory if that leaves room for a tile of some size. Without them
  // the whole memory may have room.
  for (int away = 0; away < 2; ++away) {
    plan.weightings_away = away;
    planner.count_weights();
    if (!planner.fit_rows() || (away == 0 && plan.tile_rows < kLeastTileRows)) continue;
    if (plan.tile_rows >= sizes.memory_size) {
      plan.tile_rows = sizes.memory_size;
      planner.count();
      planner.use_the_rest();
    }
    return plan;
  }
  planner.refuse("one row of the memory and the state of a step do not fit in shared memory");
  return plan;
}

}  // namespace ntm

extern "C" void ntm_cuda_plan(int op, int backward, int is_double, const NtmSizes* sizes,
                              int shared_limit, NtmPlan* plan) {
  *plan = ntm::plan_of(op, backward != 0, is_double != 0, *sizes, shared_limit);
}
