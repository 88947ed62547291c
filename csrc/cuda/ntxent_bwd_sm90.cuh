// What Hopper's backward does with the accumulators of a warpgroup: products u.u become coefficients of du.
//
// x[n][i] of a lane (group, quad) of warp w belongs to row 16 w + group + 8 (i / 2) of the warpgroup's 64 and to column
// 8 n + 2 quad + i % 2 of the tile: wgmma.cuh. Coefficients are described in ntxent_bwd_terms.cuh.
#pragma once

#include "ntxent_bwd_terms.cuh"
#include "ntxent_tiles.cuh"

#ifdef __CUDACC__

namespace simclr::cuda {

constexpr int kWarpgroupThreads = 128;
constexpr int kWarpgroupRows = 64;
constexpr float kExcludedProduct = -1e30f;  // u.u of an excluded element: its exponential is 0, and 0 times it too
// Fragments whose terms are read at once. With 16 they would take up to 64 registers, which S, du and the coefficients
// leave no room for; with four, a warp waits for shared memory twice as often.
constexpr int kTermFragments = 8;

// Registers per thread of the calling warpgroup from here on: more, which another warpgroup has given back, or fewer.
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers_back() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// Counts the calling warps in at barrier `id` (1-15) without waiting; ptx::named_barrier_sync waits.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// threadIdx.x and blockIdx.x, read again wherever they are wanted: kept in registers over the walk, they would spill.
__device__ __forceinline__ int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(index));
  return index;
}
__device__ __forceinline__ int block_index() {
  int index;
  asm volatile("mov.u32 %0, %%ctaid.x;\n" : "=r"(index));
  return index;
}

// The descriptor of what lies `bytes`, a multiple of 16, behind what another describes. The address is in its lower
// half, which does not overflow; sums of 64 bits would be kept in registers from before the walk, and spill.
__device__ __forceinline__ uint64_t behind(uint64_t descriptor, int bytes) {
  return descriptor >> 32 << 32 | (static_cast<uint32_t>(descriptor) + bytes / 16);
}

// Excludes the pairs that are no negatives; first_row is that of the warp.
template <int kFragments>
__device__ __forceinline__ void exclude_pairs(float (&x)[kFragments][4], const Pairing<int>& pairing, int first_row,
                                              int first_column) {
  const int lane = thread_index() % 32, group = lane / 4, quad = lane % 4;
#pragma unroll
  for (int n = 0; n < kFragments; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + 8 * (i / 2) + group, column = first_column + 8 * n + 2 * quad + i % 2;
      if (!pairing.is_negative(row, column)) x[n][i] = kExcludedProduct;
    }
  }
}

// x_ij -> w_i exp(s_ij - lse_i) + w_j exp(s_ij - lse_j), in place, with the terms of the tile's columns in shared memory.
// own[h] gains sum_j exp2(logit - shift_i) [weight_i] x_ij of row h, wanted or not: a multiply-add each beside products
// that take longer, where a second copy of all this without it spills.
template <bool kOnline, int kFragments>
__device__ __forceinline__ void make_coefficients(float (&x)[kFragments][4], float scale, const Term (&row)[2],
                                                  const float* weights, const float* shifts, float (&own)[2]) {
  const int quad = thread_index() % 4;
#pragma unroll
  for (int n = 0; n < kFragments; ++n) {
    if (n % kTermFragments == 0) __syncwarp();  // reads are not moved to before it
    const float2 weight = *reinterpret_cast<const float2*>(weights + 8 * n + 2 * quad);
    const float2 shift = kOnline ? *reinterpret_cast<const float2*>(shifts + 8 * n + 2 * quad) : float2{};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Term& own_row = row[i / 2];
      const float product = x[n][i], column_weight = i % 2 ? weight.y : weight.x;
      float of_row = ptx::exp2_approx(fmaf(product, scale, -own_row.shift));
      if constexpr (kOnline) {
        of_row *= own_row.weight;
        const float of_column = ptx::exp2_approx(fmaf(product, scale, -(i % 2 ? shift.y : shift.x)));
        x[n][i] = fmaf(of_column, column_weight, of_row);
      } else {
        x[n][i] = of_row * (own_row.weight + column_weight);
      }
      own[i / 2] = fmaf(of_row, product, own[i / 2]);
    }
  }
}

// Coefficients of 16 columns, two fragments each, as A operands: packed in pairs, accumulators are as they stand. Of two
// parts the second holds what fp16 rounds off.
template <int kParts, int kFragments>
__device__ __forceinline__ void pack_coefficients(uint32_t (&c)[kParts][kFragments / 2][4],
                                                  const float (&x)[kFragments][4]) {
#pragma unroll
  for (int k = 0; k < kFragments / 2; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float low = x[2 * k + i / 2][2 * (i % 2)], high = x[2 * k + i / 2][2 * (i % 2) + 1];
      const __half2 hi = __floats2half2_rn(low, high);
      c[0][k][i] = bits_of(hi);
      if constexpr (kParts == 2) {
        const float2 rounded = __half22float2(hi);
        c[1][k][i] = bits_of(__floats2half2_rn(low - rounded.x, high - rounded.y));
      }
    }
  }
}

}  // namespace simclr::cuda

#endif
