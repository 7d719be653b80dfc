// Written by `python -m scripts.generate_records` from ntm_kernels/ops and
// ntm_kernels/backends/cuda. Change the records there, not this.
#pragma once
#include <stdint.h>

// Of all that stands here; a library that was compiled with another one is refused.
#define NTM_LAYOUT "38ac899e20d96c69"

enum NtmDtype { NTM_FLOAT32 = 0, NTM_FLOAT64 = 1, NTM_BFLOAT16 = 2, NTM_FLOAT16 = 3 };

enum NtmOp { NTM_ADDRESS = 0, NTM_READ = 1, NTM_WRITE = 2, NTM_STEP = 3, NTM_SEQUENCE = 4 };

typedef struct NtmDevice {
  int32_t major;         // of its compute capability
  int32_t minor;         // of its compute capability
  int32_t shared_limit;  // bytes of shared memory in a block
} NtmDevice;

typedef struct NtmArray {
  void* data;
  int64_t dtype;  // an NtmDtype
} NtmArray;

typedef struct NtmSizes {
  int32_t batch;
  int32_t memory_size;
  int32_t word_size;
  int32_t num_read_heads;
  int32_t num_write_heads;
  int32_t num_taps;
  int32_t time;
  int32_t hidden_size;
  int32_t num_layers;
  int32_t checkpoint_every;
  int32_t is_lstm;
} NtmSizes;

typedef struct NtmPlan {
  int32_t tiled;                 // 0: one block holds a sequence's memory; 1: it is cut into tiles
  int32_t tile_rows;             // rows of the memory in shared memory at a time
  int32_t threads;               // of a block
  int32_t weightings_away;       // 1: weightings lie in the workspace, not in shared memory
  int32_t weights_held;          // how registers hold weights: controller.cuh, kHold...
  int32_t near_units;            // fours of rows of the recurrent weight in shared memory
  int32_t near_upper_units;      // and of the weight of each layer above the first
  int32_t near_interface_units;  // and of the interface weight; all 0 with kHoldRows
  int32_t memories;              // before steps in a row, in shared memory together
  int64_t weight_bytes[3];       // of the controller: in registers, shared memory, L2 at each step
  int64_t shared_bytes;          // of a block
  int64_t workspace_bytes;       // of global memory, for the whole batch
  int32_t offsets[40];           // of pieces of shared memory and workspace, in units of 16 bytes
  char why_not[160];             // why the call cannot be run, or empty
} NtmPlan;

typedef struct NtmAddressParams {
  NtmSizes sizes;
  NtmArray memory;                 // [B, N, M]
  NtmArray key;                    // [B, H, M]
  NtmArray strength;               // [B, H]
  NtmArray gate;                   // [B, H]
  NtmArray shift;                  // [B, H, S]
  NtmArray sharpening;             // [B, H]
  NtmArray previous_weightings;    // [B, H, N]
  NtmArray out_weightings;         // [B, H, N]
  void* saved_weightings;          // [B, H, N], or none
  NtmArray grad_weightings;        // [B, H, N], or none
  NtmArray d_memory;               // [B, N, M]
  NtmArray d_key;                  // [B, H, M]
  NtmArray d_strength;             // [B, H]
  NtmArray d_gate;                 // [B, H]
  NtmArray d_shift;                // [B, H, S]
  NtmArray d_sharpening;           // [B, H]
  NtmArray d_previous_weightings;  // [B, H, N]
  void* workspace;
} NtmAddressParams;

typedef struct NtmReadParams {
  NtmSizes sizes;
  NtmArray memory;             // [B, N, M]
  NtmArray weightings;         // [B, H, N]
  NtmArray out_read_vectors;   // [B, H, M]
  NtmArray grad_read_vectors;  // [B, H, M], or none
  NtmArray d_memory;           // [B, N, M]
  NtmArray d_weightings;       // [B, H, N]
  void* workspace;
} NtmReadParams;

typedef struct NtmWriteParams {
  NtmSizes sizes;
  NtmArray memory;        // [B, N, M]
  NtmArray weightings;    // [B, H, N]
  NtmArray erase;         // [B, H, M]
  NtmArray add;           // [B, H, M]
  NtmArray out_memory;    // [B, N, M]
  NtmArray grad_memory;   // [B, N, M], or none
  NtmArray d_memory;      // [B, N, M]
  NtmArray d_weightings;  // [B, H, N]
  NtmArray d_erase;       // [B, H, M]
  NtmArray d_add;         // [B, H, M]
  void* workspace;
} NtmWriteParams;

typedef struct NtmStepParams {
  NtmSizes sizes;
  NtmArray memory;                 // [B, N, M]
  NtmArray interface;              // [B, P]
  NtmArray previous_weightings;    // [B, H, N]
  NtmArray out_read_vectors;       // [B, R, M]
  NtmArray out_memory;             // [B, N, M]
  NtmArray out_weightings;         // [B, H, N]
  void* saved_weightings;          // [B, H, N], or none
  NtmArray grad_read_vectors;      // [B, R, M], or none
  NtmArray grad_memory;            // [B, N, M], or none
  NtmArray grad_weightings;        // [B, H, N], or none
  NtmArray d_memory;               // [B, N, M]
  NtmArray d_interface;            // [B, P]
  NtmArray d_previous_weightings;  // [B, H, N]
  void* workspace;
} NtmStepParams;

typedef struct NtmSequenceParams {
  NtmSizes sizes;
  NtmArray x;                        // [T, B, I]
  void* recurrent_weight;            // [G, K]
  void* interface_weight;            // [P, C]
  void* interface_bias;              // [P]
  NtmArray initial_memory;           // [B, N, M]
  NtmArray initial_weightings;       // [B, H, N]
  NtmArray initial_read_vectors;     // [B, R, M]
  NtmArray initial_hidden;           // [L, B, C] if is_lstm
  NtmArray initial_cell;             // [L, B, C] if is_lstm
  void* lengths;                     // [B] if has_lengths
  void* resets;                      // [T, B] if has_resets
  void* upper_weight;                // [U, G, J] if is_deep
  void* upper_bias;                  // [U, G] if is_deep
  NtmArray out_hidden;               // [T, B, C]
  NtmArray out_read_vectors;         // [T, B, R, M]
  NtmArray out_final_memory;         // [B, N, M]
  NtmArray out_final_weightings;     // [B, H, N]
  NtmArray out_final_read_vectors;   // [B, R, M]
  NtmArray out_final_hidden;         // [L, B, C] if is_lstm
  NtmArray out_final_cell;           // [L, B, C] if is_lstm
  NtmArray out_trace_weightings;     // [T, B, H, N] if return_trace
  void* out_trace_interface;         // [T, B, P] if return_trace
  void* saved_checkpoints;           // [Q, B, M, N], or none
  void* saved_weightings;            // [T, B, H, N], or none
  void* saved_interface;             // [T, B, P], or none
  void* saved_gates;                 // [T, L, B, G] if is_lstm, or none
  void* saved_cells;                 // [T, L, B, C] if is_lstm, or none
  void* saved_lower_hidden;          // [T, U, B, C] if is_deep, or none
  NtmArray grad_hidden;              // [T, B, C], or none
  NtmArray grad_read_vectors;        // [T, B, R, M], or none
  NtmArray grad_final_memory;        // [B, N, M], or none
  NtmArray grad_final_weightings;    // [B, H, N], or none
  NtmArray grad_final_read_vectors;  // [B, R, M], or none
  NtmArray grad_final_hidden;        // [L, B, C] if is_lstm, or none
  NtmArray grad_final_cell;          // [L, B, C] if is_lstm, or none
  NtmArray d_gates;                  // [T, L, B, G]
  void* d_interface;                 // [T, B, P]
  NtmArray d_initial_memory;         // [B, N, M]
  NtmArray d_initial_weightings;     // [B, H, N]
  NtmArray d_initial_read_vectors;   // [B, R, M]
  NtmArray d_initial_hidden;         // [L, B, C] if is_lstm
  NtmArray d_initial_cell;           // [L, B, C] if is_lstm
  void* workspace;
} NtmSequenceParams;
