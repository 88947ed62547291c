// Kernels that test the runtime's barriers, warp operations and schedules; some are wrong on purpose and say so.
#include "launch.cuh"
#include "ptx.cuh"
#include "reduce.cuh"

namespace {

using simclr::ptx::named_barrier_sync;

constexpr int kBlock = 128;
constexpr int kHalf = kBlock / 2;

// Sum of each block's 128 values: warps by shuffles, then across warps by shared memory.
__global__ void __launch_bounds__(kBlock) block_sum_kernel(const float* x, float* sums, int n) {
  __shared__ float partial[kBlock / 32];
  const int i = blockIdx.x * kBlock + threadIdx.x;
  float value = i < n ? x[i] : 0.0f;
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) sums[blockIdx.x] = partial[0] + partial[1] + partial[2] + partial[3];
}

// Reverses each block's values through shared memory; wrong where the barrier is left out.
template <bool kWithBarrier>
__global__ void reverse_kernel(const float* x, float* y) {
  __shared__ float tile[kBlock];
  tile[threadIdx.x] = x[blockIdx.x * kBlock + threadIdx.x];
  if (kWithBarrier) __syncthreads();
  y[blockIdx.x * kBlock + threadIdx.x] = tile[kBlock - 1 - threadIdx.x];
}

__global__ void votes_kernel(const int* predicate, int* out) {
  const int p = predicate[threadIdx.x];
  const int count = __syncthreads_count(p), any = __syncthreads_or(p), all = __syncthreads_and(p);
  int* mine = out + 3 * threadIdx.x;
  mine[0] = count, mine[1] = any, mine[2] = all;
}

// The first half fills the buffer, the second adds it up; one barrier says that it is full, another that it is empty.
__global__ void producer_kernel(const float* x, float* y) {
  __shared__ float buffer[kHalf];
  constexpr int kFull = 1, kEmpty = 2, kRounds = 3;
  const int lane = threadIdx.x % kHalf;
  float sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    if (threadIdx.x < kHalf) {
      if (round > 0) named_barrier_sync(kEmpty, kBlock);
      buffer[lane] = x[round * kHalf + lane];
      named_barrier_sync(kFull, kBlock);
    } else {
      named_barrier_sync(kFull, kBlock);
      sum += buffer[kHalf - 1 - lane];
      if (round + 1 < kRounds) named_barrier_sync(kEmpty, kBlock);
    }
  }
  if (threadIdx.x >= kHalf) y[lane] = sum;
}

// Threads past n leave at once; the others still meet.
__global__ void early_return_kernel(const float* x, float* y, int n) {
  __shared__ float tile[kBlock];
  if (threadIdx.x >= n) return;
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[n - 1 - threadIdx.x] + __shfl_sync(0xffffffffu, tile[threadIdx.x], 0);
}

// Wrong: half a warp takes one barrier, half another.
__global__ void divergent_barrier_kernel(int* y) {
  if (threadIdx.x % 32 < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 1;
}

// Wrong: the second warp waits for a barrier that the first never comes to.
__global__ void deadlock_kernel(int* y) {
  if (threadIdx.y >= 2) named_barrier_sync(3, 64);
  y[(blockIdx.y * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
}

// Wrong: lanes of one mask are in different operations.
__global__ void divergent_warp_kernel(int* y) {
  if (threadIdx.x < 16) {
    y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
  } else {
    y[threadIdx.x] = __any_sync(0xffffffffu, 1);
  }
}

// Wrong: the mask leaves the caller out.
__global__ void foreign_mask_kernel(int* y) { y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 0); }

// Results of one warp operation per row of `out`, [12, lanes].
__global__ void warp_operations_kernel(const int* x, int* out, int lanes) {
  const int lane = threadIdx.x, v = x[lane];
  const unsigned all = 0xffffffffu;
  int row = 0;
  auto put = [&](int value) { out[row++ * lanes + lane] = value; };
  put(__shfl_sync(all, v, 5));
  put(__shfl_sync(all, v, lane + 1, 8));
  put(__shfl_up_sync(all, v, 3));
  put(__shfl_down_sync(all, v, 3, 16));
  put(__shfl_xor_sync(all, v, 9));
  put(static_cast<int>(__ballot_sync(all, v & 1)));
  put(__any_sync(all, v > 1000));
  put(__all_sync(all, v < 1000));
  put(static_cast<int>(__match_any_sync(all, v % 3)));
  put(__reduce_add_sync(all, v));
  put(__reduce_min_sync(all, v));
  put(static_cast<int>(__reduce_xor_sync(all, static_cast<unsigned>(v))));
}

// Even and odd lanes part and work under their own masks.
__global__ void parted_warp_kernel(const double* x, double* y) {
  const int lane = threadIdx.x;
  double v = x[lane];
  if (lane % 2 == 0) {
    for (int offset = 16; offset > 1; offset /= 2) v += __shfl_xor_sync(0x55555555u, v, offset);
  } else {
    v *= 2;
    __syncwarp(0xaaaaaaaau);
    v = __shfl_sync(0xaaaaaaaau, v, 31);
  }
  __syncwarp();
  y[lane] = v;
}

// Wrong unless the warp is synchronised: a neighbour's value is read from shared memory.
template <bool kWithSync>
__global__ void warp_neighbour_kernel(const float* x, float* y) {
  __shared__ float tile[32];
  tile[threadIdx.x] = x[threadIdx.x];
  if (kWithSync) __syncwarp();
  y[threadIdx.x] = tile[(threadIdx.x + 1) % 32];
}

// In every round a block takes its neighbour's number of the round before, plus 1: values is [rounds + 1, blocks]. Wrong
// where the barrier is left out; block `absent` does not come to the last one.
template <bool kWithBarrier>
__global__ void ring_kernel(int* values, int rounds, int absent) {
  const int blocks = gridDim.x, block = blockIdx.x;
  for (int round = 1; round <= rounds; ++round) {
    if (threadIdx.x == 0) values[round * blocks + block] = values[(round - 1) * blocks + (block + 1) % blocks] + 1;
    if (round == rounds && block == absent) return;
    if (kWithBarrier) cooperative_groups::this_grid().sync();
  }
}

}  // namespace

extern "C" {

int block_sum(const float* x, float* sums, int n) {
  return SIMCLR_LAUNCH(block_sum_kernel, (n + kBlock - 1) / kBlock, kBlock, 0, nullptr, x, sums, n);
}
int reverse(const float* x, float* y, int blocks) {
  return SIMCLR_LAUNCH(reverse_kernel<true>, blocks, kBlock, 0, nullptr, x, y);
}
int reverse_without_barrier(const float* x, float* y, int blocks) {
  return SIMCLR_LAUNCH(reverse_kernel<false>, blocks, kBlock, 0, nullptr, x, y);
}
int votes(const int* predicate, int* out, int threads) {
  return SIMCLR_LAUNCH(votes_kernel, 1, threads, 0, nullptr, predicate, out);
}
int producer(const float* x, float* y) { return SIMCLR_LAUNCH(producer_kernel, 1, kBlock, 0, nullptr, x, y); }
int early_return(const float* x, float* y, int n) {
  return SIMCLR_LAUNCH(early_return_kernel, 1, kBlock, 0, nullptr, x, y, n);
}
int divergent_barrier(int* y) { return SIMCLR_LAUNCH(divergent_barrier_kernel, 1, 64, 0, nullptr, y); }
int deadlock(int* y) { return SIMCLR_LAUNCH(deadlock_kernel, dim3(1, 2), dim3(16, 4), 0, nullptr, y); }
int divergent_warp(int* y) { return SIMCLR_LAUNCH(divergent_warp_kernel, 1, 32, 0, nullptr, y); }
int foreign_mask(int* y) { return SIMCLR_LAUNCH(foreign_mask_kernel, 1, 32, 0, nullptr, y); }
int warp_operations(const int* x, int* out, int lanes) {
  return SIMCLR_LAUNCH(warp_operations_kernel, 1, lanes, 0, nullptr, x, out, lanes);
}
int parted_warp(const double* x, double* y) { return SIMCLR_LAUNCH(parted_warp_kernel, 1, 32, 0, nullptr, x, y); }
int warp_neighbour(const float* x, float* y) {
  return SIMCLR_LAUNCH(warp_neighbour_kernel<true>, 1, 32, 0, nullptr, x, y);
}
int ring(int* values, int blocks, int rounds, int absent) {
  return SIMCLR_LAUNCH_RESIDENT(ring_kernel<true>, blocks, 64, 0, nullptr, values, rounds, absent);
}
int ring_without_barrier(int* values, int blocks, int rounds, int absent) {
  return SIMCLR_LAUNCH_RESIDENT(ring_kernel<false>, blocks, 64, 0, nullptr, values, rounds, absent);
}
int ring_of_any_launch(int* values, int blocks, int rounds, int absent) {
  return SIMCLR_LAUNCH(ring_kernel<true>, blocks, 64, 0, nullptr, values, rounds, absent);
}
int warp_neighbour_without_sync(const float* x, float* y) {
  return SIMCLR_LAUNCH(warp_neighbour_kernel<false>, 1, 32, 0, nullptr, x, y);
}

}  // extern "C"
