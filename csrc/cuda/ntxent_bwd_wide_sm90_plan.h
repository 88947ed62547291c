// How the backward of wide rows, 256 < D <= 1024, is cut into clusters and shared memory for Hopper's wgmma
// (ntxent_bwd_wide_sm90.cu).
#pragma once

#include <algorithm>
#include <cstdint>

#include "ntxent_bwd_sm90_plan.h"
#include "ntxent_problem.h"

namespace simclr::cuda {

// CTAs are made of warpgroups as ntxent_bwd_sm90.cu's are, one of which brings tiles, a warp for each stage; here 128
// rows are those of a cluster.
constexpr int kWideRowGroups = 2;
// Columns of u and du of a CTA, its slice. Of one product, du of 64 rows then takes 128 registers a thread; of three,
// where a tile's part of du is apart from it, 64 each. Twice as many would take all registers, half as many would have
// twice the logits exchanged. Either way a slice, of hi alone or of hi and lo, is four panels of the 128 bytes that the
// widest swizzle spans.
constexpr int wide_slice(int products) { return products == 3 ? 128 : 256; }
constexpr int kWidePanels = 4;
// Columns of S at a time: 32 registers a thread, and 16 for coefficients. 32 would read the rows from shared memory for
// half as many products, and be bound by that; 128 would take 96 registers of the 104 that du leaves.
constexpr int kWideTile = 64;
// Of tiles: one is multiplied with the coefficients, the next with the rows, a third is on its way. Neither a fourth
// fits nor, in clusters of eight, the third.
constexpr int wide_stages(int rounds) { return rounds <= 2 ? 3 : 2; }
constexpr int kWideRowsBytes = kWidePanels * kSm90BlockRows * kSm90PanelRowBytes;
constexpr int kWideStageBytes = kWidePanels * kWideTile * kSm90PanelRowBytes;
// The logits of 64 rows and a tile, from another CTA.
constexpr int kWideExchangeBytes = 64 * kWideTile * 4;
constexpr int kWideMaxColumns = 1024;

// Exchanges after which each of the 2, 4 or 8 CTAs of a cluster has the sum over the slices.
constexpr int wide_rounds(int64_t d, int products) {
  return d <= 2 * wide_slice(products) ? 1 : d <= 4 * wide_slice(products) ? 2 : 3;
}
constexpr int wide_shared_bytes(int rounds) {
  return kWideRowsBytes + wide_stages(rounds) * (kWideStageBytes + 2 * kWideTile * 4) +
         rounds * kWideRowGroups * kWideExchangeBytes;
}

// Clusters that the device has room for at once. The CTAs of one share a GPC, of whose 16 or 18 multiprocessors pairs
// fill all, but clusters of four or eight only 16. Of an H100's 132, clusters of four would be counted as 33 otherwise,
// and the 33rd would wait for the other 32.
inline int wide_places(int multiprocessors, int rounds) {
  const int clusters = rounds == 1 ? multiprocessors / 2 : multiprocessors / 16 * (16 >> rounds);
  return std::max(clusters, 1);
}

inline bool wide_takes(const BwdProblem& problem) {
  return problem.d > wide_slice(problem.product.products()) && problem.d <= kWideMaxColumns;
}

inline Sm90Cut cut_wide(const BwdProblem& problem) {
  const Pairing<int>& pairing = problem.product.pairing;
  const int rounds = wide_rounds(problem.d, problem.product.products());
  Sm90Cut cut = {};
  cut.block_rows = kSm90BlockRows;
  cut.row_blocks = static_cast<int>(ceil_div(pairing.rows, kSm90BlockRows));
  cut.tile_columns = kWideTile;
  cut.stages = wide_stages(rounds);
  cut.shared_bytes = wide_shared_bytes(rounds);
  cut.tiles = static_cast<int>(ceil_div(pairing.columns, kWideTile));
  cut.splits = split_sm90(cut.row_blocks, cut.tiles, wide_places(problem.device.multiprocessors, rounds));
  return cut;
}

}  // namespace simclr::cuda
