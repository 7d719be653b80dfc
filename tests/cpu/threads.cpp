// The CPU kernels on several threads, for a build with the thread sanitizer: two callers at a
// time, each with threads of its own as at::parallel_for would give them parts of the batch, share
// nothing but the pool of workspaces, and get the bits that one thread gets.
#include <algorithm>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "kernels.h"
#include "workspace.h"

namespace ntm::cpu::NTM_ISA {
extern const Isa isa;
}

namespace {

using namespace ntm;
using Array = std::vector<float>;

const cpu::Kernels<float>& kernels() {
  return cpu::NTM_ISA::isa.kernels<float>();
}

Sizes sizes() {
  Sizes s;
  s.batch = 11, s.memory_size = 37, s.word_size = 5, s.num_read_heads = 2, s.num_write_heads = 1,
  s.num_taps = 3;
  s.time = 7, s.hidden_size = 6, s.input_size = 3, s.checkpoint_every = 3, s.num_layers = 2,
  s.is_lstm = s.projects_input = true;
  return s;
}

// body(begin, end) on `threads` threads, each with a part of 0 … n − 1.
template <typename Body>
void parallel(int threads, int64_t n, const Body& body) {
  std::vector<std::thread> running;
  for (int64_t i = 0; i < threads; ++i) {
    running.emplace_back([&, i] {
      const int64_t begin = i * n / threads, end = (i + 1) * n / threads;
      if (begin < end) body(begin, end);
    });
  }
  for (auto& thread : running) thread.join();
}

class Numbers {
 public:
  Array operator()(int64_t count, float scale = 0.3f) {
    Array array(count);
    for (float& x : array) x = scale * normal_(generator_);
    return array;
  }

 private:
  std::mt19937 generator_{0};
  std::normal_distribution<float> normal_;
};

struct State {
  Array memory, weightings, read_vectors, hidden, cell;

  template <typename Make>
  State(const Sizes& s, Make&& make)
      : memory(make(s.batch * s.memory_size * s.word_size)),
        weightings(make(s.batch * s.num_heads() * s.memory_size)),
        read_vectors(make(s.batch * s.read_size())),
        hidden(make(s.num_layers * s.batch * s.hidden_size)),
        cell(make(s.num_layers * s.batch * s.hidden_size)) {}
};

// A forward and a backward over all steps: the last state and every gradient, one after the other.
Array run(const Sizes& s, int threads) {
  const int64_t TB = s.time * s.batch, G = s.gate_size(), K = s.recurrent_size(),
                P = s.interface_size();
  const int64_t C = s.hidden_size, I = s.input_size, J = s.upper_size();
  Numbers numbers;
  const auto zeros = [](int64_t count) { return Array(count); };
  const Array recurrent = numbers(G * K), input_weight = numbers(G * I), bias = numbers(G),
              interface_weight = numbers(P * C), interface_bias = numbers(P), x = numbers(TB * I),
              upper_weight = numbers(G * J), upper_bias = numbers(G);
  State first(s, numbers), last(s, zeros), d_first(s, zeros);
  const State d_last(s, numbers);
  for (float& w : first.weightings) w = w * w;

  Array gates_packed(kernels().packed_weight_size(s, G, I + K)),
      upper_gates_packed(kernels().packed_weight_size(s, G, J)),
      interface_packed(kernels().packed_weight_size(s, P, C));
  kernels().pack_weight_transposed(s, G, I + K, 0, I, input_weight.data(), gates_packed.data());
  kernels().pack_weight_transposed(s, G, I + K, I, K, recurrent.data(), gates_packed.data());
  kernels().pack_weight_transposed(s, G, J, 0, J, upper_weight.data(), upper_gates_packed.data());
  kernels().pack_weight_transposed(s, P, C, 0, C, interface_weight.data(), interface_packed.data());

  Array hidden(TB * C), reads(TB * s.read_size()),
      checkpoints(s.num_checkpoints() * s.batch * s.transposed_size());
  Array weightings(TB * s.num_heads() * s.memory_size), interface(TB * P), gates(2 * TB * G),
      cell(2 * TB * C), lower_hidden(TB * C);
  const ops::SequenceInputs<const float*> inputs{.x = x.data(),
                                                 .recurrent_weight = nullptr,
                                                 .interface_weight = nullptr,
                                                 .interface_bias = interface_bias.data(),
                                                 .initial_memory = first.memory.data(),
                                                 .initial_weightings = first.weightings.data(),
                                                 .initial_read_vectors = first.read_vectors.data(),
                                                 .initial_hidden = first.hidden.data(),
                                                 .initial_cell = first.cell.data(),
                                                 .lengths = nullptr,
                                                 .input_weight = nullptr,
                                                 .input_bias = bias.data(),
                                                 .resets = nullptr,
                                                 .upper_bias = upper_bias.data()};
  const cpu::SequenceForward<float> io{.inputs = inputs,
                                       .gate_weight = gates_packed.data(),
                                       .upper_gate_weight = upper_gates_packed.data(),
                                       .interface_weight = interface_packed.data(),
                                       .lengths = nullptr,
                                       .resets = nullptr,
                                       .outputs = {.hidden = hidden.data(),
                                                   .read_vectors = reads.data(),
                                                   .final_memory = last.memory.data(),
                                                   .final_weightings = last.weightings.data(),
                                                   .final_read_vectors = last.read_vectors.data(),
                                                   .final_hidden = last.hidden.data(),
                                                   .final_cell = last.cell.data(),
                                                   .trace_weightings = nullptr,
                                                   .trace_interface = nullptr},
                                       .saved = {.checkpoints = checkpoints.data(),
                                                 .weightings = weightings.data(),
                                                 .interface = interface.data(),
                                                 .gates = gates.data(),
                                                 .cells = cell.data(),
                                                 .lower_hidden = lower_hidden.data()}};
  parallel(threads, s.batch,
           [&](int64_t begin, int64_t end) { kernels().sequence(s, io, begin, end); });

  Array recurrent_packed(kernels().packed_weight_size(s, K, G)),
      upper_packed(kernels().packed_weight_size(s, J, G)),
      back_packed(kernels().packed_weight_size(s, C, P));
  kernels().pack_weight(s, K, G, recurrent.data(), recurrent_packed.data());
  kernels().pack_weight(s, J, G, upper_weight.data(), upper_packed.data());
  kernels().pack_weight(s, C, P, interface_weight.data(), back_packed.data());
  const Array d_hidden = numbers(TB * C), d_reads = numbers(TB * s.read_size());
  Array d_projected(TB * G), d_upper_gates(TB * G), d_interface(TB * P);
  cpu::SequenceBackward<float> back{};
  back.inputs = inputs;
  back.recurrent_weight = recurrent_packed.data();
  back.upper_weight = upper_packed.data();
  back.interface_weight = back_packed.data();
  back.outputs.hidden = hidden.data();
  back.saved = {.checkpoints = checkpoints.data(),
                .weightings = weightings.data(),
                .interface = interface.data(),
                .gates = gates.data(),
                .cells = cell.data(),
                .lower_hidden = lower_hidden.data()};
  back.grads = {.hidden = d_hidden.data(),
                .read_vectors = d_reads.data(),
                .final_memory = d_last.memory.data(),
                .final_weightings = d_last.weightings.data(),
                .final_read_vectors = d_last.read_vectors.data(),
                .final_hidden = d_last.hidden.data(),
                .final_cell = d_last.cell.data(),
                .trace_weightings = nullptr,
                .trace_interface = nullptr};
  back.d_projected = d_projected.data();
  back.d_upper_gates = d_upper_gates.data();
  back.d_interface = d_interface.data();
  back.d_inputs.initial_memory = d_first.memory.data();
  back.d_inputs.initial_weightings = d_first.weightings.data();
  back.d_inputs.initial_read_vectors = d_first.read_vectors.data();
  back.d_inputs.initial_hidden = d_first.hidden.data();
  back.d_inputs.initial_cell = d_first.cell.data();
  parallel(threads, s.batch,
           [&](int64_t begin, int64_t end) { kernels().sequence_backward(s, back, begin, end); });

  Array d_recurrent(G * K), d_input_weight(G * I), d_bias(G);
  const cpu::WeightGradient<float> gradient{
      TB,
      G,
      s.batch,
      d_projected.data(),
      d_bias.data(),
      {{s.read_size(), first.read_vectors.data(), reads.data(), d_recurrent.data(), K},
       {C, first.hidden.data(), lower_hidden.data(), d_recurrent.data() + s.read_size(), K},
       {I, x.data(), x.data() + s.batch * I, d_input_weight.data(), I}}};
  parallel(threads, kernels().weight_gradient_blocks(gradient),
           [&](int64_t begin, int64_t end) { kernels().weight_gradient(gradient, begin, end); });

  Array all;
  for (const Array* part :
       {&last.memory, &last.weightings, &last.hidden, &last.cell, &hidden, &reads, &d_projected,
        &d_upper_gates, &d_interface, &d_first.memory, &d_first.weightings, &d_first.hidden,
        &d_first.cell, &d_recurrent, &d_input_weight, &d_bias}) {
    all.insert(all.end(), part->begin(), part->end());
  }
  return all;
}

}  // namespace

int main() {
  const Sizes s = sizes();
  const Array wanted = run(s, 1);
  if (std::none_of(wanted.begin(), wanted.end(), [](float x) { return x != 0; })) {
    std::puts("threads: nothing was computed");
    return 1;
  }
  for (int threads = 2; threads <= 5; ++threads) {
    Array found[2];
    parallel(3, 3, [&](int64_t caller, int64_t) {
      if (caller < 2) {
        found[caller] = run(s, threads);
      } else {
        for (int i = 0; i < 100; ++i) release_workspaces();
      }
    });
    if (found[0] != wanted || found[1] != wanted) {
      std::printf("threads: %d give other bits than one\n", threads);
      return 1;
    }
  }
  std::puts("threads: the same bits from 1 to 5 threads, two callers at a time");
}
