// Entry points of the NT-Xent kernels on the CPU.
//
// A process holds n samples in two views: its 2n rows are view 0, then view 1. The M columns are the rows of all
// processes in rank order; row i is column row_offset + i and its positive p(i) is column row_offset + (i + n) mod 2n.
// With s_ij = u_i . u_j / t and lse_neg_i = log sum_{j not in {i, p(i)}} exp(s_ij), the loss of row i is
// L_i = softplus(lse_neg_i - s_ip). docs/ntxent.md derives the gradient.
//
// T is the type of rows and statistics: float, or double for double inputs. Z is the type of the embeddings: T, or Half
// or BFloat16 with T = float. Results do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "../parallel.h"

namespace simclr::cpu {

// u_i = z_i / max(|z_i|, eps)
template <class Z, class T>
struct NtxentNormalize {
  const Z* z[2];          // the views, [n, dim]
  int64_t row_stride[2];  // in elements; columns are contiguous
  T* u;                   // [2n, dim]
  T* inv_norm;            // [2n], 1 / max(|z_i|, eps)
  int64_t n, dim;
  double eps;
};

template <class T>
struct NtxentForward {
  const T* u;  // [columns, dim]
  T* loss;     // reduce: the scalar scale * sum_i L_i; else [2n]
  T* lse_neg;  // [2n]; -inf where there are no negatives (M = 2)
  T* s_pos;    // [2n]
  int64_t n, columns, row_offset, dim;
  double temperature, scale;
  bool reduce;
};

template <class Z, class T>
struct NtxentBackward {
  const T* dloss;     // reduce: the scalar gradient; else [columns]
  const T* u;         // [columns, dim]
  const T* inv_norm;  // [2n]
  const T* lse_neg;   // [columns]
  const T* s_pos;     // [columns]
  Z* dz[2];           // [n, dim]
  T* dt;              // scalar; the sum over all processes is the gradient of the temperature
  int64_t n, columns, row_offset, dim;
  double temperature, scale, eps;
  bool reduce;
};

template <class Z, class T>
void ntxent_normalize(const NtxentNormalize<Z, T>& args, const Parallel& parallel);
template <class T>
void ntxent_forward(const NtxentForward<T>& args, const Parallel& parallel);
template <class Z, class T>
void ntxent_backward(const NtxentBackward<Z, T>& args, const Parallel& parallel);

}  // namespace simclr::cpu
