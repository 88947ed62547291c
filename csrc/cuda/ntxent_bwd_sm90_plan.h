// How the backward is cut into CTAs and shared memory for Hopper's wgmma (ntxent_bwd_sm90.cu).
#pragma once

#include <cstdint>

#include "ntxent_problem.h"
#include "ntxent_splits.h"

namespace simclr::cuda {

// Two warpgroups of 64 rows. With one the tensor cores would idle whenever it waits; a third would leave 168 registers a
// thread, fewer than du, S and the coefficients take.
constexpr int kSm90BlockRows = 128;
constexpr int kSm90Consumers = 256;
// One more brings the tiles. All start with 168 registers a thread, 504 for one thread of each warpgroup, of which this one
// keeps 40 and the two others get 232 each; 240 for them would leave 24, too few for two panels' copies and a term.
constexpr int kSm90Producers = 128;
constexpr int kSm90Threads = kSm90Consumers + kSm90Producers;
constexpr int kSm90ConsumerRegisters = 232;
constexpr int kSm90ProducerRegisters = 40;
// Columns of u in a panel: the 128 bytes that the widest swizzle spans.
constexpr int kSm90Panel = 64;
constexpr int kSm90PanelRowBytes = 2 * kSm90Panel;
// What a CTA spends besides its tiles, in tiles: its rows, the unit of coefficients, its partial du and that part of the
// second launch. Between 4 and 8 the plans of M = 1024 to 65536 stay the same but for a split.
constexpr int kSm90BesideTiles = 6;
// The part of the shortest time that fewer partial du may take longer, a 16th: only for memory, since what adds them up is
// in those tiles. With an eighth M = 2048 would run on three quarters of an H100's multiprocessors.
constexpr int kSm90SplitMargin = 16;

// Columns of S at a time. They are also the depth of the second product, in steps of 16. Accumulators and coefficients
// take, of 232 registers a thread,
//   one product, D <= 128: S 64, coefficients 32, du 64; with 192 columns they would be 208, and addresses and terms spill
//   one product, D <= 256: S 32, coefficients 16, du 128; 128 columns would take 224
//   three, D <= 128: S 32, coefficients 2 x 16, du 64, a tile's part of it 64; 128 columns would take 256
constexpr int sm90_tile_columns(int panels, int products) { return products == 1 && panels <= 2 ? 128 : 64; }

// Of 64 columns of D, in whose numbers the kernel exists.
constexpr int sm90_panels(int64_t d) { return d <= 64 ? 1 : d <= 128 ? 2 : 4; }

struct Sm90Cut {
  int block_rows, row_blocks, tile_columns, stages, shared_bytes;
  int tiles;
  Splits splits;
};

// Whether the kernel takes a problem: du, a tile's part of it and S of 256 columns of split operands do not fit.
inline bool sm90_takes(int64_t d, int products) { return d <= (products == 3 ? 128 : 256); }

// One is multiplied with the coefficients, the next with the rows, and two are on their way. With three a tile would have
// to land within the time of one. The largest four and a CTA's rows take 192 KiB of 227; a fifth would leave 3 for terms.
constexpr int kSm90Stages = 4;

// `places`: CTAs, or clusters, that the device has room for at once.
inline Splits split_sm90(int row_blocks, int tiles, int places) {
  return backward_splits(row_blocks, tiles, places, kSm90BesideTiles, kSm90SplitMargin);
}

inline Sm90Cut cut_sm90(const BwdProblem& problem) {
  const Pairing<int>& pairing = problem.product.pairing;
  const int products = problem.product.products(), parts = problem.product.multiplied_parts(),
            panels = sm90_panels(problem.d);
  const int row_bytes = parts * panels * kSm90PanelRowBytes;
  Sm90Cut cut = {};
  cut.block_rows = kSm90BlockRows;
  cut.tile_columns = sm90_tile_columns(panels, products);
  cut.stages = kSm90Stages;
  const int terms_bytes = 2 * static_cast<int>(sizeof(float)), barriers_bytes = 2 * static_cast<int>(sizeof(uint64_t));
  cut.shared_bytes =
      cut.block_rows * row_bytes + cut.stages * (cut.tile_columns * (row_bytes + terms_bytes) + barriers_bytes);

  cut.row_blocks = static_cast<int>(ceil_div(pairing.rows, cut.block_rows));
  cut.tiles = static_cast<int>(ceil_div(pairing.columns, cut.tile_columns));
  cut.splits = split_sm90(cut.row_blocks, cut.tiles, problem.device.multiprocessors);
  return cut;
}

}  // namespace simclr::cuda
