// Kernels that test the runtime's shared memory, asynchronous copies, atomics and limits; some are wrong on purpose.
#include "launch.cuh"
#include "ptx.cuh"

namespace {

using namespace simclr::ptx;

constexpr int kBlock = 64;

// Reads one element of static and one of dynamic shared memory that nobody wrote.
template <class T>
__global__ void unwritten_kernel(T* y) {
  __shared__ T fixed[3][kBlock];
  extern __shared__ __align__(16) unsigned char raw[];
  if (threadIdx.x != 0) return;
  y[2 * blockIdx.x] = fixed[2][5];
  y[2 * blockIdx.x + 1] = reinterpret_cast<T*>(raw)[7];
  fixed[2][5] = reinterpret_cast<T*>(raw)[7] = T(1);  // the next block must not see this
}

// Two instantiations of a template, and two variables of one kernel, are apart; alignment is kept.
template <int kValue>
__device__ int* scratch() {
  __shared__ __align__(128) int a[kBlock + 1];
  __align__(64) __shared__ int b[3];
  if (threadIdx.x == 0) a[0] = kValue, b[1] = 10 * kValue;
  __syncthreads();
  return threadIdx.x % 2 == 0 ? a : &b[1];
}
__global__ void instances_kernel(int* y, bool* aligned) {
  int *p = scratch<1>(), *q = scratch<2>();
  y[threadIdx.x] = *p + *q;
  if (threadIdx.x == 0) {
    *aligned = reinterpret_cast<uintptr_t>(p) % 128 == 0 && reinterpret_cast<uintptr_t>(q) % 128 == 0;
  }
}

// y = sum over `steps` tiles of x (each 4 * 64 floats), through a ring of kStages buffers filled by 16-byte copies.
// Right with kWait = kStages - 1 and a barrier before a buffer is filled again.
template <int kStages, int kWait, bool kBarrier>
__global__ void pipeline_kernel(const float* x, float* y, int steps) {
  __shared__ __align__(16) float ring[kStages][4 * kBlock];
  auto fetch = [&](int step) {
    if (step < steps) cp_async<16>(&ring[step % kStages][4 * threadIdx.x], x + (step * kBlock + threadIdx.x) * 4);
    cp_async_commit();
  };
  for (int step = 0; step < kStages; ++step) fetch(step);
  float sum = 0;
  for (int step = 0; step < steps; ++step) {
    cp_async_wait_group<kWait>();
    __syncthreads();
    for (int i = 0; i < 4; ++i) sum += ring[step % kStages][4 * (kBlock - 1 - threadIdx.x) + i];
    if (kBarrier) __syncthreads();
    fetch(step + kStages);
  }
  y[threadIdx.x] = sum;
}

// Copies of every size; past n the source is not read and zeros appear, at n partly.
template <int kBytes>
__global__ void zero_fill_kernel(const unsigned char* x, unsigned char* y, int n) {
  __shared__ __align__(16) unsigned char tile[kBlock * kBytes];
  const int begin = threadIdx.x * kBytes;
  const int bytes = n - begin > kBytes ? kBytes : n - begin > 0 ? n - begin : 0;
  cp_async<kBytes>(tile + begin, bytes > 0 ? x + begin : x, bytes);
  cp_async_commit();
  cp_async_wait_group<0>();
  __syncthreads();
  for (int i = 0; i < kBytes; ++i) y[i * kBlock + threadIdx.x] = tile[i * kBlock + threadIdx.x];
}

// Wrong: the source is aligned to 8 bytes only, or the target is not shared memory.
__global__ void misaligned_copy_kernel(const float* x) {
  __shared__ __align__(16) float tile[8];
  cp_async<16>(tile, x + 2);
}
__global__ void copy_to_global_kernel(const float* x, float* y) { cp_async<16>(y, x); }

__global__ void atomics_kernel(const int* x, float* sum, int* highest, double* wide, unsigned* ticket) {
  const int v = x[blockIdx.x * kBlock + threadIdx.x];
  atomicAdd(sum, static_cast<float>(v));
  atomicMax(highest, v);
  atomicAdd(wide, 0.5 * v);
  atomicInc(ticket, 99);
}

// Wrong: every thread adds without an atomic, over all blocks.
__global__ void racing_sum_kernel(int* sum) { *sum += threadIdx.x == 0; }

// Wrong where n is larger than what the pointers hold.
__global__ void copy_kernel(const float* x, float* y, int n) {
  const int i = blockIdx.x * kBlock + threadIdx.x;
  if (i < n) y[i] = x[i];
}
// Wrong for an index outside 0..63: it reaches past the variable, into its neighbours on a GPU.
__global__ void shared_index_kernel(float* y, int index) {
  __shared__ float tile[kBlock];
  __shared__ float other[kBlock];
  tile[threadIdx.x] = other[threadIdx.x] = 1.0f;
  __syncthreads();
  const float* p = tile;
  if (threadIdx.x == 0) y[0] = p[index] + other[0];
}
// Wrong for shifts of 32 and more.
__global__ void shift_kernel(int* y, int by) { y[0] = 1 << by; }

__global__ void dynamic_kernel(float* y, int n) {
  extern __shared__ float dynamic[];
  for (int i = threadIdx.x; i < n; i += kBlock) dynamic[i] = i;
  __syncthreads();
  if (threadIdx.x == 0) y[0] = dynamic[n - 1];
}
__global__ void large_static_kernel(float* y) {
  __shared__ float tile[49 * 256];
  y[0] = tile[0] = 1.0f;
}
__global__ void any_kernel(int* count) { atomicAdd(count, 1); }

}  // namespace

extern "C" {

int unwritten_float(float* y) { return SIMCLR_LAUNCH(unwritten_kernel<float>, 3, kBlock, 256, nullptr, y); }
int unwritten_half(__half* y) { return SIMCLR_LAUNCH(unwritten_kernel<__half>, 3, kBlock, 256, nullptr, y); }
int unwritten_double(double* y) { return SIMCLR_LAUNCH(unwritten_kernel<double>, 3, kBlock, 256, nullptr, y); }
int instances(int* y, bool* aligned) { return SIMCLR_LAUNCH(instances_kernel, 1, kBlock, 0, nullptr, y, aligned); }

int pipeline(const float* x, float* y, int steps) {
  return SIMCLR_LAUNCH((pipeline_kernel<3, 2, true>), 1, kBlock, 0, nullptr, x, y, steps);
}
int pipeline_short_wait(const float* x, float* y, int steps) {
  return SIMCLR_LAUNCH((pipeline_kernel<3, 3, true>), 1, kBlock, 0, nullptr, x, y, steps);
}
int pipeline_early_refill(const float* x, float* y, int steps) {
  return SIMCLR_LAUNCH((pipeline_kernel<2, 1, false>), 1, kBlock, 0, nullptr, x, y, steps);
}
int zero_fill_4(const unsigned char* x, unsigned char* y, int n) {
  return SIMCLR_LAUNCH(zero_fill_kernel<4>, 1, kBlock, 0, nullptr, x, y, n);
}
int zero_fill_8(const unsigned char* x, unsigned char* y, int n) {
  return SIMCLR_LAUNCH(zero_fill_kernel<8>, 1, kBlock, 0, nullptr, x, y, n);
}
int zero_fill_16(const unsigned char* x, unsigned char* y, int n) {
  return SIMCLR_LAUNCH(zero_fill_kernel<16>, 1, kBlock, 0, nullptr, x, y, n);
}
int misaligned_copy(const float* x) { return SIMCLR_LAUNCH(misaligned_copy_kernel, 1, 1, 0, nullptr, x); }
int copy_to_global(const float* x, float* y) { return SIMCLR_LAUNCH(copy_to_global_kernel, 1, 1, 0, nullptr, x, y); }

int atomics(const int* x, float* sum, int* highest, double* wide, unsigned* ticket, int blocks) {
  return SIMCLR_LAUNCH(atomics_kernel, blocks, kBlock, 0, nullptr, x, sum, highest, wide, ticket);
}
int racing_sum(int* sum, int blocks) { return SIMCLR_LAUNCH(racing_sum_kernel, blocks, 1, 0, nullptr, sum); }
int copy(const float* x, float* y, int n) {
  return SIMCLR_LAUNCH(copy_kernel, (n + kBlock - 1) / kBlock, kBlock, 0, nullptr, x, y, n);
}
int shared_index(float* y, int index) { return SIMCLR_LAUNCH(shared_index_kernel, 1, kBlock, 0, nullptr, y, index); }
int shift(int* y, int by) { return SIMCLR_LAUNCH(shift_kernel, 1, 1, 0, nullptr, y, by); }

int dynamic(float* y, int n) { return SIMCLR_LAUNCH(dynamic_kernel, 1, kBlock, n * sizeof(float), nullptr, y, n); }
int dynamic_without_opt_in(float* y, int n) {  // past the macro, which asks for what it needs
  return simt::launch("dynamic_kernel", reinterpret_cast<const void*>(&any_kernel), dim3(1), dim3(kBlock),
                      n * sizeof(float), false, [=] { dynamic_kernel(y, n); });
}
int large_static(float* y) { return SIMCLR_LAUNCH(large_static_kernel, 1, 1, 0, nullptr, y); }
int count_threads(int* count, int gx, int gy, int gz, int bx, int by, int bz) {
  return SIMCLR_LAUNCH(any_kernel, dim3(gx, gy, gz), dim3(bx, by, bz), 0, nullptr, count);
}

}  // extern "C"
