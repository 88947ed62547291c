// Into how many parts the backward's walk over tiles of columns is cut, by the busiest multiprocessor.
//
// A part is a CTA, or a cluster, of its own for every block of rows, and makes a partial du of M x D in fp32, which the
// second launch reads and adds up. The number depends on shapes and the device only.
#pragma once

#include <algorithm>
#include <cstdint>

namespace simclr::cuda {

// Partial sums of du per row: each is written, and read again by the second launch, in full fp32.
constexpr int kBwdMaxSplits = 8;

struct Splits {
  int tiles, count;  // column tiles per part, and parts
};

// The fewest parts that keep the busiest of `places`, each of which has one CTA or cluster at a time, within 1 / margin
// of the shortest time. Times are in tiles, of which a CTA counts `beside` more, for its start and its result. Without
// a margin large batches, of whose many waves another number always saves a little, would have a workspace several
// times as large for a thousandth of the time.
inline Splits backward_splits(int row_blocks, int tiles, int places, int beside, int margin) {
  const auto busiest = [&](int splits) {
    const int64_t rounds = (int64_t{row_blocks} * splits + places - 1) / places;
    return rounds * ((tiles + splits - 1) / splits + beside);
  };
  const int most = std::min(tiles, kBwdMaxSplits);
  int64_t shortest = busiest(1);
  for (int splits = 2; splits <= most; ++splits) shortest = std::min(shortest, busiest(splits));
  int splits = 1;
  while (margin * busiest(splits) > (margin + 1) * shortest) ++splits;
  const int split_tiles = (tiles + splits - 1) / splits;
  return {split_tiles, (tiles + split_tiles - 1) / split_tiles};
}

}  // namespace simclr::cuda
