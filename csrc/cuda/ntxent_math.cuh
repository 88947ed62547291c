// What the CUDA kernels of NT-Xent read on the device: the temperature, and the weights of the row losses.
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

// dloss/dL: one number for all rows, or one per column.
template <class T>
struct LossWeights {
  const T* dloss;
  T scale;
  bool per_column;
  __device__ T operator()(int column) const { return per_column ? dloss[column] : scale * *dloss; }
};

}  // namespace simclr::cuda
