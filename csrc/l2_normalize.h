// Row L2-normalisation: the scalar rules that the CPU and CUDA kernels share.
//
//   forward    r = 1 / max(|x|, eps),  u = r x
//   backward   dx = r (du - u (u . du))   where |x| > eps    (the Jacobian of x / |x| is r (I - u u^T))
//              dx = r du                  where |x| <= eps   (r is the constant 1 / eps there)
//
// Squares are summed in double: a float row overflows only there where its norm itself would not fit.
#pragma once

#include <cmath>

#include "host_device.h"

namespace simclr {

// NaN in gives NaN out: the comparison is written so that a NaN norm is not clamped.
template <class T>
HOST_DEVICE T inverse_norm(double sum_of_squares, double eps) {
  const double norm = sqrt(sum_of_squares);
  return static_cast<T>(norm <= eps ? 1.0 / eps : 1.0 / norm);
}

// Whether the forward pass clamped this row's norm; read back from the saved inverse norm.
template <class T>
HOST_DEVICE bool norm_was_clamped(T inv_norm, double eps) {
  return inv_norm >= static_cast<T>(1.0 / eps);
}

}  // namespace simclr
