// Row L2-normalisation on CUDA: one warp owns one row, so a row is reduced without shared memory or barriers.
#include "../l2_normalize.h"
#include "../l2_normalize_launch.h"
#include "launch.cuh"

namespace simclr::cuda {
namespace {

constexpr int kWarpsPerBlock = 8;

__device__ __forceinline__ double warp_sum(double value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

__device__ __forceinline__ int64_t row_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / 32;
}

template <class T>
__global__ void __launch_bounds__(32 * kWarpsPerBlock, 4) l2_normalize_fwd_kernel(L2NormalizeForward<T> args) {
  const int64_t row = row_of_warp();
  if (row >= args.rows) return;
  const int lane = threadIdx.x % 32;
  const T* x = args.x + row * args.dim;
  T* u = args.u + row * args.dim;

  double sum = 0;
  for (int64_t k = lane; k < args.dim; k += 32) sum += static_cast<double>(x[k]) * static_cast<double>(x[k]);
  const T r = inverse_norm<T>(warp_sum(sum), args.eps);
  if (lane == 0) args.inv_norm[row] = r;
  for (int64_t k = lane; k < args.dim; k += 32) u[k] = x[k] * r;
}

template <class T>
__global__ void __launch_bounds__(32 * kWarpsPerBlock, 4) l2_normalize_bwd_kernel(L2NormalizeBackward<T> args) {
  const int64_t row = row_of_warp();
  if (row >= args.rows) return;
  const int lane = threadIdx.x % 32;
  const T* u = args.u + row * args.dim;
  const T* du = args.du + row * args.dim;
  T* dx = args.dx + row * args.dim;

  double sum = 0;
  for (int64_t k = lane; k < args.dim; k += 32) sum += static_cast<double>(u[k]) * static_cast<double>(du[k]);
  const T r = args.inv_norm[row];
  const T along = norm_was_clamped(r, args.eps) ? T(0) : static_cast<T>(warp_sum(sum));
  for (int64_t k = lane; k < args.dim; k += 32) dx[k] = r * (du[k] - u[k] * along);
}

unsigned blocks(int64_t rows) { return static_cast<unsigned>((rows + kWarpsPerBlock - 1) / kWarpsPerBlock); }

}  // namespace

template <class T>
int l2_normalize(const L2NormalizeForward<T>& args, void* stream) {
  return SIMCLR_LAUNCH(l2_normalize_fwd_kernel<T>, blocks(args.rows), 32 * kWarpsPerBlock, 0,
                       static_cast<cudaStream_t>(stream), args);
}

template <class T>
int l2_normalize_backward(const L2NormalizeBackward<T>& args, void* stream) {
  return SIMCLR_LAUNCH(l2_normalize_bwd_kernel<T>, blocks(args.rows), 32 * kWarpsPerBlock, 0,
                       static_cast<cudaStream_t>(stream), args);
}

template int l2_normalize(const L2NormalizeForward<float>&, void*);
template int l2_normalize(const L2NormalizeForward<double>&, void*);
template int l2_normalize_backward(const L2NormalizeBackward<float>&, void*);
template int l2_normalize_backward(const L2NormalizeBackward<double>&, void*);

}  // namespace simclr::cuda
