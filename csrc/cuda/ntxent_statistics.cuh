// Partial log-sum-exps of a 128 x 128 tile of logits, along rows and along columns.
//
// A warp holds a 64 x 64 part as mma accumulators: x[m][n][2 h + c] is row 16 m + 8 h + group, column 8 n + 2 quad + c.
// A partial is exp2's argument relative to a maximum: with the constant maximum only the sum is kept, with the online
// maximum both are. log_sum makes the log-sum-exp of it; constant_max is 1/t, and per_unit what one unit of the base-2
// logits is worth, 1/t over the rounded scale: ln 2 instead would leave the scale's rounding, times the logit, in it.
#pragma once

#include "ntxent_math.cuh"
#include "ptx.cuh"

namespace simclr::cuda {

using WarpTile = float[4][8][4];

// Adds v[0 .. kCount) up over kCount / 2 lanes, those that differ in the lane bits kStride, kStride / 2, ...
// (log2(kCount) - 1 of them), and leaves each lane with two of the totals: where these bits, highest first, spell i,
// v[0] and v[1] become totals 2 i and 2 i + 1. Every exchange halves the values, so there are kCount - 2 shuffles.
template <int kCount, int kStride, int kSize>
__device__ __forceinline__ void sum_and_scatter(float (&v)[kSize]) {
  if constexpr (kCount > 2) {
    const bool upper = (threadIdx.x & kStride) != 0;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const float kept = upper ? v[kCount / 2 + i] : v[i];
      const float sent = upper ? v[i] : v[kCount / 2 + i];
      v[i] = kept + __shfl_xor_sync(0xffffffffu, sent, kStride);
    }
    sum_and_scatter<kCount / 2, kStride / 2>(v);
  }
}

// sum of exp2(x - constant_max).
struct ConstantMax {
  using Partial = float;

  __device__ static Partial combine(Partial a, Partial b) { return a + b; }
  template <class W>
  __device__ static W log_sum(Partial p, W constant_max, W per_unit) {
    return constant_max + log2(static_cast<W>(p)) * per_unit;
  }

  // Partials of the warp's 64 rows and 64 columns; `scale` turns u.u into base-2 logits.
  __device__ static void of_tile(const WarpTile& x, float scale, float constant_max, Partial* of_row,
                                 Partial* of_column) {
    const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    float row[8] = {}, column[16] = {};
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float e = ptx::exp2_approx(fmaf(x[m][n][i], scale, -constant_max));
          row[2 * m + i / 2] += e;
          column[2 * n + i % 2] += e;
        }
      }
    }
    sum_and_scatter<8, 2>(row);
    sum_and_scatter<16, 16>(column);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      of_row[16 * quad + 8 * i + group] = row[i];
      of_column[8 * group + 2 * quad + i] = column[i];
    }
  }
};

// (m, sum of exp2(x - m)) with m the maximum met so far; -inf where every element is masked.
struct OnlineMax {
  using Partial = float2;

  // What to subtract where `max` is the maximum: -inf - -inf would be NaN.
  __device__ static float shift(float max) { return max == -INFINITY ? 0.0f : max; }

  __device__ static Partial combine(Partial a, Partial b) {
    const float max = fmaxf(a.x, b.x);
    return {max, a.y * ptx::exp2_approx(a.x - shift(max)) + b.y * ptx::exp2_approx(b.x - shift(max))};
  }
  template <class W>
  __device__ static W log_sum(Partial p, W, W per_unit) {
    return static_cast<W>(p.x) * per_unit + log(static_cast<W>(p.y));
  }
  template <class W>
  __device__ static W max(Partial p, W per_unit) {
    return std::isnan(p.y) ? static_cast<W>(p.y) : static_cast<W>(p.x) * per_unit;  // fmaxf passed over NaN
  }

  __device__ static void of_tile(const WarpTile& x, float scale, float, Partial* of_row, Partial* of_column) {
    const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    float row_max[8], column_max[16];
#pragma unroll
    for (int i = 0; i < 8; ++i) row_max[i] = -INFINITY;
#pragma unroll
    for (int i = 0; i < 16; ++i) column_max[i] = -INFINITY;
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          row_max[2 * m + i / 2] = fmaxf(row_max[2 * m + i / 2], x[m][n][i]);
          column_max[2 * n + i % 2] = fmaxf(column_max[2 * n + i % 2], x[m][n][i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      for (int lanes = 1; lanes <= 2; lanes *= 2)
        row_max[i] = fmaxf(row_max[i], __shfl_xor_sync(0xffffffffu, row_max[i], lanes));
      row_max[i] *= scale;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      for (int lanes = 4; lanes <= 16; lanes *= 2)
        column_max[i] = fmaxf(column_max[i], __shfl_xor_sync(0xffffffffu, column_max[i], lanes));
      column_max[i] *= scale;
    }
    float row[8] = {}, column[16] = {};
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          row[2 * m + i / 2] += ptx::exp2_approx(fmaf(x[m][n][i], scale, -shift(row_max[2 * m + i / 2])));
          column[2 * n + i % 2] += ptx::exp2_approx(fmaf(x[m][n][i], scale, -shift(column_max[2 * n + i % 2])));
        }
      }
    }
    sum_and_scatter<8, 2>(row);
    sum_and_scatter<16, 16>(column);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Lane (group, quad) holds the sums 2 quad + i of the rows and 2 group + i of the columns; its maxima are all
      // there.
      float own_row_max = row_max[i], own_column_max = column_max[i];
#pragma unroll
      for (int k = 1; k < 4; ++k) own_row_max = quad == k ? row_max[2 * k + i] : own_row_max;
#pragma unroll
      for (int k = 1; k < 8; ++k) own_column_max = group == k ? column_max[2 * k + i] : own_column_max;
      of_row[16 * quad + 8 * i + group] = {own_row_max, row[i]};
      of_column[8 * group + 2 * quad + i] = {own_column_max, column[i]};
    }
  }
};

}  // namespace simclr::cuda
