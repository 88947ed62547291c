// When one launch makes the loss and its gradient (ntxent_resident.cu), and how it is cut into CTAs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ntxent_problem.h"

namespace simclr::cuda {

// Rows of a CTA: the fewest that an mma takes, for M = 2048 is 128 CTAs then. With 32, half of the multiprocessors
// would have none, and the logits of a CTA would not fit into its shared memory.
constexpr int kResidentRows = 16;
// Columns that a warp takes at a time: an A operand of the product with u is that wide.
constexpr int kResidentPanel = 16;
// Warps share a CTA's columns out. Eight may have 255 registers a thread; 16 would have 128, fewer than it takes.
constexpr int kResidentWarps = 8;
// Columns of u and du: each warp holds a du of 16 rows, 64 accumulators a thread. 256 would leave none for operands.
constexpr int kResidentDepth = 128;
// Rows of u in memory are whole lines, and padded with zeros.
constexpr int kResidentLine = 128;
// Of a row of du in shared memory, in floats: warps write without bank conflicts because it is 4 more than 128.
constexpr int kResidentPitch = kResidentDepth + 4;
// What the kernel declares besides, at most.
constexpr int kResidentStaticBytes = 4096;

struct ResidentPlan {
  bool fits;
  int blocks, panels, warp_panels;  // CTAs; panels of columns, in all and of a warp
  int lines, row_bytes;             // of a part of a row of u, and of all its parts
  int logits_bytes, shared_bytes;   // the logits of a CTA, and all
  int64_t u_at, inv_norm_at, lse_neg_at, s_pos_at, losses_at, dt_sums_at, finished_at, bytes;
};

inline ResidentPlan plan_resident(const SimclrNtxentFwdBwdArgs& args) {
  ResidentPlan plan = {};
  const int64_t rows = 2 * args.n;
  if (args.z_dtype == SIMCLR_DOUBLE || args.d > kResidentDepth) return plan;
  if (rows > int64_t{kResidentRows} * args.device.multiprocessors) return plan;  // one CTA each, to be sure of room
  plan.blocks = static_cast<int>(ceil_div(rows, kResidentRows));
  plan.panels = static_cast<int>(ceil_div(rows, kResidentPanel));
  plan.warp_panels = static_cast<int>(ceil_div(plan.panels, kResidentWarps));
  plan.lines = static_cast<int>(ceil_div(args.d * kPartElementBytes, kResidentLine));
  plan.row_bytes = operand_parts(operand_dtype(args.z_dtype)) * plan.lines * kResidentLine;

  // Where the logits were, the warps' partial sums of du are put in the end.
  const int partials_bytes = kResidentWarps * kResidentRows * kResidentPitch * static_cast<int>(sizeof(float));
  const int warp_panel_bytes = kResidentWarps * kResidentRows * kResidentPanel * static_cast<int>(sizeof(float));
  plan.logits_bytes = std::max(plan.warp_panels * warp_panel_bytes, partials_bytes);
  plan.shared_bytes = plan.logits_bytes + plan.panels * kResidentPanel * static_cast<int>(sizeof(float));
  plan.fits = plan.shared_bytes + kResidentStaticBytes <= args.device.max_shared_bytes;

  const int64_t padded_rows = int64_t{plan.blocks} * kResidentRows;
  const int64_t of_rows = round_up(padded_rows * static_cast<int64_t>(sizeof(float)), 16);
  plan.u_at = 0;
  plan.inv_norm_at = padded_rows * plan.row_bytes;
  plan.lse_neg_at = plan.inv_norm_at + of_rows;
  plan.s_pos_at = plan.lse_neg_at + of_rows;
  const int64_t of_blocks = round_up(plan.blocks * static_cast<int64_t>(sizeof(float)), 16);
  plan.losses_at = plan.s_pos_at + of_rows;
  plan.dt_sums_at = plan.losses_at + of_blocks;
  plan.finished_at = plan.dt_sums_at + of_blocks;
  plan.bytes = plan.finished_at + 16;
  return plan;
}

}  // namespace simclr::cuda
