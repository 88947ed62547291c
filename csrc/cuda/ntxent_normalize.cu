// NT-Xent's prologue on CUDA: rows of both views, normalised, as the operand of the matrix products.
#include "../ntxent_launch.h"
#include "ntxent_normalize.cuh"
#include "ntxent_plan.h"

namespace simclr::cuda {
namespace {

constexpr int kWarps = 8;  // nothing is shared between them: a block is 256 threads, as is usual

// T: dtype of z, S: of the norms.
template <class T, class S>
struct NormalizeTask {
  const T* z[2];
  int64_t z_stride[2];
  UnitRows<OperandOf<T>> u;
  S* inv_norm;  // [rows]
  int64_t n;    // rows of view 0; the others are of view 1
  int64_t rows, d;
  double eps;
  S clamped_inv_norm;
};

template <class T, class S>
__global__ void __launch_bounds__(32 * kWarps) ntxent_normalize_kernel(const NormalizeTask<T, S> task) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= task.rows) return;
  const int view = row >= task.n;
  const T* z = (view ? task.z[1] : task.z[0]) + (row - view * task.n) * (view ? task.z_stride[1] : task.z_stride[0]);
  normalize_row(z, task.d, task.eps, task.clamped_inv_norm, task.u, row, task.inv_norm + row);
}

template <class T, class S>
cudaError_t run(const SimclrNtxentNormalizeArgs& args, cudaStream_t stream) {
  NormalizeTask<T, S> task = {};
  for (int view = 0; view < 2; ++view) {
    task.z[view] = static_cast<const T*>(args.z[view]);
    task.z_stride[view] = args.z_stride[view];
  }
  task.u = unit_rows<OperandOf<T>>(args.u, args.u_columns);
  task.inv_norm = static_cast<S*>(args.inv_norm);
  task.n = args.n[0];
  task.rows = args.n[0] + args.n[1];
  task.d = args.d;
  task.eps = args.eps;
  task.clamped_inv_norm = clamped_inv_norm<S>(args.eps);
  return SIMCLR_LAUNCH((ntxent_normalize_kernel<T, S>), static_cast<unsigned>(ceil_div(task.rows, kWarps)), 32 * kWarps,
                       0, stream, task);
}

}  // namespace
}  // namespace simclr::cuda

extern "C" int simclr_ntxent_normalize(const SimclrNtxentNormalizeArgs* args, void* stream_pointer) {
  using namespace simclr::cuda;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  if (args->n[0] <= 0 || args->n[1] < 0 || args->d <= 0 || args->u_columns < args->d) return cudaErrorInvalidValue;
  switch (args->z_dtype) {
    case SIMCLR_HALF:
      return run<__half, float>(*args, stream);
    case SIMCLR_BFLOAT16:
      return run<__nv_bfloat16, float>(*args, stream);
    case SIMCLR_FLOAT:
      return run<float, float>(*args, stream);
    case SIMCLR_DOUBLE:
      return run<double, double>(*args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

extern "C" int64_t simclr_ntxent_operand_columns(int64_t d, int u_dtype) {
  return simclr::cuda::operand_columns(d, u_dtype);
}
