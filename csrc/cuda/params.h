// What the launchers take: plain C, filled in by ntm_kernels/backends/cuda through ctypes.
//
// The struct of an op has its inputs under their names, outputs as out_..., what the forward saves
// for the backward as saved_..., gradients of outputs as grad_..., gradients of inputs as d_....
// Tensors are contiguous. What is not there, or of no use to a direction, has no data. A pointer
// without a type is in the arithmetic dtype, double if the memory is double and float otherwise;
// lengths are int64. Shapes are in the letters of the package: batch B, memory_size N, word_size M,
// read heads R, write heads W, heads H = R + W, taps S, time T, hidden_size C, gate_size G,
// interface_size P, what the recurrent weight sees K = R*M + C (without C if no LSTM), checkpoints
// Q, layers of the controller L, those above the first U = L - 1, what each of them sees J = 2*C (C
// if no LSTM). `sequence` takes x projected, with I = G; its backward takes recurrent_weight,
// upper_weight (each layer's) and interface_weight transposed.
#pragma once
#include "records.h"
