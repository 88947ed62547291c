// The formulas of the CUDA NT-Xent kernels: indices, temperature, row statistics, gradient coefficients.
//
// u_i are unit rows, s_ij = u_i . u_j / t, p(i) is the positive of row i; w_i = dloss/dL_i.
//
//   lse_neg_i = log sum_{j not in {i, p}} exp(s_ij)      L_i = softplus(lse_neg_i - s_ip)
//   lse_i     = log(exp(lse_neg_i) + exp(s_ip))          sg_i = sigmoid(lse_neg_i - s_ip)
//   du_i =  1/t [ sum_{j not in {i, p}} (w_i exp(s_ij - lse_i) + w_j exp(s_ij - lse_j)) u_j - (w_i sg_i + w_p sg_p) u_p ]
//   dt   = -1/t sum_i w_i [ sum_{j not in {i, p}} exp(s_ij - lse_i) s_ij - sg_i s_ip ]
//
// The first sum is symmetric in i and j but for the weights, so a CTA that owns rows needs only the statistics of the
// columns it meets, never their other products. Exponentials are taken in base 2 with log2(e)/t folded into one
// multiply-add. Two ways to keep them in range:
//   constant maximum   |s| <= 1/t, so exp(s - 1/t) lies in [exp(-2/t), 1], normal fp32 while 2/t <= 80. One exponential
//                      serves both terms of du: exp(s - 1/t) (w_i exp(1/t - lse_i) + w_j exp(1/t - lse_j)).
//   online maximum     any t, also one that only the device knows: every partial sum carries its own maximum, and du
//                      takes two exponentials, exp(s - lse_i) and exp(s - lse_j), neither above 1.
// The coefficients of row i's negatives, w_i exp(s_ij - lse_i), add up to w_i sg_i. For the fp16 tensor cores they are
// scaled by 2^14 / max |w_i| sg_i, rounded to a power of two: that bounds them by 2^15, and leaves those normal that
// are at least 4e-9 of the largest row's sum, however well aligned the pairs are.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "launch.cuh"

namespace simclr::cuda {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLargestConstantMax = 80.0;  // of 2/t; see above
constexpr float kCoefficientScaleLog2 = 14.0f;
constexpr float kLeastSigmoidLog2 = -90.0f;  // what a sg counts at least: sums of 2^14 / sg stay finite in fp32

// Which column a local row is and which column is its positive. Indices are int (columns < 2^31), offsets int64_t.
struct Pairing {
  int n, rows, columns, row_offset;  // rows = 2 n

  __device__ int column_of(int row) const { return row_offset + row; }
  __device__ int positive_of(int row) const { return row_offset + (row < n ? row + n : row - n); }

  // Whether [row, row + height) x [column, column + width) holds a diagonal or a positive element, or crosses an edge.
  __device__ bool needs_mask(int row, int height, int column, int width) const {
    const auto meets = [=](int first) { return column < first + height && first < column + width; };
    const int own = column_of(row);
    return meets(own) || meets(own + n) || meets(own - n) || row + height > rows || column + width > columns;
  }
};

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

template <class T>
__device__ T softplus(T x) {
  return (x > T(0) ? x : T(0)) + log1p(exp(-fabs(x)));
}

template <class T>
__device__ T sigmoid(T x) {
  const T e = exp(-fabs(x));
  return (x < T(0) ? e : T(1)) / (T(1) + e);
}

// log(exp(a) + exp(b)); a may be -inf.
template <class T>
__device__ T log_add_exp(T a, T b) {
  const T larger = a > b ? a : b;
  return larger + log1p(exp(-fabs(a - b)));
}

}  // namespace simclr::cuda
