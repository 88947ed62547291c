// How the NT-Xent launches are cut into CTAs and where their scratch data lies in the workspace.
//
// A plan depends on the problem and the device only, never on data: the same call always adds in the same order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../ntxent_launch.h"
#include "ntxent_math.cuh"

namespace simclr::cuda {

// Rows and columns of a tile of the forward. Four warps of 64 x 64 hold 128 accumulators a thread, and with operands up
// to all 255 registers. 256 would spill; 64 would read every row of u twice as often for the same products.
constexpr int kFwdTile = 128;
// Of a row of u, per pipeline stage: the eight chunks after which the swizzle repeats. Two stages of two operands take
// 64 KiB; with 256 bytes it would be 128, more than the 99 KiB of a block on sm_86 and sm_89.
constexpr int kFwdDepthBytes = 128;
// Partials per row: up to M = 8192 a band is one tile. More would mean more to add up in the second launch, and a
// larger workspace; 64 bands make 2080 CTAs already.
constexpr int kFwdMaxSlots = 64;
// Threads of the forward's second launch that multiply a sample's two rows: eight loads of 16 bytes are a line of 128.
// With four, a warp's loads would touch half lines; with 16, rows of D = 64 in fp16 would leave half of them idle.
constexpr int kLanesPerPair = 8;
// Samples of one of its blocks, which thus has 256 threads. 64 of these finish a row each afterwards.
constexpr int kFwdFinishPairs = 32;
constexpr int kFwdFinishThreads = kFwdFinishPairs * kLanesPerPair;
constexpr int kMaxColumns = 1 << 30;  // sums of two column numbers must fit in int

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t element_bytes(int dtype) { return dtype == SIMCLR_DOUBLE ? 8 : dtype == SIMCLR_FLOAT ? 4 : 2; }
inline int64_t round_up(int64_t bytes, int64_t unit) { return ceil_div(bytes, unit) * unit; }

inline int operand_dtype(int z_dtype) { return z_dtype == SIMCLR_BFLOAT16 ? SIMCLR_HALF : z_dtype; }

// Columns of u: d rounded up to whole 16-byte chunks.
inline int64_t operand_columns(int64_t d, int u_dtype) { return round_up(d, 16 / element_bytes(u_dtype)); }

template <class Args>
Pairing<int> pairing_of(const Args& args) {
  return {static_cast<int>(args.n), static_cast<int>(2 * args.n), static_cast<int>(args.columns),
          static_cast<int>(args.row_offset)};
}

template <class T, class Args>
Temperature<T> temperature_of(const Args& args) {
  return {static_cast<const T*>(args.temperature_ptr), 1 / args.temperature};
}

template <class T>
LossWeights<T> weights_of(const SimclrNtxentBwdArgs& args) {
  return {static_cast<const T*>(args.dloss), static_cast<T>(args.scale), args.reduce == 0};
}

template <class T>
RowStatistics<T> statistics_of(const SimclrNtxentBwdArgs& args) {
  return {static_cast<const T*>(args.lse_neg), static_cast<const T*>(args.s_pos)};
}

// A temperature that only the device knows may be any.
template <class Args>
bool uses_constant_max(const Args& args) {
  return args.temperature_ptr == nullptr && simclr::uses_constant_max(args.temperature);
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
  plan.finish_blocks = static_cast<int>(ceil_div(args.n, kFwdFinishPairs));

  if (args.u_dtype == SIMCLR_DOUBLE) plan.slots = 1;  // row by row
  const int64_t partial_bytes = args.u_dtype == SIMCLR_DOUBLE || !uses_constant_max(args) ? 8 : 4;
  plan.partials_at = 0;
  plan.block_sums_at = round_up(plan.slots * rows * partial_bytes, 16);
  plan.finished_at = round_up(plan.block_sums_at + plan.finish_blocks * sizeof(double), 16);
  plan.bytes = plan.finished_at + 16;
  return plan;
}

// Columns of u and du that one warp owns. Of 32 rows in fp16, du takes 128 registers a thread and u 64; of 16 rows in
// fp32 they take 64 each, and split operands more. 256 would spill; 64 would exchange logits from D = 65 on.
constexpr int kBwdSlice = 128;
// All threads that 255 registers each leave room for on an SM; hence warps that share rows, and so D <= 1024, end at 8.
constexpr int kBwdMaxThreads = 256;
constexpr int kBwdMaxSlices = kBwdMaxThreads / 32;
// Columns of S at a time: their accumulators are one A operand of the product with u (fp16: one mma deep, fp32: two). 8
// would be half an operand, 32 would take twice the registers for logits, of which none are left.
constexpr int kBwdPanel = 16;
// Partial sums of du per row: each is written, and read again by the second launch, in full fp32.
constexpr int kBwdMaxSplits = 8;
// Rows of a block of the backward's second launch, one a warp: of M = 1024 they make 256 blocks, some for every SM.
constexpr int kBwdFinishWarps = 4;

struct BwdPlan {
  bool uses_tiles;              // tensor cores; else row by row
  int slices, warps;            // warps / slices groups of rows, each shared by `slices` warps
  int block_rows, row_blocks;   // rows of a CTA
  int row_bytes, tile_columns;  // a column tile: tile_columns rows of u, padded to whole slices
  int stages, stage_bytes, shared_bytes;
  int tiles, split_tiles, splits;  // column tiles in all, and per CTA
  int du_columns;                  // of the partial du: D rounded up to 8
  int finish_blocks;
  int64_t du_at, own_logits_at, block_sums_at, finished_at, bytes;
};

inline void cut_tiles(const SimclrNtxentBwdArgs& args, BwdPlan* plan) {
  const int element = static_cast<int>(element_bytes(operand_dtype(args.z_dtype)));
  const int warp_rows = element == 2 ? 32 : 16;
  plan->slices = 1;
  while (plan->slices * kBwdSlice < args.d) plan->slices *= 2;
  plan->warps = element == 2 && plan->slices == 1 ? 4 : 8;
  plan->block_rows = plan->warps / plan->slices * warp_rows;
  plan->row_blocks = static_cast<int>(ceil_div(2 * args.n, plan->block_rows));

  // Stages of 16 KiB, or of the one panel that is the least; as many as fit, up to three. A CTA of four warps leaves
  // room for a second one; the system keeps 1 KiB per CTA. With 32 KiB such a CTA would have one stage on sm_86, and
  // nothing to copy ahead into.
  plan->row_bytes = plan->slices * kBwdSlice * element;
  plan->tile_columns = std::max(kBwdPanel, 16384 / plan->row_bytes);
  plan->stage_bytes = plan->tile_columns * plan->row_bytes;
  const int exchanged = plan->slices == 1 ? 0 : warp_rows * kBwdPanel * static_cast<int>(sizeof(float));
  const int exchange_bytes = (plan->warps + plan->warps / plan->slices) * exchanged;
  const int terms_bytes = 2 * plan->tile_columns * static_cast<int>(sizeof(float));
  const int shared_limit = (args.device.max_shared_bytes + 1024) * plan->warps / 8 - 1024;
  const int fitting = (shared_limit - exchange_bytes) / (plan->stage_bytes + terms_bytes);
  plan->stages = std::clamp(fitting, 1, 3);
  plan->shared_bytes = plan->stages * (plan->stage_bytes + terms_bytes) + exchange_bytes;

  // Eight warps fill an SM's registers; aim at two CTAs of four warps, or at one of eight, per SM.
  const int wanted = args.device.multiprocessors * 8 / plan->warps;
  plan->tiles = static_cast<int>(ceil_div(args.columns, plan->tile_columns));
  const int splits = std::clamp(wanted / plan->row_blocks, 1, std::min(plan->tiles, kBwdMaxSplits));
  plan->split_tiles = static_cast<int>(ceil_div(plan->tiles, splits));
  plan->splits = static_cast<int>(ceil_div(plan->tiles, plan->split_tiles));
}

inline BwdPlan plan_bwd(const SimclrNtxentBwdArgs& args) {
  BwdPlan plan = {};
  const int64_t rows = 2 * args.n;
  plan.uses_tiles = args.z_dtype != SIMCLR_DOUBLE && args.d <= kBwdMaxSlices * kBwdSlice;
  plan.du_columns = static_cast<int>(round_up(args.d, 8));
  plan.finish_blocks = static_cast<int>(ceil_div(rows, kBwdFinishWarps));
  plan.splits = 1;
  if (plan.uses_tiles) cut_tiles(args, &plan);

  const int64_t statistic = args.z_dtype == SIMCLR_DOUBLE ? sizeof(double) : sizeof(float);
  plan.du_at = 0;
  plan.own_logits_at = plan.splits * rows * plan.du_columns * statistic;
  plan.block_sums_at = round_up(plan.own_logits_at + plan.splits * rows * statistic, 16);
  plan.finished_at = round_up(plan.block_sums_at + plan.finish_blocks * statistic, 16);
  plan.bytes = plan.finished_at + 16;
  return plan;
}

}  // namespace simclr::cuda
