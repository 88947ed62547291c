// The steps of NT-Xent as the binding calls them: one family of arguments, filled by name, for the CPU and for CUDA.
// tests/ntxent_launchers.py mirrors them field by field, in this order.
//
// Rows are the 2n local ones (view 0, then view 1); columns are all M of them, the rows of all processes in rank order.
// Local row i is column row_offset + i and its positive is column row_offset + (i + n) mod 2n. csrc/ntxent.h holds the
// formulas. Statistics are fp32, fp64 for fp64 inputs; arrays are exactly as long as their comment says.
//
// u has one row per sample and u_columns columns. On the CPU it is of the statistics' type and u_columns = d. On CUDA
// u_columns = simclr_ntxent_operand_columns(d, u_dtype): d rounded up so that a row is a multiple of 16 bytes, the added
// columns zero (8 elements of fp16, 2 of fp64). There u is fp16 for half inputs, fp64 for fp64 ones, and for fp32 inputs
// split: SIMCLR_FLOAT then means rows of two fp16 parts of u_columns each, hi = fp16(2^8 u) and lo = fp16(2^8 u - hi).
// The op's fake kernel must allocate the same shape.
#pragma once

#include <cstdint>

#include "parallel.h"

enum SimclrDtype { SIMCLR_HALF = 0, SIMCLR_BFLOAT16 = 1, SIMCLR_FLOAT = 2, SIMCLR_DOUBLE = 3 };

// How split operands are multiplied on CUDA: as three fp16 products (fp32 accuracy), or as one (tf32's). fp16, fp64 and
// the CPU ignore it.
enum SimclrPrecision { SIMCLR_IEEE = 0, SIMCLR_TF32 = 1 };

// What the CUDA launchers need to know of the device; the launch plan depends on nothing else.
struct SimclrDevice {
  int multiprocessors;
  int max_shared_bytes;  // of one block, with opt-in
  int capability;        // 10 major + minor of the compute capability: 90 is Hopper
};

struct SimclrNtxentNormalizeArgs {
  const void* z[2];     // [n[0], d] and [n[1], d], of z_dtype; n[1] may be 0
  int64_t z_stride[2];  // elements between rows; columns are adjacent
  void* u;              // [n[0] + n[1], parts, u_columns]
  void* inv_norm;       // [n[0] + n[1]]: 1 / max(|z_i|, eps)
  int64_t n[2], d, u_columns;
  double eps;
  int z_dtype;
};

struct SimclrNtxentFwdArgs {
  const void* u;                // [columns, parts, u_columns], of u_dtype (half on CUDA, float, double)
  void* loss;                   // [] = scale * sum of L_i if reduce, else [2n] = L_i
  void* lse_neg;                // [2n]; -inf where there are no negatives (M = 2)
  void* s_pos;                  // [2n]
  void* workspace;              // CUDA: simclr_ntxent_fwd_workspace_bytes(&args) bytes, 16-byte aligned
  const void* temperature_ptr;  // [], where the rows are, of the statistics' type; or null: then `temperature` counts
  int64_t n, columns, row_offset, u_columns;
  double temperature, scale;
  int reduce, u_dtype, precision;
  SimclrDevice device;  // CUDA
};

struct SimclrNtxentBwdArgs {
  const void* dloss;     // [] if reduce (null: 1), else [columns]
  const void* z[2];      // [n, d] each, of z_dtype; CUDA
  const void* u;         // [columns, parts, u_columns]
  const void* inv_norm;  // [2n]
  const void* lse_neg;   // [columns]
  const void* s_pos;     // [columns]
  void* dz[2];           // [n, d] each, contiguous, of z_dtype; within ntxent_fwd_bwd of the statistics' type
  void* dt;              // []; null if not needed. The sum over all processes is the gradient of the temperature
  void* workspace;       // CUDA: simclr_ntxent_bwd_workspace_bytes(&args) bytes, 16-byte aligned
  const void* temperature_ptr;
  int64_t z_stride[2];
  int64_t n, d, columns, row_offset, u_columns;
  double temperature, scale, eps;
  int reduce, z_dtype, precision;
  SimclrDevice device;
};

// All three at once for a scalar loss of one process, whose gradient is made for dloss = 1. CUDA.
struct SimclrNtxentFwdBwdArgs {
  const void* z[2];             // [n, d] each, of z_dtype
  void* loss;                   // [] = scale * sum of L_i
  void* dz;                     // [2, n, d], of the statistics' type
  void* dt;                     // []; null if not needed
  void* workspace;              // simclr_ntxent_fwd_bwd_workspace_bytes(&args) bytes, 16-byte aligned
  const void* temperature_ptr;  // as in SimclrNtxentFwdArgs
  int64_t z_stride[2];
  int64_t n, d;
  double temperature, scale, eps;
  int z_dtype, precision;
  SimclrDevice device;
};

namespace simclr::cpu {
// Results do not depend on the number of threads.
void ntxent_normalize(const SimclrNtxentNormalizeArgs& args, const Parallel& parallel);
void ntxent_fwd(const SimclrNtxentFwdArgs& args, const Parallel& parallel);
void ntxent_bwd(const SimclrNtxentBwdArgs& args, const Parallel& parallel);
}  // namespace simclr::cpu

// CUDA: every pointer is device memory. A launch goes to `stream` (a cudaStream_t) of the current device without
// waiting, and the cudaError_t of the launch is returned.
extern "C" {
int simclr_ntxent_normalize(const SimclrNtxentNormalizeArgs* args, void* stream);
int simclr_ntxent_fwd(const SimclrNtxentFwdArgs* args, void* stream);
int simclr_ntxent_bwd(const SimclrNtxentBwdArgs* args, void* stream);
int simclr_ntxent_fwd_bwd(const SimclrNtxentFwdBwdArgs* args, void* stream);

int64_t simclr_ntxent_operand_columns(int64_t d, int u_dtype);
int64_t simclr_ntxent_fwd_workspace_bytes(const SimclrNtxentFwdArgs* args);
int64_t simclr_ntxent_bwd_workspace_bytes(const SimclrNtxentBwdArgs* args);
int64_t simclr_ntxent_fwd_bwd_workspace_bytes(const SimclrNtxentFwdBwdArgs* args);

// Fills `device` for the current device; returns a cudaError_t.
int simclr_query_device(SimclrDevice* device);
}
