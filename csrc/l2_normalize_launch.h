// C++ entry points of the row L2-normalisation kernels; rows are contiguous, T is float or double.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace simclr {

template <class T>
struct L2NormalizeForward {
  const T* x;   // [rows, dim]
  T* u;         // [rows, dim]
  T* inv_norm;  // [rows]
  int64_t rows, dim;
  double eps;
};

template <class T>
struct L2NormalizeBackward {
  const T* du;        // [rows, dim]
  const T* u;         // [rows, dim]
  const T* inv_norm;  // [rows]
  T* dx;              // [rows, dim]
  int64_t rows, dim;
  double eps;
};

namespace cpu {
template <class T>
void l2_normalize(const L2NormalizeForward<T>& args, const Parallel& parallel);
template <class T>
void l2_normalize_backward(const L2NormalizeBackward<T>& args, const Parallel& parallel);
}  // namespace cpu

namespace cuda {
// Launch on `stream` (a cudaStream_t) of the current device; return the cudaError_t of the launch.
template <class T>
int l2_normalize(const L2NormalizeForward<T>& args, void* stream);
template <class T>
int l2_normalize_backward(const L2NormalizeBackward<T>& args, void* stream);
}  // namespace cuda

}  // namespace simclr
