// The rule of a row of NT-Xent, shared by the CPU and the CUDA kernels: which columns are its negatives, and what its
// statistics make of loss and gradient.
//
// simclr_fast/ops/ntxent/reference.py and triton_common.py hold the same functions by the same names: another loss of
// this family is another row_loss, row_lse and row_pull. With u_i = z_i / max(|z_i|, eps), s_ij = u_i . u_j / t,
// p = p(i) the other view of row i, and w_i = dloss/dL_i (docs/ntxent.md derives it):
//
//   lse_neg_i  = log sum_{j not in {i, p}} exp(s_ij)           -inf where there are no negatives
//   L_i        = softplus(lse_neg_i - s_ip)                    row_loss
//   lse_i      = log(exp(lse_neg_i) + exp(s_ip))               row_lse:  dL_i/ds_ij = exp(s_ij - lse_i), j a negative
//   pull_i     = sigmoid(lse_neg_i - s_ip)                     row_pull: dL_i/ds_ip = -pull_i
//   du_i = 1/t [ sum_{j not in {i, p}} (w_i exp(s_ij - lse_i) + w_j exp(s_ij - lse_j)) u_j
//                - (w_i pull_i + w_p pull_p) u_p ]
//   dt   = -1/t sum_i w_i [ sum_{j not in {i, p}} exp(s_ij - lse_i) s_ij - pull_i s_ip ]
//   dz_i = r_i (du_i - u_i (u_i . du_i)), r_i = 1 / |z_i|; where |z_i| <= eps the norm was clamped: dz_i = du_i / eps
//
// The first sum of du is symmetric in i and j but for the weights: whoever owns row i needs the statistics of the
// columns that it meets, never their other products. The derivatives of L_i by its negatives add up to pull_i.
//
// Exponentials are taken in base 2, log2(e) / t folded into the product. Two ways keep them in range:
//   constant maximum   |s| <= 1/t: one number for all rows is subtracted before exp (1/t on GPUs, 0 on the CPU).
//   online maximum     any t, also one that only the device knows: every partial sum carries its own maximum.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace simclr {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

// The largest 2/t that the constant maximum serves: exp(s - 1/t) lies in [exp(-2/t), 1], and exp(-80) = 2e-35 is normal
// in float32 with three digits to spare; from 88 on exponentials, and sums of few of them, would be flushed to zero.
constexpr double kConstantMaxLimit = 80.0;

inline bool uses_constant_max(double temperature) { return 2 / temperature <= kConstantMaxLimit; }

// Which columns are a row's own, its positive and its negatives: all others. Index: int on GPUs (columns < 2^31),
// int64_t on CPUs. Beside NT-Xent's pairs, 2n rows of two views, this expresses what the primitive leaves out of its
// sums.
template <class Index>
struct Pairing {
  Index n;  // from a row of view 0 to its positive; 0: every row is its own
  Index rows, columns, row_offset;

  HOST_DEVICE Index column_of(Index row) const { return row_offset + row; }
  HOST_DEVICE Index positive_of(Index row) const { return row_offset + (row < n ? row + n : row - n); }

  // Rows and columns that pad a tile form no negative pairs.
  HOST_DEVICE bool is_negative(Index row, Index column) const {
    const Index own = column_of(row), positive = positive_of(row);
    const bool inside = row < rows && column < columns;
    return inside && column != own && column != positive;
  }

  // Whether some pair of [row, row + height) x [column, column + width) may be no negative: the tile meets the diagonal
  // or the positives beside it, or crosses an edge.
  HOST_DEVICE bool needs_mask(Index row, Index height, Index column, Index width) const {
    const auto meets = [=](Index first) { return column < first + height && first < column + width; };
    const Index own = column_of(row);
    return meets(own) || meets(own + n) || meets(own - n) || row + height > rows || column + width > columns;
  }
};

// log(1 + exp(x))
template <class T>
HOST_DEVICE T softplus(T x) {
  return (x > T(0) ? x : T(0)) + std::log1p(std::exp(-std::fabs(x)));
}

// 1 / (1 + exp(-x)), without overflow.
template <class T>
HOST_DEVICE T sigmoid(T x) {
  const T e = std::exp(-std::fabs(x));
  return (x < T(0) ? e : T(1)) / (T(1) + e);
}

// log(exp(a) + exp(b)); a may be -inf.
template <class T>
HOST_DEVICE T log_add_exp(T a, T b) {
  const T larger = a > b ? a : b;
  return larger + std::log1p(std::exp(-std::fabs(a - b)));
}

template <class T>
HOST_DEVICE T row_loss(T lse_neg, T s_pos) {
  return softplus(lse_neg - s_pos);
}

template <class T>
HOST_DEVICE T row_lse(T lse_neg, T s_pos) {
  return log_add_exp(lse_neg, s_pos);
}

// Never falls where lse_neg - s_pos grows, the only number that it depends on.
template <class T>
HOST_DEVICE T row_pull(T lse_neg, T s_pos) {
  return sigmoid(lse_neg - s_pos);
}

// The statistics of all columns, T in memory, and what the rule makes of them in W.
template <class T, class W = T>
struct RowStatistics {
  const T* lse_neg;  // [columns]
  const T* s_pos;    // [columns]

  HOST_DEVICE W lse(int64_t column) const { return row_lse(W(lse_neg[column]), W(s_pos[column])); }
  HOST_DEVICE W pull(int64_t column) const { return row_pull(W(lse_neg[column]), W(s_pos[column])); }
};

// What 1 / |z| is where the norm was clamped to eps: the backward knows such rows by inv_norm >= this.
template <class T>
T clamped_inv_norm(double eps) {
  return static_cast<T>(1 / eps);
}

}  // namespace simclr
