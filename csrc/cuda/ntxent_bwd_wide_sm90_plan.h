// How the backward of wide rows, 256 < D <= 1024, is cut into clusters and shared memory for Hopper's wgmma
// (ntxent_bwd_wide_sm90.cu).
#pragma once

#include <algorithm>
#include <cstdint>

#include "ntxent_bwd_sm90_plan.h"
#include "ntxent_problem.h"

namespace simclr::cuda {

// Rows of a cluster: two warpgroups of 64. With one the tensor cores would idle whenever it waits; three would leave
// 168 registers a thread, fewer than du, S and the coefficients take.
constexpr int kWideRowGroups = 2;
constexpr int kWideRows = 64 * kWideRowGroups;
constexpr int kWideConsumers = 128 * kWideRowGroups;
// One more brings tiles, a warp for each stage. All start with 168 registers a thread; 232 for each of the others and
// 40 for its own are 504 of the 512 that a multiprocessor has for three threads.
constexpr int kWideProducers = 128;
constexpr int kWideThreads = kWideConsumers + kWideProducers;
constexpr int kWideConsumerRegisters = 232;
constexpr int kWideProducerRegisters = 40;
// Columns of u and du of a CTA, its slice. Of one product, du of 64 rows then takes 128 registers a thread; of three,
// where a tile's part of du is apart from it, 64 each. Twice as many would take all registers, half as many would have
// twice the logits exchanged. Either way a slice, of hi alone or of hi and lo, is four panels of the 128 bytes that the
// widest swizzle spans.
constexpr int wide_slice(int products) { return products == 3 ? 128 : 256; }
constexpr int kWidePanels = 4;
constexpr int kWidePanelRowBytes = 128;
constexpr int kWidePanelColumns = kWidePanelRowBytes / 2;
// Columns of S at a time: 32 registers a thread, and 16 for coefficients. 32 would read the rows from shared memory for
// half as many products, and be bound by that; 128 would take 96 registers of the 104 that du leaves.
constexpr int kWideTile = 64;
// Of tiles: one is multiplied with the coefficients, the next with the rows, a third is on its way. Neither a fourth
// fits nor, in clusters of eight, the third.
constexpr int wide_stages(int rounds) { return rounds <= 2 ? 3 : 2; }
constexpr int kWideRowsBytes = kWidePanels * kWideRows * kWidePanelRowBytes;
constexpr int kWideStageBytes = kWidePanels * kWideTile * kWidePanelRowBytes;
// The logits of 64 rows and a tile, from another CTA.
constexpr int kWideExchangeBytes = 64 * kWideTile * 4;
// Partial sums of du per row: each is written, and read again by the second launch, in full fp32.
constexpr int kWideMaxSplits = 8;
constexpr int kWideMaxColumns = 1024;

// Exchanges after which each of the 2, 4 or 8 CTAs of a cluster has the sum over the slices.
constexpr int wide_rounds(int64_t d, int products) {
  return d <= 2 * wide_slice(products) ? 1 : d <= 4 * wide_slice(products) ? 2 : 3;
}
constexpr int wide_shared_bytes(int rounds) {
  return kWideRowsBytes + wide_stages(rounds) * (kWideStageBytes + 2 * kWideTile * 4) +
         rounds * kWideRowGroups * kWideExchangeBytes;
}

inline bool wide_takes(const BwdProblem& problem) {
  return problem.d > wide_slice(problem.product.products()) && problem.d <= kWideMaxColumns;
}

inline Sm90Cut cut_wide(const BwdProblem& problem) {
  const Pairing<int>& pairing = problem.product.pairing;
  const int rounds = wide_rounds(problem.d, problem.product.products());
  Sm90Cut cut = {};
  cut.block_rows = kWideRows;
  cut.row_blocks = static_cast<int>(ceil_div(pairing.rows, kWideRows));
  cut.tile_columns = kWideTile;
  cut.stages = wide_stages(rounds);
  cut.shared_bytes = wide_shared_bytes(rounds);
  // One CTA per multiprocessor.
  cut.tiles = static_cast<int>(ceil_div(pairing.columns, kWideTile));
  const int wanted = problem.device.multiprocessors / (cut.row_blocks << rounds);
  const int splits = std::clamp(wanted, 1, std::min(cut.tiles, kWideMaxSplits));
  cut.split_tiles = static_cast<int>(ceil_div(cut.tiles, splits));
  cut.splits = static_cast<int>(ceil_div(cut.tiles, cut.split_tiles));
  return cut;
}

}  // namespace simclr::cuda
