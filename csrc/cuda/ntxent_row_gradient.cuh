// The end of the backward for one row, which a warp takes: partial sums of du, the positive's term and the Jacobian of
// the normalisation become dz.
#pragma once

#include <cstdint>

#include "ntxent_unit_rows.cuh"
#include "reduce.cuh"

namespace simclr::cuda {

// A unit row: of half views z times inv_norm, because their operand is rounded to fp16, else the operand.
template <class T, class S>
struct ScaledRow {
  const T* z;
  S inv_norm;
  __device__ S at(int64_t k) const { return static_cast<S>(z[k]) * inv_norm; }
};
template <class E, class S>
struct OperandRow {
  UnitRows<E> u;
  int64_t row;
  __device__ S at(int64_t k) const { return u.template at<S>(row, k); }
};
template <class T>
constexpr bool kRoundsRows = sizeof(T) == 2;
template <class T, class S>
using UnitRow = std::conditional_t<kRoundsRows<T>, ScaledRow<T, S>, OperandRow<OperandOf<T>, S>>;

// The partial sums of du_i are `count` rows of `parts`, each next_part elements behind the other; the first is
// overwritten by du_i.
template <class T, class S>
struct RowGradient {
  UnitRow<T, S> own, positive;  // u_i, u_p
  S pull;                       // (w_i pull_i + w_p pull_p) / t
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
      if constexpr (kPositives) sum = -pull * positive.at(k);
      const S* part = parts + k;
      for (int i = 0; i < count; ++i, part += next_part) sum += *part;
      parts[k] = sum;
      along += own.at(k) * sum;
    }
    // 2. dz_i = r (du_i - along u_i); where the norm was clamped, r du_i. NaN counts as not clamped.
    const S projected = inv_norm >= clamped_inv_norm ? S(0) : warp_sum(along);
    for (int64_t k = lane; k < d; k += 32) dz[k] = static_cast<O>(inv_norm * (parts[k] - own.at(k) * projected));
    return along;
  }
};

}  // namespace simclr::cuda
