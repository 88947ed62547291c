// Partial log-sum-exps of logits in a warpgroup's accumulators, along rows and along columns.
//
// A warp holds 16 x 128 logits: x[n][2 h + c] is row 8 h + group, column 8 n + 2 quad + c. Rows are summed at once,
// over the four lanes of a group. Columns would take 28 exchanges for every 64 logits of a lane; with the constant
// maximum they are kept as sums per lane until write_columns(). The online maximum has no room for that, and writes
// them at once.
#pragma once

#include "ntxent_statistics.cuh"

namespace simclr::cuda {

using WarpRows = float[16][4];

// The sums of both rows of a lane, over its quad; all four lanes get them.
__device__ __forceinline__ void sum_over_quad(float (&row)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    row[h] += __shfl_xor_sync(0xffffffffu, row[h], 1);
    row[h] += __shfl_xor_sync(0xffffffffu, row[h], 2);
  }
}

template <class Statistics>
struct Strip;

template <>
struct Strip<ConstantMax> {
  static constexpr bool kKeepsColumns = true;
  float column[2][16] = {};  // [half of the columns][2 (n mod 8) + c]

  // Makes the arguments of exp2 of sums of products.
  __device__ static void take(WarpRows& x, float scale, float constant_max) {
#pragma unroll
    for (int k = 0; k < 64; ++k) x[k / 4][k % 4] = fmaf(x[k / 4][k % 4], scale, -constant_max);
  }
  // Adds the columns of x to the strip's; row[h] is the partial of row 8 h + group.
  __device__ void add(const WarpRows& x, float, float (&row)[2], float*) {
    row[0] = row[1] = 0;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float e = ptx::exp2_approx(x[n][i]);
        row[i / 2] += e;
        column[n / 8][2 * (n % 8) + i % 2] += e;
      }
    }
    sum_over_quad(row);
  }
  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < 32; ++i) column[i / 16][i % 16] = 0;
  }
  // The columns' sums over the warp's rows of all that was added.
  __device__ void write_columns(float* of_column) {
    const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum_and_scatter<16, 16>(column[half]);
#pragma unroll
      for (int i = 0; i < 2; ++i) of_column[64 * half + 8 * group + 2 * quad + i] = column[half][i];
    }
  }
};

template <>
struct Strip<OnlineMax> {
  static constexpr bool kKeepsColumns = false;

  // The maxima are found first.
  __device__ static void take(WarpRows&, float, float) {}
  __device__ void add(const WarpRows& x, float scale, float2 (&row)[2], float2* of_column) {
    const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {};
#pragma unroll
    for (int n = 0; n < 16; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) row_max[i / 2] = fmaxf(row_max[i / 2], x[n][i]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      for (int lanes = 1; lanes <= 2; lanes *= 2)
        row_max[h] = fmaxf(row_max[h], __shfl_xor_sync(0xffffffffu, row_max[h], lanes));
      row_max[h] *= scale;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float max[16], sum[16];
#pragma unroll
      for (int k = 0; k < 16; ++k) {
        const float(&block)[4] = x[8 * half + k / 2];
        max[k] = fmaxf(block[k % 2], block[2 + k % 2]);
        for (int lanes = 4; lanes <= 16; lanes *= 2)
          max[k] = fmaxf(max[k], __shfl_xor_sync(0xffffffffu, max[k], lanes));
        max[k] *= scale;
        sum[k] = 0;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          row_sum[h] += ptx::exp2_approx(fmaf(block[2 * h + k % 2], scale, -OnlineMax::shift(row_max[h])));
          sum[k] += ptx::exp2_approx(fmaf(block[2 * h + k % 2], scale, -OnlineMax::shift(max[k])));
        }
      }
      sum_and_scatter<16, 16>(sum);
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // lane (group, quad) has the sums of columns 8 group + 2 quad + i
        float own_max = max[i];
#pragma unroll
        for (int k = 1; k < 8; ++k) own_max = group == k ? max[2 * k + i] : own_max;
        of_column[64 * half + 8 * group + 2 * quad + i] = {own_max, sum[i]};
      }
    }
    sum_over_quad(row_sum);
    row[0] = {row_max[0], row_sum[0]};
    row[1] = {row_max[1], row_sum[1]};
  }
  __device__ void clear() {}
  __device__ void write_columns(float2*) {}
};

}  // namespace simclr::cuda
