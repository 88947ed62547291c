// NT-Xent's prologue on CUDA: rows of both views, normalised, as the operand of the matrix products.
//
// One warp owns a row. It is scaled by its largest entry before squaring, so that no square overflows or underflows.
// Norms of fp32 rows are float64: an error of 1e-7 in one is the same error in all logits of its row, 1e-5 at t = 0.01.
#include "../ntxent_launch.h"
#include "ntxent_plan.h"
#include "reduce.cuh"

namespace simclr::cuda {
namespace {

constexpr int kWarps = 8;  // nothing is shared between them: a block is 256 threads, as is usual

// T: dtype of z, U: of u, S: of the norms; W: what they are computed in.
template <class T, class U, class S, class W>
struct NormalizeTask {
  const T* z[2];
  int64_t z_stride[2];
  U* u;         // [rows, u_columns]
  S* inv_norm;  // [rows]
  int64_t n;    // rows of view 0; the others are of view 1
  int64_t rows, d, u_columns;
  W eps;
  S clamped_inv_norm;
};

template <class T, class U, class S, class W>
__global__ void __launch_bounds__(32 * kWarps) ntxent_normalize_kernel(const NormalizeTask<T, U, S, W> task) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= task.rows) return;
  const int lane = threadIdx.x % 32, view = row >= task.n;
  const T* z = (view ? task.z[1] : task.z[0]) + (row - view * task.n) * (view ? task.z_stride[1] : task.z_stride[0]);

  // 1. The largest entry.
  W peak = 0;
  for (int64_t k = lane; k < task.d; k += 32) peak = fmax(peak, fabs(static_cast<W>(z[k])));
  peak = warp_max(peak);
  const W scale = peak > W(0) ? W(1) / peak : W(1);
  // 2. |z| = peak |z / peak|. 1 / peak overflows for subnormal peaks; such a row is far below eps, and its squares do
  // not matter.
  W sum = 0;
  for (int64_t k = lane; k < task.d; k += 32) {
    const W x = static_cast<W>(z[k]) * scale;
    sum += x * x;
  }
  const W root = sqrt(warp_sum(sum));
  // 3. inv_norm = 1 / max(|z|, eps), and u = z inv_norm.
  const bool clamped = peak * root <= task.eps;
  // The norm itself may not be representable.
  if (lane == 0) task.inv_norm[row] = clamped ? task.clamped_inv_norm : static_cast<S>(scale / root);
  const W first = clamped ? W(1) : scale, second = W(1) / (clamped ? task.eps : root);
  for (int64_t k = lane; k < task.u_columns; k += 32) {
    task.u[row * task.u_columns + k] = k < task.d ? static_cast<U>(static_cast<W>(z[k]) * first * second) : U(0.0f);
  }
}

template <class T, class U, class S, class W>
cudaError_t run(const SimclrNtxentNormalizeArgs& args, cudaStream_t stream) {
  NormalizeTask<T, U, S, W> task = {};
  for (int view = 0; view < 2; ++view) {
    task.z[view] = static_cast<const T*>(args.z[view]);
    task.z_stride[view] = args.z_stride[view];
  }
  task.u = static_cast<U*>(args.u);
  task.inv_norm = static_cast<S*>(args.inv_norm);
  task.n = args.n[0];
  task.rows = args.n[0] + args.n[1];
  task.d = args.d;
  task.u_columns = args.u_columns;
  task.eps = static_cast<W>(args.eps);
  task.clamped_inv_norm = clamped_inv_norm<S>(args.eps);
  return SIMCLR_LAUNCH((ntxent_normalize_kernel<T, U, S, W>), static_cast<unsigned>(ceil_div(task.rows, kWarps)),
                       32 * kWarps, 0, stream, task);
}

}  // namespace
}  // namespace simclr::cuda

extern "C" int simclr_ntxent_normalize(const SimclrNtxentNormalizeArgs* args, void* stream_pointer) {
  using namespace simclr::cuda;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  if (args->n[0] <= 0 || args->n[1] < 0 || args->d <= 0 || args->u_columns < args->d) return cudaErrorInvalidValue;
  switch (args->z_dtype) {
    case SIMCLR_HALF:
      return run<__half, __half, float, float>(*args, stream);
    case SIMCLR_BFLOAT16:
      return run<__nv_bfloat16, __half, float, float>(*args, stream);
    case SIMCLR_FLOAT:
      return run<float, float, float, double>(*args, stream);
    case SIMCLR_DOUBLE:
      return run<double, double, double, double>(*args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

extern "C" int64_t simclr_ntxent_operand_columns(int64_t d, int u_dtype) {
  return simclr::cuda::operand_columns(d, u_dtype);
}
