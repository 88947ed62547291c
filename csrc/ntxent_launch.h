// C entry points of the CUDA NT-Xent kernels; torch-free, every pointer is device memory.
//
// Rows are the 2 n local ones (view 0, then view 1); columns are all M of them. Local row i is column row_offset + i
// and its positive is column row_offset + (i + n) mod 2 n. csrc/cuda/ntxent_math.cuh holds the formulas.
//
// u has one row per sample and simclr_ntxent_operand_columns(d, dtype) columns: d rounded up so that a row is a
// multiple of 16 bytes, the added columns zero (8 elements of fp16, 4 of fp32, 2 of fp64). The op's fake kernel must
// allocate the same shape for CUDA tensors. All other arrays are exactly as long as their comment says.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum SimclrDtype { SIMCLR_HALF = 0, SIMCLR_BFLOAT16 = 1, SIMCLR_FLOAT = 2, SIMCLR_DOUBLE = 3 };

// How fp32 operands are multiplied: as three tf32 products (fp32 accuracy), or as one. fp16 and fp64 ignore it.
enum SimclrPrecision { SIMCLR_IEEE = 0, SIMCLR_TF32 = 1 };

// What the launchers need to know of the device; the launch plan depends on nothing else.
struct SimclrDevice {
  int multiprocessors;
  int max_shared_bytes;  // of one block, with opt-in
};

struct SimclrNtxentNormalizeArgs {
  const void* z[2];     // [n, d] each, of z_dtype
  int64_t z_stride[2];  // elements between rows; columns are adjacent
  void* u;              // [2n, u_columns], fp16 for z_dtype half or bfloat16, else of z_dtype
  void* inv_norm;       // [2n], fp32 (fp64 for fp64): 1 / max(|z_i|, eps)
  int64_t n, d, u_columns;
  double eps;
  int z_dtype;
};

struct SimclrNtxentFwdArgs {
  const void* u;                // [columns, u_columns], of u_dtype (half, float, double)
  void* loss;                   // [] = scale * sum of L_i if reduce, else [2n] = L_i; fp32 (fp64 for fp64)
  void* lse_neg;                // [2n]
  void* s_pos;                  // [2n]
  void* workspace;              // simclr_ntxent_fwd_workspace_bytes(&args) bytes, 16-byte aligned
  const void* temperature_ptr;  // fp32 (fp64 for fp64) scalar, or null: then `temperature` counts
  int64_t n, columns, row_offset, u_columns;
  double temperature, scale;
  int reduce, u_dtype, precision;
  struct SimclrDevice device;
};

struct SimclrNtxentBwdArgs {
  const void* dloss;     // [] if reduce, else [columns]; fp32 (fp64 for fp64)
  const void* z[2];      // as in SimclrNtxentNormalizeArgs
  const void* u;         // [columns, u_columns]
  const void* inv_norm;  // [2n]
  const void* lse_neg;   // [columns]
  const void* s_pos;     // [columns]
  void* dz[2];           // [n, d] each, contiguous, of z_dtype
  void* dt;              // [], fp32 (fp64 for fp64); null if not needed
  void* workspace;       // simclr_ntxent_bwd_workspace_bytes(&args) bytes, 16-byte aligned
  const void* temperature_ptr;
  int64_t z_stride[2];
  int64_t n, d, columns, row_offset, u_columns;
  double temperature, scale, eps;
  int reduce, z_dtype, precision;
  struct SimclrDevice device;
};

int64_t simclr_ntxent_operand_columns(int64_t d, int u_dtype);
int64_t simclr_ntxent_fwd_workspace_bytes(const struct SimclrNtxentFwdArgs* args);
int64_t simclr_ntxent_bwd_workspace_bytes(const struct SimclrNtxentBwdArgs* args);

// Launch on `stream` (a cudaStream_t) of the current device without waiting; return the cudaError_t of the launch.
int simclr_ntxent_normalize(const struct SimclrNtxentNormalizeArgs* args, void* stream);
int simclr_ntxent_fwd(const struct SimclrNtxentFwdArgs* args, void* stream);
int simclr_ntxent_bwd(const struct SimclrNtxentBwdArgs* args, void* stream);

// Fills `device` for the current device; returns a cudaError_t.
int simclr_query_device(struct SimclrDevice* device);

#ifdef __cplusplus
}
#endif
