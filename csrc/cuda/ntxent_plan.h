// How the launches of NT-Xent and of the primitive are cut into CTAs and where their scratch data lies in the
// workspace.
//
// A plan depends on the problem and the device only, never on data: the same call always adds in the same order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ntxent_bwd_sm90_plan.h"
#include "ntxent_bwd_wide_sm90_plan.h"
#include "ntxent_fwd_sm90_plan.h"
#include "ntxent_problem.h"
#include "ntxent_splits.h"

namespace simclr::cuda {

// Rows and columns of a tile of the forward. Four warps of 64 x 64 hold 128 accumulators a thread, and with operands up
// to all 255 registers. 256 would spill; 64 would read every row of u twice as often for the same products.
constexpr int kFwdTile = 128;
// Of a row of u, per pipeline stage: the eight chunks after which the swizzle repeats. Two stages of two operands take
// 64 KiB; with 256 bytes it would be 128, more than the 99 KiB of a block on sm_86 and sm_89.
constexpr int kFwdDepthBytes = 128;
// Partials per row, and per column: up to M = 8192 a band is one tile. More would mean more to add up in the second
// launch, and a larger workspace; 64 bands make 2080 CTAs already.
constexpr int kFwdMaxSlots = 64;
// Threads of the forward's second launch that multiply a sample's two rows: eight loads of 16 bytes are a line of 128.
// With four, a warp's loads would touch half lines; with 16, rows of D = 64 in fp16 would leave half of them idle.
constexpr int kLanesPerPair = 8;
// Samples of one of its blocks, which thus has 256 threads. 64 of these finish a row each afterwards.
constexpr int kFwdFinishPairs = 32;
constexpr int kFwdFinishThreads = kFwdFinishPairs * kLanesPerPair;
struct FwdPlan {
  bool symmetric;    // rows are the columns
  bool online_max;   // else the constant maximum
  FwdSm90Plan sm90;  // in whose tiles the bands are counted where it is used
  int row_tiles, column_tiles, depths;
  int row_band_tiles, column_band_tiles, row_bands, slots;  // slots = column bands; a column's slots are the row bands
  int pairs, blocks, finish_blocks;             // pairs of bands; a CTA has one, or, in Hopper's launch, a range
  int64_t row_partials_at, column_partials_at;  // the same where symmetric; the columns' -1 where they are not wanted
  int64_t block_sums_at, finished_at, bytes;

  // Symmetric: b(b+1)/2 + a is the pair of bands a <= b.
  __device__ void bands_of(int pair, int* row_band, int* column_band) const {
    if (!symmetric) {
      *row_band = pair % row_bands;
      *column_band = pair / row_bands;
      return;
    }
    int b = static_cast<int>((sqrtf(8.0f * pair + 1.0f) - 1.0f) / 2.0f);
    while (b * (b + 1) / 2 > pair) --b;
    while ((b + 1) * (b + 2) / 2 <= pair) ++b;
    *row_band = pair - b * (b + 1) / 2;
    *column_band = b;
  }
};

// The tiles of the first launch and its partials, with column sums or without; `bytes` ends with these.
inline FwdPlan cut_fwd(const Product& product, const SimclrDevice& device, bool column_sums, bool need_max) {
  FwdPlan plan = {};
  const int64_t rows = product.pairing.rows, columns = product.pairing.columns;
  plan.symmetric = product.symmetric();
  plan.online_max = need_max || !product.uses_constant_max();
  const int64_t partial_bytes = plan.online_max ? 8 : 4;
  if (has_sm90_kernels(device) && product.u_dtype != SIMCLR_DOUBLE) {
    plan.sm90 = cut_fwd_sm90(product, device, static_cast<int>(partial_bytes));
  }
  const int tile = plan.sm90.used ? plan.sm90.tile : kFwdTile;
  plan.row_tiles = static_cast<int>(ceil_div(rows, tile));
  plan.column_tiles = static_cast<int>(ceil_div(columns, tile));
  plan.depths = static_cast<int>(ceil_div(product.multiplied_parts() * product.part_bytes(), kFwdDepthBytes));
  plan.column_band_tiles = static_cast<int>(ceil_div(plan.column_tiles, kFwdMaxSlots));
  plan.row_band_tiles = plan.symmetric ? plan.column_band_tiles
                        : column_sums  ? static_cast<int>(ceil_div(plan.row_tiles, kFwdMaxSlots))
                                       : 1;
  plan.row_bands = static_cast<int>(ceil_div(plan.row_tiles, plan.row_band_tiles));
  plan.slots = static_cast<int>(ceil_div(plan.column_tiles, plan.column_band_tiles));
  plan.pairs = static_cast<int>(fwd_sm90_pairs(plan.symmetric, plan.row_bands, plan.slots));
  plan.blocks = plan.sm90.used ? std::min(plan.pairs, device.multiprocessors) : plan.pairs;

  plan.row_partials_at = 0;
  plan.bytes = round_up(plan.slots * rows * partial_bytes, 16);
  plan.column_partials_at = plan.symmetric ? plan.row_partials_at : column_sums ? plan.bytes : -1;
  if (column_sums && !plan.symmetric) plan.bytes += round_up(plan.row_bands * columns * partial_bytes, 16);
  return plan;
}

inline FwdPlan plan_fwd(const SimclrNtxentFwdArgs& args) {
  FwdPlan plan = cut_fwd(product_of(args), args.device, false, false);
  if (args.u_dtype == SIMCLR_DOUBLE) {  // row by row: one partial each, a float64
    plan.slots = 1;
    plan.bytes = 2 * args.n * static_cast<int64_t>(sizeof(double));
  }
  plan.finish_blocks = static_cast<int>(ceil_div(args.n, kFwdFinishPairs));
  plan.block_sums_at = plan.bytes;
  plan.finished_at = round_up(plan.block_sums_at + plan.finish_blocks * sizeof(double), 16);
  plan.bytes = plan.finished_at + 16;
  return plan;
}

// Columns of u and du that one warp owns. Of 32 rows, du takes 128 registers a thread and u 64; of 16 rows with three
// products they take 64 each, and sums from zero more. 256 would spill; 64 would exchange logits from D = 65 on.
constexpr int kBwdSlice = 128;
// All threads that 255 registers each leave room for on an SM; hence warps that share rows, and so D <= 1024, end at 8.
constexpr int kBwdMaxThreads = 256;
constexpr int kBwdMaxSlices = kBwdMaxThreads / 32;
// Columns of S at a time: their accumulators are one A operand of the product with u. 8 would be half an operand, 32
// would take twice the registers for logits, of which none are left.
constexpr int kBwdPanel = 16;
// What a CTA of the backward spends besides its tiles, in tiles, and the part of the shortest time, a sixth, that fewer
// partial du may take longer (ntxent_splits.h): what one costs in the launch that adds them up, which is not in the two
// tiles, and in memory. With an eighth M = 17408 of D = 128 would take five on an H100 instead of three.
constexpr int kBwdBesideTiles = 2;
constexpr int kBwdSplitMargin = 6;
// Rows of a block of the backward's second launch, one a warp: of M = 1024 they make 256 blocks, some for every SM.
constexpr int kBwdFinishWarps = 4;

struct BwdPlan {
  bool uses_tiles;              // tensor cores; else row by row
  bool uses_wgmma;              // by Hopper's warpgroups; slices and warps do not count then
  bool uses_clusters;           // by clusters of Hopper's CTAs; likewise
  int slices, warps;            // warps / slices groups of rows, each shared by `slices` warps
  int block_rows, row_blocks;   // rows of a CTA
  int row_bytes, tile_columns;  // a column tile: tile_columns rows of u, padded to whole slices
  int stages, stage_bytes, shared_bytes;
  int tiles, split_tiles, splits;  // column tiles in all, and per CTA
  int du_columns;                  // of the partial du: D rounded up to 8
  int finish_blocks;
  int64_t du_at, own_logits_at, block_sums_at, finished_at, bytes;
};

inline void cut_tiles(const BwdProblem& problem, BwdPlan* plan) {
  const Pairing<int>& pairing = problem.product.pairing;
  const int parts = problem.product.multiplied_parts();
  const int warp_rows = 32 / parts;
  plan->slices = 1;
  while (plan->slices * kBwdSlice < problem.d) plan->slices *= 2;
  plan->warps = parts == 1 && plan->slices == 1 ? 4 : 8;
  plan->block_rows = plan->warps / plan->slices * warp_rows;
  plan->row_blocks = static_cast<int>(ceil_div(pairing.rows, plan->block_rows));

  // Stages of 16 KiB, or of the one panel that is the least; as many as fit, up to three. A CTA of four warps leaves
  // room for a second one; the system keeps 1 KiB per CTA. With 32 KiB such a CTA would have one stage on sm_86, and
  // nothing to copy ahead into.
  plan->row_bytes = plan->slices * kBwdSlice * parts * kPartElementBytes;
  plan->tile_columns = std::max(kBwdPanel, 16384 / plan->row_bytes);
  plan->stage_bytes = plan->tile_columns * plan->row_bytes;
  const int exchanged = plan->slices == 1 ? 0 : warp_rows * kBwdPanel * static_cast<int>(sizeof(float));
  const int exchange_bytes = (plan->warps + plan->warps / plan->slices) * exchanged;
  const int terms_bytes = 2 * plan->tile_columns * static_cast<int>(sizeof(float));
  const int shared_limit = (problem.device.max_shared_bytes + 1024) * plan->warps / 8 - 1024;
  const int fitting = (shared_limit - exchange_bytes) / (plan->stage_bytes + terms_bytes);
  plan->stages = std::clamp(fitting, 1, 3);
  plan->shared_bytes = plan->stages * (plan->stage_bytes + terms_bytes) + exchange_bytes;

  // Eight warps fill an SM's registers; aim at two CTAs of four warps, or at one of eight, per SM.
  const int places = problem.device.multiprocessors * 8 / plan->warps;
  plan->tiles = static_cast<int>(ceil_div(pairing.columns, plan->tile_columns));
  const Splits splits = backward_splits(plan->row_blocks, plan->tiles, places, kBwdBesideTiles, kBwdSplitMargin);
  plan->split_tiles = splits.tiles;
  plan->splits = splits.count;
}

inline void cut_tiles_sm90(const Sm90Cut& cut, BwdPlan* plan) {
  plan->block_rows = cut.block_rows;
  plan->row_blocks = cut.row_blocks;
  plan->tile_columns = cut.tile_columns;
  plan->stages = cut.stages;
  plan->shared_bytes = cut.shared_bytes;
  plan->tiles = cut.tiles;
  plan->split_tiles = cut.splits.tiles;
  plan->splits = cut.splits.count;
}

inline BwdPlan plan_bwd(const BwdProblem& problem) {
  BwdPlan plan = {};
  const int64_t rows = problem.product.pairing.rows;
  plan.uses_tiles = problem.z_dtype != SIMCLR_DOUBLE && problem.d <= kBwdMaxSlices * kBwdSlice;
  plan.du_columns = static_cast<int>(round_up(problem.d, 8));
  plan.finish_blocks = static_cast<int>(ceil_div(rows, kBwdFinishWarps));
  plan.splits = 1;
  plan.uses_wgmma =
      plan.uses_tiles && has_sm90_kernels(problem.device) && sm90_takes(problem.d, problem.product.products());
  plan.uses_clusters = plan.uses_tiles && has_sm90_kernels(problem.device) && wide_takes(problem);
  if (plan.uses_wgmma) {
    cut_tiles_sm90(cut_sm90(problem), &plan);
  } else if (plan.uses_clusters) {
    cut_tiles_sm90(cut_wide(problem), &plan);
  } else if (plan.uses_tiles) {
    cut_tiles(problem, &plan);
  }

  const int64_t statistic = problem.z_dtype == SIMCLR_DOUBLE ? sizeof(double) : sizeof(float);
  plan.du_at = 0;
  plan.own_logits_at = plan.splits * rows * plan.du_columns * statistic;
  plan.block_sums_at = round_up(plan.own_logits_at + plan.splits * rows * statistic, 16);
  plan.finished_at = round_up(plan.block_sums_at + plan.finish_blocks * statistic, 16);
  plan.bytes = plan.finished_at + 16;
  return plan;
}

}  // namespace simclr::cuda
