// The fused augmentation on CUDA: kernels and launches.
//
// Outputs that fit in one block's shared memory take one launch of augment_whole_kernel, a block per view. Larger ones
// are cut into tiles and take two: augment_mean_kernel leaves every tile's sum of the grey image that contrast needs
// (and does nothing for a view without contrast), augment_tile_kernel does everything, resizing and colouring the tile
// again: that is cheaper than a trip of the resized image through device memory.
//
// The steps of a block, where they stand, and what they compute; u is a channel of a pixel, in [0, 1]:
//   1. read_view            augment_tile.cuh    the drawn parameters, made safe; the tile, its halo, the jitter's list
//   2. fill_blur_weights    augment_filter.cuh  w_d = exp(-d^2 / 2 sigma^2) / (their sum over |d| <= radius)
//   3. resize               augment_resize.cuh  u(y, x) = sum_i sum_j a_i b_j source(i, j) / (sum_i a_i sum_j b_j)
//                                               with the tap weights a, b of augment_resample.h
//   4. contrast's mean      augment_filter.cuh  m = the mean of gray(u) over the view, after the operations before it;
//                           augment_mean.cuh    in the mean kernel, where there are none, by weights of source pixels
//   5. color                augment_color.h     in the drawn order, each clamped to [0, 1]: brightness f u, contrast
//                                               f u + (1 - f) m, saturation f u + (1 - f) gray(u), hue; then gray(u)
//   6. blur                 augment_filter.cuh  v(x) = sum_d w_d u(reflected(x + d)), then the same along y
//   7. write_tile           augment_store.cuh   solarize: 1 - u where u >= threshold; u scale + shift, rounded
//
// Every sum is taken in a fixed order: results do not depend on scheduling. Drawn flags are uniform over a block.
#include "augment_filter.cuh"
#include "augment_mean.cuh"
#include "augment_resize.cuh"
#include "augment_store.cuh"
#include "augment_tile.cuh"

namespace simclr::cuda {
namespace {

// One view, whole: contrast's mean is a sum over the block.
template <int C>
__global__ void __launch_bounds__(kMaxThreads, 2) augment_whole_kernel(AugmentArgs args, AugmentPlan plan) {
  extern __shared__ __align__(16) char shared[];
  __shared__ View view;
  const BlockIndex index = block_index(args, plan);
  read_view(args, plan, index, true, &view);  // 1.
  __syncthreads();
  const Block<C> block = make_block<C>(args, plan, view, index, shared);
  fill_blur_weights(block);  // 2.
  resize(block);             // 3.

  int color_begin = 0;
  if (view.has_contrast()) {
    const double sum = sum_before_contrast(block, true);  // 4., with the operations before contrast
    if (threadIdx.x == 0) {
      view.contrast_mean = static_cast<float>(sum / (static_cast<double>(block.tile.width) * block.tile.height));
    }
    __syncthreads();
    color_begin = view.contrast_at;
  }
  if (view.blur_radius > 0) {
    color_region(block, color_begin);  // 5.
    __syncthreads();
    blur_horizontally(block);  // 6., along rows
    __syncthreads();
  }
  write_tile(block, color_begin);  // 6. along columns or, without a blur, 5.; and 7.
}

// contrast_sums [views * batch][tiles]: the sum of each tile's grey image just before contrast.
template <int C>
__global__ void __launch_bounds__(kMaxThreads, 2)
    augment_mean_kernel(AugmentArgs args, AugmentPlan plan, double* contrast_sums) {
  extern __shared__ __align__(16) char shared[];
  __shared__ View view;
  const BlockIndex index = block_index(args, plan);
  read_view(args, plan, index, false, &view);  // 1.
  __syncthreads();
  if (!view.has_contrast()) return;
  const Block<C> block = make_block<C>(args, plan, view, index, shared);
  double sum;  // 4., the tile's part
  if (view.contrast_at == 0) {
    sum = sum_of_crop(block);
  } else {
    resize(block);  // 3.
    sum = sum_before_contrast(block, false);
  }
  if (threadIdx.x == 0) {
    contrast_sums[static_cast<int64_t>(index.image) * plan.tiles_x * plan.tiles_y + index.tile] = sum;
  }
}

// One tile of a view. sums_per_view: tiles of the mean kernel's own plan.
template <int C>
__global__ void __launch_bounds__(kMaxThreads, 2)
    augment_tile_kernel(AugmentArgs args, AugmentPlan plan, const double* contrast_sums, int32_t sums_per_view) {
  extern __shared__ __align__(16) char shared[];
  __shared__ View view;
  const BlockIndex index = block_index(args, plan);
  read_view(args, plan, index, true, &view);  // 1.
  __syncthreads();
  const Block<C> block = make_block<C>(args, plan, view, index, shared);
  fill_blur_weights(block);                        // 2.
  if (view.has_contrast() && warp_index() == 0) {  // 4., from the tiles' parts
    double sum = 0;
    const double* sums = contrast_sums + static_cast<int64_t>(index.image) * sums_per_view;
    for (int k = lane_index(); k < sums_per_view; k += kWarp) sum += sums[k];
    sum = warp_sum(sum);
    if (lane_index() == 0) {
      view.contrast_mean = static_cast<float>(sum / (static_cast<double>(args.out_width) * args.out_height));
    }
  }
  resize(block);  // 3.
  if (view.blur_radius > 0) {
    color_region(block, 0);  // 5.
    __syncthreads();
    blur_horizontally(block);  // 6., along rows
    __syncthreads();
  }
  write_tile(block, 0);  // 6. along columns or, without a blur, 5.; and 7.
}

cudaError_t shared_memory_limit(int* bytes) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

unsigned blocks(const AugmentArgs& args, const AugmentPlan& plan) {
  return static_cast<unsigned>(args.views) * args.batch * plan.tiles_x * plan.tiles_y;
}

template <int C>
int launch(const AugmentArgs& args, double* contrast_sums, cudaStream_t stream) {
  int shared_limit = 0;
  if (const cudaError_t error = shared_memory_limit(&shared_limit); error != cudaSuccess) return error;
  const AugmentPlans plans = augment_plans(args, shared_limit);
  const AugmentPlan &whole = plans.whole, &mean = plans.mean, &tile = plans.tile;
  if (whole.threads > 0) {
    return SIMCLR_LAUNCH(augment_whole_kernel<C>, blocks(args, whole), whole.threads, whole.shared_bytes, stream, args,
                         whole);
  }
  if (tile.threads == 0) return kBlurTooLarge;
  const cudaError_t error = SIMCLR_LAUNCH(augment_mean_kernel<C>, blocks(args, mean), mean.threads, mean.shared_bytes,
                                          stream, args, mean, contrast_sums);
  if (error != cudaSuccess) return error;
  return SIMCLR_LAUNCH(augment_tile_kernel<C>, blocks(args, tile), tile.threads, tile.shared_bytes, stream, args, tile,
                       contrast_sums, mean.tiles_x * mean.tiles_y);
}

}  // namespace

int64_t augment_scratch_doubles(const AugmentArgs& args) {
  const AugmentPlan plan = mean_plan(args);
  return static_cast<int64_t>(args.views) * args.batch * plan.tiles_x * plan.tiles_y;
}

int augment(const AugmentArgs& args, double* contrast_sums, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  return args.images.channels == 1 ? launch<1>(args, contrast_sums, cuda_stream)
                                   : launch<3>(args, contrast_sums, cuda_stream);
}

}  // namespace simclr::cuda
