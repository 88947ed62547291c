// How the NT-Xent launches are cut into CTAs and where their scratch data lies in the workspace.
//
// A plan depends on the problem and the device only, never on data: the same call always adds in the same order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../ntxent_launch.h"
#include "ntxent_math.cuh"

namespace simclr::cuda {

constexpr int kFwdTile = 128;
constexpr int kFwdDepthBytes = 128;   // of a row of u, per pipeline stage
constexpr int kFwdFinishThreads = 64;
constexpr int kFwdMaxSlots = 64;  // partials per row
constexpr int kMaxColumns = 0x7fff0000;  // tile arithmetic in int must not overflow

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t element_bytes(int dtype) {
  return dtype == SIMCLR_DOUBLE ? 8 : dtype == SIMCLR_FLOAT ? 4 : 2;
}
inline int64_t round_up(int64_t bytes, int64_t unit) { return ceil_div(bytes, unit) * unit; }

// Columns of u: d rounded up to whole 16-byte chunks.
inline int64_t operand_columns(int64_t d, int u_dtype) { return round_up(d, 16 / element_bytes(u_dtype)); }

template <class Args>
Pairing pairing_of(const Args& args) {
  return {static_cast<int>(args.n), static_cast<int>(2 * args.n), static_cast<int>(args.columns),
          static_cast<int>(args.row_offset)};
}

template <class Args>
bool uses_constant_max(const Args& args) {
  return args.temperature_ptr == nullptr && 2 / args.temperature <= kLargestConstantMax;
}

template <class Args>
bool has_valid_shape(const Args& args) {
  return args.n > 0 && args.columns < kMaxColumns && args.row_offset >= 0 &&
         args.row_offset + 2 * args.n <= args.columns && args.u_columns > 0;
}

struct FwdPlan {
  bool symmetric;  // rows are the columns
  int row_tiles, column_tiles, depths;
  int row_band_tiles, column_band_tiles, row_bands, slots;  // slots = column bands
  int blocks, finish_blocks;
  int64_t partials_at, block_sums_at, finished_at, bytes;

  // Symmetric: block b(b+1)/2 + a is the pair of bands a <= b.
  __device__ void bands_of(int block, int* row_band, int* column_band) const {
    if (!symmetric) {
      *row_band = block % row_bands;
      *column_band = block / row_bands;
      return;
    }
    int b = static_cast<int>((sqrtf(8.0f * block + 1.0f) - 1.0f) / 2.0f);
    while (b * (b + 1) / 2 > block) --b;
    while ((b + 1) * (b + 2) / 2 <= block) ++b;
    *row_band = block - b * (b + 1) / 2;
    *column_band = b;
  }
};

inline FwdPlan plan_fwd(const SimclrNtxentFwdArgs& args) {
  FwdPlan plan = {};
  const int64_t rows = 2 * args.n;
  plan.symmetric = args.row_offset == 0 && args.columns == rows;
  plan.row_tiles = static_cast<int>(ceil_div(rows, kFwdTile));
  plan.column_tiles = static_cast<int>(ceil_div(args.columns, kFwdTile));
  plan.depths = static_cast<int>(ceil_div(args.u_columns * element_bytes(args.u_dtype), kFwdDepthBytes));
  plan.column_band_tiles = static_cast<int>(ceil_div(plan.column_tiles, kFwdMaxSlots));
  plan.row_band_tiles = plan.symmetric ? plan.column_band_tiles : 1;
  plan.row_bands = static_cast<int>(ceil_div(plan.row_tiles, plan.row_band_tiles));
  plan.slots = static_cast<int>(ceil_div(plan.column_tiles, plan.column_band_tiles));
  plan.blocks = plan.symmetric ? plan.slots * (plan.slots + 1) / 2 : plan.row_bands * plan.slots;
  plan.finish_blocks = static_cast<int>(ceil_div(rows, kFwdFinishThreads));

  const int64_t partial_bytes = uses_constant_max(args) ? sizeof(float) : sizeof(float2);
  plan.partials_at = 0;
  plan.block_sums_at = round_up(plan.slots * rows * partial_bytes, 16);
  plan.finished_at = round_up(plan.block_sums_at + plan.finish_blocks * sizeof(float), 16);
  plan.bytes = plan.finished_at + 16;
  return plan;
}

}  // namespace simclr::cuda
