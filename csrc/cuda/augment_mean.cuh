// The sum of a tile's grey image straight from the crop, where contrast is the first operation of the jitter.
//
// Resizing and grey are linear, and nothing has clamped yet, so that the sum over the tile's pixels (y, x) is
//   sum_y sum_x sum_i sum_j a_yi b_xj gray(i, j) = sum_i A_i sum_j B_j gray(i, j),   A_i = sum_y a_yi, B_j = sum_x b_xj,
// with the tap weights a, b of augment_resample.h: every source pixel is read once, and no output pixel is made.
#pragma once

#include "augment_filter.cuh"
#include "augment_resize.cuh"

namespace simclr::cuda {

// What crop pixel k weighs in the sum over outputs [0, count) of an axis. Output i shows position i + shift of the
// resized crop, with the centre and scale of taps_of(i).
template <class TapsOf>
__device__ __forceinline__ float weight_in_sum(const ResizeAxis& axis, int k, int shift, int count,
                                               const TapsOf& taps_of) {
  // Output i has pixel k among its taps where |k + 1/2 - scale (i + shift + 1/2)| < support. One more on each side,
  // which weighs nothing, allows for rounding. Clamped before they are integers: a drawn size may be anything.
  const float at = (static_cast<float>(k) + 0.5f) / axis.scale - 0.5f - static_cast<float>(shift);
  const float reach = axis.support / axis.scale, most = static_cast<float>(count);
  const int begin = static_cast<int>(fminf(fmaxf(floorf(at - reach), 0.0f), most));
  const int end = static_cast<int>(fminf(fmaxf(ceilf(at + reach) + 1.0f, 0.0f), most));
  float sum = 0.0f;
#pragma unroll 1
  for (int i = begin; i < end; ++i) {
    const Taps taps = taps_of(i);
    sum += tap_weight(axis, taps.centre, k) * taps.scale;
  }
  return sum;
}

// The sum of column_weights[j] row_weights[i] gray(i, j) over this thread's pixels of the staged chunk. A warp takes
// whole rows.
template <class T, int C>
__device__ __forceinline__ float weighted_gray(const Block<C>& block, const Chunk& chunk, const float* column_weights,
                                               const float* row_weights) {
  const Source& s = block.view.source;
  const int step = s.run_pixel / static_cast<int>(sizeof(T));
  float sum = 0.0f;
#pragma unroll 1
  for (int row = warp_index(); row < chunk.rows; row += warp_count()) {
    const T* pixels[C];
#pragma unroll
    for (int c = 0; c < C; ++c) pixels[c] = staged_pixels<T>(block, s, chunk, row, c);
    float of_row = 0.0f;
#pragma unroll 1  // two would spill
    for (int column = lane_index(); column < chunk.columns; column += kWarp) {
      Pixel<C> pixel;
#pragma unroll
      for (int c = 0; c < C; ++c) pixel.v[c] = to_float(pixels[c][column * step]);
      of_row += column_weights[column] * gray_of(pixel);
    }
    sum += row_weights[row] * of_row;
  }
  return sum;
}

// The sum of the grey image over the tile, in thread 0. The flip is left out: it moves pixels between tiles, and the
// sums of all tiles are added up.
template <int C>
__device__ __forceinline__ double sum_of_crop(const Block<C>& block) {
  const View& view = block.view;
  float* column_weights = block.resized_rows;             // [at most kStagedRowBytes]
  float* row_weights = column_weights + kStagedRowBytes;  // [kChunkRows]
  fill_tap_tables(block, false);
  const Reach reach = reach_of(block);
  double sum = 0.0;
  for (int column = reach.first_column; column < reach.end_column; column += reach.columns_at_once) {
    const int columns = min(reach.columns_at_once, reach.end_column - column);
    for (int k = threadIdx.x; k < columns; k += blockDim.x) {
      column_weights[k] = weight_in_sum(view.x, column + k, block.region.left + view.params.shift_x,
                                        block.region.width(), [&](int i) { return block.columns[i]; });
    }
    for (int row = reach.first_row; row < reach.end_row; row += kChunkRows) {
      const Chunk chunk = {row, min(kChunkRows, reach.end_row - row), column, columns};
      stage(block, view.source, chunk);
      const int k = blockDim.x - 1 - threadIdx.x;  // the last warp: the first ones are busy with columns
      if (k < chunk.rows) {
        row_weights[k] = weight_in_sum(view.y, row + k, block.region.top + view.params.shift_y, block.region.height(),
                                       [&](int i) { return block.lines[i]; });
      }
      __syncthreads();
      with_pixel_type(block.args.images.type, [&](auto pixel) {
        sum += static_cast<double>(weighted_gray<decltype(pixel)>(block, chunk, column_weights, row_weights));
      });
      __syncthreads();
    }
  }
  return block_sum(sum);
}

}  // namespace simclr::cuda
