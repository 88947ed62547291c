// Log-sum-exps of similarities, the primitive under the losses, as the binding calls it for the CPU and for CUDA.
// tests/similarity_launchers.py mirrors the arguments field by field, in this order.
//
// Rows [row_count] and columns [column_count] are unit rows of one operand width, laid out as u in ntxent_launch.h;
// they may be the same memory, and then the logits are symmetric. With s_ij = rows_i . columns_j / t over the pairs
// that `exclude` leaves in:
//
//   lse_i        = log sum_j exp(s_ij)                     -inf where a row has nothing left to sum over
//   max_i        = max_j s_ij                              likewise
//   column_lse_j = log sum_i exp(s_ij)                     likewise
//   du_i         = 1/t sum_j (drows_i exp(s_ij - lse_i) + dcolumns_j exp(s_ij - column_lse_j)) columns_j
//   dz_i         = r_i (du_i - u_i (u_i . du_i)), r_i = 1 / |z_i|; where |z_i| <= eps the norm was clamped: du_i / eps
//   dt           = -1/t sum_i drows_i sum_j exp(s_ij - lse_i) s_ij
//   dlse_dz_i    = dz_i of drows_i = 1 and dcolumns = 0
//   dlse_dt_i    = -1/t sum_j exp(s_ij - lse_i) s_ij
//
// A side without an upstream gradient has zeros for it and +inf for its log-sum-exps. Row i leaves out column
// row_offset + i with SIMCLR_EXCLUDE_SELF, and with SIMCLR_EXCLUDE_PAIR (row_count is even) also column row_offset +
// (i + row_count / 2) mod row_count. In the terms of Pairing (ntxent.h), `self` is a partner at distance 0, `none` an
// own column left of the first. Statistics are fp32, fp64 for fp64 inputs.
#pragma once

#include "ntxent.h"
#include "ntxent_launch.h"

enum SimclrExclude { SIMCLR_EXCLUDE_NONE = 0, SIMCLR_EXCLUDE_SELF = 1, SIMCLR_EXCLUDE_PAIR = 2 };

struct SimclrSimilarityFwdArgs {
  const void* rows;             // [row_count, parts, u_columns], of u_dtype (half on CUDA, float, double)
  const void* columns;          // [column_count, parts, u_columns]
  void* lse;                    // [row_count]
  void* max;                    // [row_count], or null
  void* column_lse;             // [column_count], or null
  void* workspace;              // CUDA: simclr_similarity_fwd_workspace_bytes(&args) bytes, 16-byte aligned
  const void* temperature_ptr;  // [], of the statistics' type; or null: then `temperature` counts
  int64_t row_count, column_count, row_offset, u_columns;
  double temperature;
  int exclude, u_dtype, precision;
  SimclrDevice device;  // CUDA
};

// Rows whose columns want no gradient, on the CPU: the log-sum-exps and their derivatives.
struct SimclrSimilarityFwdBwdArgs {
  const void* rows;      // [row_count, u_columns], of u_dtype
  const void* columns;   // [column_count, u_columns]
  const void* inv_norm;  // [row_count]
  void* lse;             // [row_count]
  void* max;             // [row_count], or null
  void* dlse_dz;         // [row_count, u_columns], of the statistics' type
  void* dlse_dt;         // [row_count]
  const void* temperature_ptr;
  int64_t row_count, column_count, row_offset, u_columns;
  double temperature, eps;
  int exclude, u_dtype;
};

struct SimclrSimilarityBwdArgs {
  const void* drows;       // [row_count]
  const void* dcolumns;    // [column_count]
  const void* z;           // [row_count, d], of z_dtype, z_stride elements between rows; CUDA
  const void* rows;        // [row_count, parts, u_columns]
  const void* inv_norm;    // [row_count]
  const void* columns;     // [column_count, parts, u_columns]
  const void* lse;         // [row_count]
  const void* column_lse;  // [column_count]
  void* dz;                // [row_count, d], contiguous, of z_dtype
  void* dt;                // []; null if not needed
  void* workspace;         // CUDA: simclr_similarity_bwd_workspace_bytes(&args) bytes, 16-byte aligned
  const void* temperature_ptr;
  int64_t z_stride, d, row_count, column_count, row_offset, u_columns;
  double temperature, eps;
  int exclude, z_dtype, precision;
  SimclrDevice device;
};

namespace simclr {
// The pairs that count as "negatives": those that `exclude` leaves in.
template <class Index, class Args>
Pairing<Index> pairs_left_in(const Args& args) {
  const Index rows = static_cast<Index>(args.row_count), columns = static_cast<Index>(args.column_count);
  constexpr Index kLeftOfAll = -(Index{1} << (8 * sizeof(Index) - 2));
  const bool none = args.exclude == SIMCLR_EXCLUDE_NONE;
  return {args.exclude == SIMCLR_EXCLUDE_PAIR ? rows / 2 : 0, rows, columns,
          none ? kLeftOfAll : static_cast<Index>(args.row_offset)};
}
}  // namespace simclr

namespace simclr::cpu {
// Results do not depend on the number of threads.
void similarity_fwd(const SimclrSimilarityFwdArgs& args, const Parallel& parallel);
void similarity_fwd_bwd(const SimclrSimilarityFwdBwdArgs& args, const Parallel& parallel);
void similarity_bwd(const SimclrSimilarityBwdArgs& args, const Parallel& parallel);
}  // namespace simclr::cpu

extern "C" {
int simclr_similarity_fwd(const SimclrSimilarityFwdArgs* args, void* stream);
int simclr_similarity_bwd(const SimclrSimilarityBwdArgs* args, void* stream);

int64_t simclr_similarity_fwd_workspace_bytes(const SimclrSimilarityFwdArgs* args);
int64_t simclr_similarity_bwd_workspace_bytes(const SimclrSimilarityBwdArgs* args);
}
