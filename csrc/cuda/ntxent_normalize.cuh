// One row of z, normalised, as the operand of the matrix products; a warp makes it.
//
// The row is scaled by its largest entry before squaring, so that no square overflows or underflows. Norms of fp32 rows
// are float64: an error of 1e-7 in one is the same error in all logits of its row, 1e-5 at t = 0.01.
#pragma once

#include <cmath>
#include <cstdint>

#include "ntxent_unit_rows.cuh"
#include "reduce.cuh"

namespace simclr::cuda {

// The type that norms of rows of T are computed in.
template <class T>
struct NormOf {
  using type = float;
};
template <>
struct NormOf<float> {
  using type = double;
};
template <>
struct NormOf<double> {
  using type = double;
};

// Writes row `row` of u, zero from d on, and *inv_norm = 1 / max(|z|, eps). U: of u, S: of the norm.
template <class T, class U, class S>
__device__ void normalize_row(const T* z, int64_t d, double eps, S clamped_inv_norm, const UnitRows<U>& u, int64_t row,
                              S* inv_norm) {
  using W = typename NormOf<T>::type;
  const int lane = threadIdx.x % 32;
  W x[4];
  // 1. The largest entry.
  W peak = 0;
  for (int64_t k = 4 * lane; k < d; k += 128) {
    load_four(x, z, k, d);
#pragma unroll
    for (int i = 0; i < 4; ++i) peak = fmax(peak, fabs(x[i]));
  }
  peak = warp_max(peak);
  const W scale = peak > W(0) ? W(1) / peak : W(1);
  // 2. |z| = peak |z / peak|. 1 / peak overflows for subnormal peaks; such a row is far below eps, and its squares do
  // not matter.
  W sum = 0;
  for (int64_t k = 4 * lane; k < d; k += 128) {
    load_four(x, z, k, d);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += x[i] * scale * (x[i] * scale);
  }
  const W root = sqrt(warp_sum(sum));
  // 3. inv_norm = 1 / max(|z|, eps), and u = z inv_norm.
  const W least = static_cast<W>(eps);
  const bool clamped = peak * root <= least;
  // The norm itself may not be representable.
  if (lane == 0) *inv_norm = clamped ? clamped_inv_norm : static_cast<S>(scale / root);
  const W first = clamped ? W(1) : scale, second = W(1) / (clamped ? least : root);
  for (int64_t k = 4 * lane; k < u.columns; k += 128) {
    load_four(x, z, k, d);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = x[i] * first * second;
    u.set(row, k, x);
  }
}

}  // namespace simclr::cuda
