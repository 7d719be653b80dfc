// What the launchers take: plain C, filled in by ntm_kernels/backends/cuda through ctypes.
//
// Tensors are contiguous. Shapes are in the letters of the package: batch B, memory_size N,
// word_size M, read heads R, write heads W, heads H = R + W, taps S, time T, hidden C, interface
// vector P. A gradient that is not given has no data. A pointer without a type is in the arithmetic
// dtype, double if the memory is double and float otherwise.
#pragma once
#include <stdint.h>

enum NtmDtype { NTM_FLOAT32 = 0, NTM_FLOAT64 = 1, NTM_BFLOAT16 = 2, NTM_FLOAT16 = 3 };

enum NtmOp { NTM_ADDRESS = 0, NTM_READ = 1, NTM_WRITE = 2, NTM_STEP = 3, NTM_SEQUENCE = 4 };

// What a device allows.
typedef struct NtmDevice {
  int32_t major, minor;  // compute capability
  int32_t shared_limit;  // bytes of shared memory in a block
} NtmDevice;

typedef struct NtmArray {
  void* data;
  int64_t dtype;
} NtmArray;

typedef struct NtmSizes {
  int32_t batch, memory_size, word_size, num_read_heads, num_write_heads, num_taps;
  int32_t time, hidden_size, checkpoint_every, is_lstm;
} NtmSizes;

// How a call is run; NtmPlan.why_not says why it cannot be, or is empty.
typedef struct NtmPlan {
  int32_t tiled;                 // 0: one block holds a sequence's memory; 1: it is cut into tiles
  int32_t tile_rows;             // rows of the memory in shared memory at a time
  int32_t threads;               // of a block
  int32_t weightings_away;       // 1: weightings lie in the workspace, not in shared memory
  int32_t weights_held;          // 1: part of the controller's weights lives in registers
  int32_t near_units;            // fours of rows of the recurrent weight in shared memory
  int32_t near_interface_units;  // and of the interface weight
  int32_t memories;              // before steps in a row, in shared memory together
  int64_t weight_bytes[3];       // of the controller: in registers, shared memory, L2 at each step
  int64_t shared_bytes;          // of a block
  int64_t workspace_bytes;       // of global memory, for the whole batch
  int32_t offsets[40];  // of the pieces of shared memory and workspace, in units of 16 bytes
  char why_not[160];
} NtmPlan;

typedef struct NtmAddressParams {
  NtmSizes sizes;
  NtmArray memory;               // [B, N, M]
  NtmArray key;                  // [B, H, M]
  NtmArray strength;             // [B, H]
  NtmArray gate;                 // [B, H]
  NtmArray shift;                // [B, H, S]
  NtmArray sharpening;           // [B, H]
  NtmArray previous_weightings;  // [B, H, N]
  NtmArray weightings;           // [B, H, N]
  NtmArray d_weightings;         // [B, H, N]
  NtmArray d_memory;             // [B, N, M]
  NtmArray d_key;                // [B, H, M]
  NtmArray d_strength;           // [B, H]
  NtmArray d_gate;               // [B, H]
  NtmArray d_shift;              // [B, H, S]
  NtmArray d_sharpening;         // [B, H]
  NtmArray d_previous;           // [B, H, N]
  void* saved_weightings;        // [B, H, N], forward: or none
  void* workspace;
} NtmAddressParams;

typedef struct NtmReadParams {
  NtmSizes sizes;
  NtmArray memory;          // [B, N, M]
  NtmArray weightings;      // [B, H, N]
  NtmArray read_vectors;    // [B, H, M]
  NtmArray d_read_vectors;  // [B, H, M]
  NtmArray d_memory;        // [B, N, M]
  NtmArray d_weightings;    // [B, H, N]
  void* workspace;
} NtmReadParams;

typedef struct NtmWriteParams {
  NtmSizes sizes;
  NtmArray memory;        // [B, N, M]
  NtmArray weightings;    // [B, H, N]
  NtmArray erase;         // [B, H, M]
  NtmArray add;           // [B, H, M]
  NtmArray written;       // [B, N, M]
  NtmArray d_written;     // [B, N, M]
  NtmArray d_memory;      // [B, N, M]
  NtmArray d_weightings;  // [B, H, N]
  NtmArray d_erase;       // [B, H, M]
  NtmArray d_add;         // [B, H, M]
  void* workspace;
} NtmWriteParams;

typedef struct NtmStepParams {
  NtmSizes sizes;
  NtmArray memory;               // [B, N, M]
  NtmArray interface;            // [B, P]
  NtmArray previous_weightings;  // [B, H, N]
  NtmArray read_vectors;         // [B, R, M]
  NtmArray written;              // [B, N, M]
  NtmArray weightings;           // [B, H, N]
  NtmArray d_read_vectors;       // [B, R, M] or none
  NtmArray d_written;            // [B, N, M] or none
  NtmArray d_weightings;         // [B, H, N] or none
  NtmArray d_memory;             // [B, N, M]
  NtmArray d_interface;          // [B, P]
  NtmArray d_previous;           // [B, H, N]
  void* saved_weightings;        // [B, H, N], forward: or none
  void* workspace;
} NtmStepParams;

typedef struct NtmSequenceParams {
  NtmSizes sizes;
  NtmArray projected_input;         // [T, B, G]
  NtmArray initial_memory;          // [B, N, M]
  NtmArray initial_weightings;      // [B, H, N]
  NtmArray initial_read_vectors;    // [B, R, M]
  NtmArray initial_hidden;          // [B, C], LSTM only
  NtmArray initial_cell;            // [B, C], LSTM only
  NtmArray hidden;                  // [T, B, C]
  NtmArray read_vectors;            // [T, B, R, M]
  NtmArray memory;                  // [B, N, M]
  NtmArray weightings;              // [B, H, N]
  NtmArray final_read_vectors;      // [B, R, M]
  NtmArray final_hidden;            // [B, C], LSTM only
  NtmArray final_cell;              // [B, C], LSTM only
  NtmArray trace_weightings;        // [T, B, H, N] or none
  NtmArray d_hidden;                // [T, B, C] or none
  NtmArray d_read_vectors;          // [T, B, R, M] or none
  NtmArray d_memory;                // [B, N, M] or none
  NtmArray d_weightings;            // [B, H, N] or none
  NtmArray d_final_read_vectors;    // [B, R, M] or none
  NtmArray d_final_hidden;          // [B, C] or none
  NtmArray d_final_cell;            // [B, C] or none
  NtmArray d_projected;             // [T, B, G]
  NtmArray d_initial_memory;        // [B, N, M]
  NtmArray d_initial_weightings;    // [B, H, N]
  NtmArray d_initial_read_vectors;  // [B, R, M]
  NtmArray d_initial_hidden;        // [B, C], LSTM only
  NtmArray d_initial_cell;          // [B, C], LSTM only
  const int64_t* lengths;           // [B] or none
  const void* recurrent_weight;  // forward [G, R*M + C], backward transposed; without C if no LSTM
  const void* interface_weight;  // forward [P, C], backward transposed
  const void* interface_bias;    // [P]
  void* trace_interface;         // [T, B, P] activated, or none
  void* checkpoints;             // [ceil(T / checkpoint_every), B, M, N] or none
  void* all_weightings;          // [T, B, H, N] or none
  void* interfaces;              // [T, B, P] raw, or none
  void* gates;                   // [T, B, 4C] activated, LSTM only
  void* cells;                   // [T, B, C], LSTM only
  void* d_interfaces;            // [T, B, P]
  void* workspace;
} NtmSequenceParams;
