// What a row or a column contributes to the coefficients of the tensor-core backward, in units that fp16 holds.
//
// The coefficient of u_j in du_i is w_i exp(s_ij - lse_i) + w_j exp(s_ij - lse_j): a term of the row, and one of the
// column. A row's terms add up to w_i pull_i, with a pull of 1 where there are no positives. For the tensor cores all
// are scaled by 2^14 / max |w_i| pull_i, rounded to a power of two: that bounds coefficients by 2^15, and leaves
// those normal that are at least 4e-9 of the largest row's sum, however well aligned the pairs are.
#pragma once

#include "ntxent_math.cuh"
#include "ptx.cuh"
#include "reduce.cuh"

namespace simclr::cuda {

constexpr float kCoefficientScaleLog2 = 14.0f;  // two terms of 2^14 are 2^15; two of 2^15 overflow fp16's 65504
constexpr float kLeastPullLog2 = -90.0f;        // what a pull counts at least: sums of 2^14 / pull stay finite in fp32

// exp2(logit - shift) * weight. With the constant maximum the shift is the same for all and weight = w exp(1/t - lse);
// with the online maximum shift = lse and weight = w. Either way in units of the largest |w|, and times 2^scale_log2.
struct Term {
  float weight, shift;
};

struct TermScale {
  float constant_max;  // base 2
  float per_unit;      // 1 / the largest |w|
  float weight;        // of every row in this unit, where they have one weight
  float scale_log2;    // a whole number
  float of_result;     // what brings sums of coefficients times operands to du: the unit, result_unit, 2^-scale_log2
};

template <bool kOnline>
__device__ Term term_of(const Side<float>& side, const TermScale& scale, int i) {
  const float w = side.per_row ? side.weight(i) * scale.per_unit : scale.weight;
  const float lse = static_cast<float>(kLog2E) * side.lse(i);
  if constexpr (kOnline) return {w, lse - scale.scale_log2};
  return {w * ptx::exp2_approx(scale.constant_max - lse), scale.constant_max - scale.scale_log2};
}

// Fills *scale, in shared memory because its numbers are needed rarely and registers are dear. Every CTA reads the
// statistics of all columns for it, 8 bytes each, and the weights of the first `rows` rows: of all, where they are none
// of the columns, and then without positives, or of none. result_unit: 1/t over the operands' scale.
__device__ __forceinline__ void find_term_scale(const Side<float>& of_rows, int rows, const Side<float>& of_columns,
                                                int columns, float constant_max, float result_unit, TermScale* scale) {
  float weight = 0, largest = 0, most = 0;  // most: the largest |w| pull over the largest |w|
  if (of_columns.per_row) {
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
      const float w = fabsf(of_columns.weight(j));
      largest = fmaxf(largest, w);
      most = fmaxf(most, w * of_columns.pull(j));
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < rows; i += blockDim.x) {
      const float w = fabsf(of_rows.weight(i));
      largest = fmaxf(largest, w);
      most = fmaxf(most, w);  // a pull of 1
    }
    largest = fmaxf(block_max(largest), FLT_MIN);
    most = block_max(most) / largest;
  } else {
    weight = of_columns.weight(0);
    largest = fmaxf(fabsf(weight), FLT_MIN);
    float x = -INFINITY;  // one pull for all: that of the largest difference
    for (int j = threadIdx.x; j < columns; j += blockDim.x)
      x = fmaxf(x, of_columns.lse_or_lse_neg[j] - of_columns.s_pos[j]);
    most = row_pull(block_max(x), 0.0f);
  }
  if (threadIdx.x == 0) {
    const float range = fmaxf(ceilf(log2f(most)), kLeastPullLog2);
    const float scale_log2 = kCoefficientScaleLog2 - range;
    const float of_result = ldexpf(largest * result_unit, -static_cast<int>(scale_log2));
    *scale = {constant_max, 1.0f / largest, weight / largest, scale_log2, of_result};
  }
  __syncthreads();
}

}  // namespace simclr::cuda
