// How the forward's launch for Hopper (ntxent_fwd_sm90.cu) cuts tiles into steps, and what it holds in shared memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "ntxent_problem.h"

namespace simclr::cuda {

// Depth of a panel of operands, 64 fp16, and bytes of one of its rows (wgmma.cuh).
constexpr int kFwdPanelColumns = 64;
constexpr int kFwdPanelRowBytes = 128;
// A warpgroup's share of a step: 64 rows, as many as wgmma has, and 128 columns. 256 columns would be all the
// accumulators that two shares are, one of which is multiplied while the other one is summed.
constexpr int kFwdShareRows = 64;
constexpr int kFwdShareColumns = 128;
constexpr int kFwdWarpgroups = 2;
constexpr int kFwdSm90Threads = 128 * kFwdWarpgroups;
// More stages would not start earlier than two steps ahead of what is multiplied, and an L2 miss takes less than one.
constexpr int kFwdMaxStages = 6;
// Of three products, columns whose products are summed from zero by the tensor cores, which truncate; such sums are then
// added by additions that round. With 64, rows that lie close at t = 0.01 would have a loss that is off by up to 6e-6 of
// it, with a whole D of 128 by 1e-5, against the 5e-6 that docs/ntxent.md promises; with 16, the 64 additions and the
// wait would lie beside 192 cycles of the other warpgroup's products, hardly more than they take.
constexpr int kFwdSumColumns = 32;
constexpr int kFwdPanelSums = kFwdPanelColumns / kFwdSumColumns;
// Of a block on every device of capability 9.0.
constexpr int kFwdSm90SharedBytes = 227 * 1024;

struct FwdSm90Plan {
  bool used;
  int tile;                  // rows and columns of a tile: 256, or 128
  int step_rows;             // of a tile at a time: the warpgroups lie side by side (64), or one above the other (128)
  int parts;                 // of the operands: hi, or hi and lo
  int slice_panels, slices;  // the depth in slices of so many panels
  int stages, stage_bytes;
  bool holds_columns;  // a tile's columns stay in shared memory, all of their depth; else every stage brings a slice
  int shared_bytes;

  __host__ __device__ constexpr int step_slice_bytes() const {
    return step_rows * parts * slice_panels * kFwdPanelRowBytes;
  }
  __host__ __device__ constexpr int tile_slice_bytes() const { return tile * parts * slice_panels * kFwdPanelRowBytes; }
  __host__ __device__ constexpr int held_bytes() const { return holds_columns ? slices * tile_slice_bytes() : 0; }
  // Products of one product under way while the next one's operands are waited for; three are waited for themselves.
  __host__ __device__ constexpr int under_way() const { return parts == 1 ? 1 : 0; }
  __host__ __device__ constexpr int copies_ahead() const { return stages - 1 - under_way(); }
  bool operator==(const FwdSm90Plan& other) const {
    const auto of = [](const FwdSm90Plan& p) {
      return std::tie(p.used, p.tile, p.step_rows, p.parts, p.slice_panels, p.slices, p.stages, p.stage_bytes,
                      p.holds_columns, p.shared_bytes);
    };
    return of(*this) == of(other);
  }
};

// Partials of the rows and columns of a step, twice: one is read while the next one is written.
constexpr int fwd_sm90_partial_entries() {
  return 2 * (kFwdWarpgroups * kFwdShareRows + kFwdWarpgroups * 4 * kFwdShareColumns);
}

// The plan for one size of tile and a depth of so many panels; not `used` where shared memory is too small for it.
constexpr FwdSm90Plan fwd_sm90_of_depth(int tile, int parts, int panels, int shared_bytes, int partial_bytes) {
  FwdSm90Plan plan = {};
  plan.tile = tile;
  plan.step_rows = tile == 2 * kFwdShareColumns ? kFwdShareRows : 2 * kFwdShareRows;
  plan.parts = parts;
  const bool wide = plan.parts == 1 ? plan.step_rows == kFwdShareRows : panels <= 2;
  plan.slice_panels = wide ? std::min(2, panels) : 1;
  plan.slices = static_cast<int>(ceil_div(panels, plan.slice_panels));
  const int room = shared_bytes - fwd_sm90_partial_entries() * partial_bytes;
  const int least = 2 + plan.under_way();
  for (const bool holds : {true, false}) {
    plan.holds_columns = holds;
    plan.stage_bytes = plan.step_slice_bytes() + (holds ? 0 : plan.tile_slice_bytes());
    plan.stages = std::min(kFwdMaxStages, (room - plan.held_bytes()) / plan.stage_bytes);
    plan.used = plan.stages >= least;
    if (plan.used) break;
  }
  plan.shared_bytes = plan.held_bytes() + plan.stages * plan.stage_bytes + fwd_sm90_partial_entries() * partial_bytes;
  return plan;
}
inline FwdSm90Plan fwd_sm90_of_tile(const Product& product, const SimclrDevice& device, int tile, int partial_bytes) {
  const int panels = static_cast<int>(ceil_div(product.part_bytes() / 2, int64_t{kFwdPanelColumns}));
  return fwd_sm90_of_depth(tile, product.products() == 3 ? 2 : 1, panels, device.max_shared_bytes, partial_bytes);
}

// The plan that a kernel goes by: the one it is launched with, or one that the compiler knows.
struct AnyPlan {
  static constexpr int kUnroll = 1;  // rounds of loops over panels, and of copies
  __device__ static const FwdSm90Plan& of(const FwdSm90Plan& plan) { return plan; }
};
// That of one product over a depth of so many panels: copies, addresses and waits then take a third of the
// instructions, and issue slots are what the forward has least of.
template <int kTile, int kPanels>
struct PlanOf {
  static constexpr int kUnroll = 2;
  __host__ __device__ static FwdSm90Plan of(const FwdSm90Plan& = {}) {
    constexpr FwdSm90Plan known = fwd_sm90_of_depth(kTile, 1, kPanels, kFwdSm90SharedBytes, sizeof(float));
    return known;
  }
};

// Pairs of bands, in the order in which CTAs take them, a range each.
inline int64_t fwd_sm90_pairs(bool symmetric, int row_bands, int column_bands) {
  return symmetric ? int64_t{column_bands} * (column_bands + 1) / 2 : int64_t{row_bands} * column_bands;
}

// Tiles of 256, of which fewer rows are read for the same products, unless the CTAs' shares of them are too unequal:
// then 128, which take a quarter of the time each, and what their rows cost more is taken for a quarter of it.
inline FwdSm90Plan cut_fwd_sm90(const Product& product, const SimclrDevice& device, int partial_bytes) {
  const auto busiest = [&](int64_t tile) {
    const int rows = static_cast<int>(ceil_div(product.pairing.rows, tile));
    const int columns = static_cast<int>(ceil_div(product.pairing.columns, tile));
    return ceil_div(fwd_sm90_pairs(product.symmetric(), rows, columns), device.multiprocessors) * tile * tile;
  };
  const FwdSm90Plan large = fwd_sm90_of_tile(product, device, 2 * kFwdShareColumns, partial_bytes);
  const bool even = 4 * busiest(2 * kFwdShareColumns) <= 5 * busiest(kFwdShareColumns);
  if (large.used && large.holds_columns && even) return large;
  return fwd_sm90_of_tile(product, device, kFwdShareColumns, partial_bytes);
}

}  // namespace simclr::cuda
