// What the CUDA kernels of NT-Xent read on the device: the temperature, and what the backward knows of a row or column.
//
// csrc/ntxent.h holds the rule and the formulas. With the constant maximum one exponential serves both terms of du:
// exp(s - 1/t) (w_i exp(1/t - lse_i) + w_j exp(1/t - lse_j)); the online maximum takes two, exp(s - lse_i) and
// exp(s - lse_j), neither above 1.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "../ntxent.h"
#include "launch.cuh"

namespace simclr::cuda {

// The temperature t: 1/t by value, or t read on the device. inverse() is 1/t rounded once: float32's 0.01 is not 0.01,
// and that alone would be a relative error of 2e-8 in every logit.
template <class T>
struct Temperature {
  const T* on_device;
  double inverse_value;

  template <class W = T>
  __device__ W inverse() const {
    return on_device != nullptr ? W(1) / static_cast<W>(*on_device) : static_cast<W>(inverse_value);
  }
  // What turns u.u into base-2 logits.
  __device__ T base_2_scale() const { return static_cast<T>(kLog2E) * inverse(); }
};

// One side of the logits, its rows or its columns, in the backward: weight(i) exp(s_ij - lse(i)) is what i brings to
// the coefficient of a pair. The weights are one number for all, or one each. NT-Xent keeps two statistics of a row, of
// which csrc/ntxent.h makes lse and pull; the primitive keeps the log-sum-exp itself, and has no positives.
template <class S>
struct Side {
  const S* upstream;  // [] or [count]; null: [] that is 1
  S scale;
  bool per_row;
  const S* lse_or_lse_neg;  // [count]
  const S* s_pos;           // [count]; null: none, and the other array is lse

  __device__ S weight(int i) const { return per_row ? upstream[i] : upstream == nullptr ? scale : scale * *upstream; }
  // -inf is the log-sum-exp of nothing, all of whose pairs are masked. Like the +inf of a side without a gradient, +inf
  // makes its terms 0, where exp(-s + inf) would make them NaN.
  __device__ S lse(int i) const {
    const S lse = lse_or_lse_neg[i];
    if (s_pos != nullptr) return row_lse(lse, s_pos[i]);
    return lse == -INFINITY ? INFINITY : lse;
  }
  // What the derivatives by the negatives of i add up to.
  __device__ S pull(int i) const { return s_pos != nullptr ? row_pull(lse_or_lse_neg[i], s_pos[i]) : S(1); }
};

}  // namespace simclr::cuda
