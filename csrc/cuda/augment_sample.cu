// Draws the parameters of every (view, sample) on CUDA: a thread per view of a sample.
#include "../augment_launch.h"
#include "../augment_sample.h"
#include "launch.cuh"

namespace simclr::cuda {
namespace {

constexpr int kThreads =
    64;  // 256 samples in two views are eight blocks; of larger blocks fewer multiprocessors would draw
constexpr int kQuads = sizeof(AugmentParams) / sizeof(int4);

// Where quad q of thread t's parameters waits in shared memory: eight neighbouring lanes meet all banks, both when each
// writes its own and when they read in order.
__device__ __forceinline__ int quad_slot(int t, int q) { return t * kQuads + (q ^ (t / 2 % kQuads)); }

__global__ void __launch_bounds__(kThreads) augment_sample_kernel(AugmentSampleArgs args) {
  __shared__ int4 quads[kThreads * kQuads];
  const int64_t count = static_cast<int64_t>(args.views) * args.batch;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads, mine = first + threadIdx.x;
  if (mine < count) {
    const int32_t view = static_cast<int32_t>(mine / args.batch), sample = static_cast<int32_t>(mine % args.batch);
    const int64_t* row = args.ragged == nullptr ? nullptr : args.ragged + static_cast<int64_t>(sample) * kRaggedColumns;
    const int32_t height = row == nullptr ? args.height : static_cast<int32_t>(row[kRaggedHeight]);
    const int32_t width = row == nullptr ? args.width : static_cast<int32_t>(row[kRaggedWidth]);
    const int64_t number = args.indices == nullptr ? sample : args.indices[sample];
    const AugmentParams p = sample_augment(args.recipe, static_cast<uint64_t>(*args.seed),
                                           static_cast<uint64_t>(number), static_cast<uint32_t>(view), height, width);
    quads[quad_slot(threadIdx.x, 0)] = make_int4(p.top, p.left, p.height, p.width);
    quads[quad_slot(threadIdx.x, 1)] =
        make_int4(p.flags, p.order, __float_as_int(p.brightness), __float_as_int(p.contrast));
    quads[quad_slot(threadIdx.x, 2)] = make_int4(__float_as_int(p.saturation), __float_as_int(p.hue),
                                                 __float_as_int(p.sigma), __float_as_int(p.solarize_threshold));
    quads[quad_slot(threadIdx.x, 3)] = make_int4(p.resize_height, p.resize_width, p.shift_y, p.shift_x);
  }
  __syncthreads();
  int4* out = reinterpret_cast<int4*>(args.params + first);
  for (int k = threadIdx.x; k < kThreads * kQuads; k += kThreads) {
    if (first + k / kQuads < count) out[k] = quads[quad_slot(k / kQuads, k % kQuads)];
  }
}

}  // namespace

int augment_sample(const AugmentSampleArgs& args, void* stream) {
  const int64_t count = static_cast<int64_t>(args.views) * args.batch;
  return SIMCLR_LAUNCH(augment_sample_kernel, static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                       static_cast<cudaStream_t>(stream), args);
}

}  // namespace simclr::cuda
