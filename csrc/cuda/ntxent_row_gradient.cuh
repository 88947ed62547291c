// The end of the backward for one row, which a warp takes: partial sums of du, the positive's term and the Jacobian of
// the normalisation become dz.
#pragma once

#include <cstdint>

#include "reduce.cuh"

namespace simclr::cuda {

// Whether the operands of z of this type are fp16: rows are then taken from z, times inv_norm.
template <class T>
constexpr bool kRoundsRows = sizeof(T) == 2;

// x times unit is the unit row u_i, x_positive times positive_unit the row u_p. The partial sums of du_i are `count`
// rows of `parts`, each next_part elements behind the other; the first is overwritten by du_i.
template <class T, class S>
struct RowGradient {
  const T *x, *x_positive;
  S unit, positive_unit;
  S pull;  // (w_i pull_i + w_p pull_p) / t
  S inv_norm, clamped_inv_norm;
  S* parts;
  int64_t next_part;
  int count;

  // Writes dz_i [d] and returns the lane's part of u_i . du_i. Summed over the warp for clamped rows, too, it would make
  // ptxas spill for sm_90.
  template <bool kPositives, class O>
  __device__ S finish(int64_t d, O* dz) const {
    const int lane = threadIdx.x % 32;
    // 1. du_i = (sum of the parts) - pull u_p, and along = u_i . du_i.
    S along = 0;
    for (int64_t k = lane; k < d; k += 32) {
      S sum = 0;
      if constexpr (kPositives) sum = -pull * (static_cast<S>(x_positive[k]) * positive_unit);
      const S* part = parts + k;
      for (int i = 0; i < count; ++i, part += next_part) sum += *part;
      parts[k] = sum;
      along += static_cast<S>(x[k]) * unit * sum;
    }
    // 2. dz_i = r (du_i - along u_i); where the norm was clamped, r du_i. NaN counts as not clamped.
    const S projected = inv_norm >= clamped_inv_norm ? S(0) : warp_sum(along);
    for (int64_t k = lane; k < d; k += 32)
      dz[k] = static_cast<O>(inv_norm * (parts[k] - static_cast<S>(x[k]) * unit * projected));
    return along;
  }
};

}  // namespace simclr::cuda
