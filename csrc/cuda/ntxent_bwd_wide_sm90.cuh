// What the wide backward on Hopper (ntxent_bwd_wide_sm90.cu) keeps in shared memory: the panels of a CTA's slice, and
// the logits that the CTAs of a cluster exchange.
#pragma once

#include "cluster.cuh"
#include "ntxent_bwd_sm90.cuh"
#include "ntxent_bwd_sm90_tiles.cuh"
#include "ntxent_bwd_wide_sm90_plan.h"

#ifdef __CUDACC__

namespace simclr::cuda {

template <int kProducts_, int kRounds_>
struct WideShape {
  static constexpr int kProducts = kProducts_, kRounds = kRounds_, kStages = wide_stages(kRounds);
  static constexpr int kParts = kProducts == 3 ? 2 : 1;
  static constexpr int kSlice = wide_slice(kProducts);
  static constexpr int kPartPanels = kWidePanels / kParts;
  using Coefficients = uint32_t[kParts][kWideTile / 16][4];
  using Gradient = float[kSlice / 8][4];
};
using WideLogits = float[kWideTile / 8][4];

// Shared memory of a CTA.
template <class Shape>
struct WideShared {
  unsigned char* rows;    // [parts][panels][128][128 bytes]
  unsigned char* stages;  // [stages][parts][panels][tile columns][128 bytes]
  float4* exchanged;      // [rounds][row groups][fragments][threads of a warpgroup]
  float* weights;         // [stages][tile columns]
  float* shifts;          // [stages][tile columns]
  uint64_t* full;         // [stages]: a producer's lanes have brought a tile
  uint64_t* empty;        // [stages]: the consumers' warps are done with it
  uint64_t* received;     // [rounds][row groups]: another CTA's logits are in `exchanged`
  uint64_t* taken;        // [rounds][row groups]: the other CTA's warps have read what was sent to it

  static constexpr int kStages = Shape::kStages, kExchanges = Shape::kRounds * kWideRowGroups;
  static constexpr int kBarriers = 2 * kStages + 2 * kExchanges;

  __device__ WideShared(unsigned char* base, uint64_t* barriers) {
    rows = base;
    stages = rows + kWideRowsBytes;
    exchanged = reinterpret_cast<float4*>(stages + kStages * kWideStageBytes);
    weights = reinterpret_cast<float*>(exchanged) + kExchanges * kWideExchangeBytes / sizeof(float);
    shifts = weights + kStages * kWideTile;
    full = barriers;
    empty = full + kStages;
    received = empty + kStages;
    taken = received + kExchanges;
  }
};

// Starts copying rows [row, row + kRows) of the CTA's slice, from byte `byte` of a part on, into panels, by threads
// 0 .. kThreads - 1.
template <class Shape, int kRows, int kThreads>
__device__ void copy_slice(unsigned char* panels, const RowMatrix& matrix, int byte, int row, int thread) {
  constexpr int kChunks = kWidePanels * kSm90PanelRowBytes / kChunkBytes, kPartChunks = kChunks / Shape::kParts;
  constexpr int kRowsAtOnce = kThreads / kChunks;
  const int chunk = thread % kChunks, part = chunk / kPartChunks, first = thread / kChunks;
  const int64_t column = byte + chunk % kPartChunks * kChunkBytes;
  const int rows_inside = column < matrix.part_bytes ? matrix.rows - row : 0;
  unsigned char* panel = panels + chunk / 8 * kRows * kSm90PanelRowBytes;
  const unsigned char* source = matrix.data + (row + first) * matrix.pitch + part * matrix.part_bytes + column;
#pragma unroll 8
  for (int r = first; r < kRows; r += kRowsAtOnce, source += kRowsAtOnce * matrix.pitch) {
    ptx::cp_async<kChunkBytes>(panel + chunk_offset(r, chunk % 8, kSm90PanelRowBytes), source,
                               r < rows_inside ? kChunkBytes : 0);
  }
}

// The exchange of one warpgroup with the same one of other CTAs: of round k with the CTA whose rank differs in bit k,
// so that all add up the same numbers in the same pairs, and hold the same sums.
template <class Shape>
struct WideExchange {
  uint32_t exchanged;  // this thread's of the first round
  uint32_t received;   // `taken` lies behind it
  uint32_t rank;
  int parity;

  static constexpr int kRounds = Shape::kRounds;
  static constexpr int kRoundBytes = kWideRowGroups * kWideExchangeBytes;
  static constexpr int kRoundBarriers = kWideRowGroups * static_cast<int>(sizeof(uint64_t));
  static constexpr int kToTaken = kRounds * kRoundBarriers;
  static constexpr int kNext = kWarpgroupThreads * static_cast<int>(sizeof(float4));  // from fragment to fragment

  __device__ WideExchange(const WideShared<Shape>& shared, int row_group, uint32_t slice) {
    const int thread = threadIdx.x % kWarpgroupThreads;
    exchanged = ptx::shared_address(shared.exchanged + row_group * (kWideTile / 8) * kWarpgroupThreads + thread);
    received = ptx::shared_address(shared.received + row_group);
    rank = slice;
    parity = 0;
  }

  // Sends the sum so far to the other CTA of a round, once that has read what was sent to it a tile ago.
  __device__ __forceinline__ void send(const WideLogits& s, int round) const {
    const uint32_t here = exchanged + round * kRoundBytes, arrived = received + round * kRoundBarriers;
    const uint32_t other = rank ^ 1u << round;
    if (threadIdx.x % kWarpgroupThreads == 0) cluster::arrive_and_expect(arrived, kWideExchangeBytes);
    cluster::wait(arrived + kToTaken, parity ^ 1);
    const uint32_t there = cluster::address_in(here, other), arrived_there = cluster::address_in(arrived, other);
#pragma unroll
    for (int n = 0; n < kWideTile / 8; ++n) cluster::store_async(there + n * kNext, s[n], arrived_there);
  }
  // Adds what the other CTA of the round has sent.
  __device__ __forceinline__ void add_received(WideLogits& s, int round) const {
    const uint32_t here = exchanged + round * kRoundBytes, arrived = received + round * kRoundBarriers;
    cluster::wait(arrived, parity);
#pragma unroll
    for (int n = 0; n < kWideTile / 8; ++n) {
      const float4 share = cluster::load(here + n * kNext);
      s[n][0] += share.x, s[n][1] += share.y, s[n][2] += share.z, s[n][3] += share.w;
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) cluster::arrive_at(cluster::address_in(arrived + kToTaken, rank ^ 1u << round));
  }
};

}  // namespace simclr::cuda

#endif
