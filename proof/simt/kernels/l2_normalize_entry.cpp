// Plain C entry points of the row L2-normalisation launchers, for ctypes.
#include "l2_normalize_launch.h"

using simclr::L2NormalizeBackward;
using simclr::L2NormalizeForward;

extern "C" {

int l2_normalize_float(const float* x, float* u, float* inv_norm, int64_t rows, int64_t dim, double eps) {
  return simclr::cuda::l2_normalize(L2NormalizeForward<float>{x, u, inv_norm, rows, dim, eps}, nullptr);
}

int l2_normalize_double(const double* x, double* u, double* inv_norm, int64_t rows, int64_t dim, double eps) {
  return simclr::cuda::l2_normalize(L2NormalizeForward<double>{x, u, inv_norm, rows, dim, eps}, nullptr);
}

int l2_normalize_backward_float(const float* du, const float* u, const float* inv_norm, float* dx, int64_t rows,
                                int64_t dim, double eps) {
  return simclr::cuda::l2_normalize_backward(L2NormalizeBackward<float>{du, u, inv_norm, dx, rows, dim, eps}, nullptr);
}

int l2_normalize_backward_double(const double* du, const double* u, const double* inv_norm, double* dx, int64_t rows,
                                 int64_t dim, double eps) {
  return simclr::cuda::l2_normalize_backward(L2NormalizeBackward<double>{du, u, inv_norm, dx, rows, dim, eps}, nullptr);
}

}  // extern "C"
