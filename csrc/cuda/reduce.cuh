// Sums in a fixed order: over a warp, over a block, and over a grid whose last block adds up the others' sums.
#pragma once

#include "launch.cuh"

namespace simclr::cuda {

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, value, offset);
    value = value > other ? value : other;
  }
  return value;
}

// The sum over the block's threads (whole warps), in thread 0.
template <class T>
__device__ T block_sum(T value) {
  __shared__ T of_warp[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  value = warp_sum(value);
  if (lane == 0) of_warp[warp] = value;
  __syncthreads();
  T total = T(0);
  if (warp == 0) total = warp_sum(lane < warps ? of_warp[lane] : T(0));
  __syncthreads();  // of_warp may be written again
  return total;
}

// The maximum over the block's threads (whole warps), in every thread.
template <class T>
__device__ T block_max(T value) {
  __shared__ T of_warp[32];
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  value = warp_max(value);
  if (lane == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  value = warp_max(of_warp[lane < warps ? lane : 0]);
  __syncthreads();  // of_warp may be written again
  return value;
}

// Where grid_sum keeps the blocks' sums. `finished` must be 0 before the first block calls it.
template <class T>
struct GridSum {
  T* of_block;         // [gridDim.x]
  unsigned* finished;  // []
};

// Sums `value` over the grid: returns true in thread 0 of the block that finishes last, with the sum in *total. Which
// block that is does not change the sum: it adds the blocks' sums in the order of their indices.
template <class T>
__device__ bool grid_sum(T value, const GridSum<T>& sums, T* total) {
  __shared__ bool is_last;
  const T own = block_sum(value);
  if (threadIdx.x == 0) {
    sums.of_block[blockIdx.x] = own;
    __threadfence();
    is_last = atomicAdd(sums.finished, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return false;
  __threadfence();
  T mine = T(0);
  for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x) mine += sums.of_block[block];
  *total = block_sum(mine);
  return threadIdx.x == 0;
}

}  // namespace simclr::cuda
