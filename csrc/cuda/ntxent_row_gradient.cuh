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
  __device__ void load_four(S (&u)[4], int64_t k, int64_t d) const {
    cuda::load_four(u, z, k, d);
#pragma unroll
    for (int i = 0; i < 4; ++i) u[i] *= inv_norm;
  }
};
template <class E, class S>
struct OperandRow {
  UnitRows<E> u;
  int64_t row;
  __device__ void load_four(S (&to)[4], int64_t k, int64_t) const { u.load_four(to, row, k); }
};
template <class T>
constexpr bool kRoundsRows = sizeof(T) == 2;
template <class T, class S>
using UnitRow = std::conditional_t<kRoundsRows<T>, ScaledRow<T, S>, OperandRow<OperandOf<T>, S>>;

// The partial sums of du_i are `count` rows of `parts`, each next_part elements behind the other, aligned to four entries
// and filled up to a multiple of four. Where d > 128 the first is overwritten by du_i.
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
    // A lane takes 4 of every 128 entries. Where there are no more, they stay in its registers.
    const bool is_long = d > 128;
    S u[4], du[4];
    // 1. du_i = (sum of the parts) - pull u_p, and along = u_i . du_i.
    S along = 0;
    for (int64_t k = 4 * lane; k < d; k += 128) {
      for (int j = 0; j < 4; ++j) du[j] = 0;
      if constexpr (kPositives) {
        positive.load_four(u, k, d);
        for (int j = 0; j < 4; ++j) du[j] = -pull * u[j];
      }
      const S* part = parts;
      // More at once, and ptxas spills a value for one architecture or another.
#pragma unroll(sizeof(S) == 8 ? 1 : 2)
      for (int i = 0; i < count; ++i, part += next_part) {
        const Four<S> four = *reinterpret_cast<const Four<S>*>(part + k);
        for (int j = 0; j < 4; ++j) du[j] += four.x[j];
      }
      if (is_long) *reinterpret_cast<Four<S>*>(parts + k) = {du[0], du[1], du[2], du[3]};
      own.load_four(u, k, d);
      for (int j = 0; j < 4; ++j) along += u[j] * du[j];
    }
    // 2. dz_i = r (du_i - along u_i); where the norm was clamped, r du_i. NaN counts as not clamped.
    const S projected = inv_norm >= clamped_inv_norm ? S(0) : warp_sum(along);
    for (int64_t k = 4 * lane; k < d; k += 128) {
      if (is_long) {
        const Four<S> four = *reinterpret_cast<const Four<S>*>(parts + k);
        for (int j = 0; j < 4; ++j) du[j] = four.x[j];
        own.load_four(u, k, d);
      }
      for (int j = 0; j < 4; ++j) du[j] = inv_norm * (du[j] - u[j] * projected);
      store_four(dz, k, d, du);
    }
    return along;
  }
};

}  // namespace simclr::cuda
