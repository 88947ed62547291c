// What happens to resized pixels: colour in the drawn order, the mean that contrast needs, and the separable blur.
#pragma once

#include "augment_tile.cuh"
#include "reduce.cuh"

namespace simclr::cuda {

constexpr int kBlurRows = 4;     // output rows of a thread in the vertical blur
constexpr int kBlurColumns = 4;  // neighbouring output columns of a thread in the horizontal blur

template <int C>
__device__ __forceinline__ float grey_of(const Pixel<C>& pixel) {
  if constexpr (C == 1) {
    return pixel.v[0];
  } else {
    return grey(Rgb<float>{pixel.v[0], pixel.v[1], pixel.v[2]});
  }
}

// The jitter operations at positions [begin, end) of the view's list.
template <int C>
__device__ __forceinline__ Pixel<C> jittered(Pixel<C> pixel, const View& view, int begin, int end, float mean) {
  const AugmentParams& p = view.params;
  for (int k = begin; k < end; ++k) {
    const JitterOp op = jitter_op(view.ops, k);
    if constexpr (C == 1) {
      pixel.v[0] = op == kBrightness ? adjust_brightness(pixel.v[0], p.brightness)
                                     : adjust_contrast(pixel.v[0], p.contrast, mean);
    } else {
      Rgb<float> rgb = {pixel.v[0], pixel.v[1], pixel.v[2]};
      switch (op) {
        case kBrightness:
          rgb = adjust_brightness(rgb, p.brightness);
          break;
        case kContrast:
          rgb = adjust_contrast(rgb, p.contrast, mean);
          break;
        case kSaturation:
          rgb = adjust_saturation(rgb, p.saturation);
          break;
        case kHue:
          rgb = adjust_hue(rgb, p.hue);
          break;
      }
      pixel = {{rgb.r, rgb.g, rgb.b}};
    }
  }
  return pixel;
}

// The operations from position `begin` to the end, and the grey conversion.
template <int C>
__device__ __forceinline__ Pixel<C> coloured(Pixel<C> pixel, const View& view, int begin) {
  pixel = jittered(pixel, view, begin, view.op_count, view.contrast_mean);
  if (C == 3 && view.params.flags & kGray) {
    const float value = grey_of(pixel);
#pragma unroll
    for (int c = 0; c < C; ++c) pixel.v[c] = value;
  }
  return pixel;
}

// Runs the operations before contrast over the tile and returns the sum of the grey image after them, in thread 0.
// keep: their results replace the pixels. Ends with a barrier.
template <int C>
__device__ __forceinline__ double sum_before_contrast(const Block<C>& block, bool keep) {
  const Tile& tile = block.tile;
  const View& view = block.view;
  float sum = 0.0f;
  for_each_pixel(tile.x, tile.y, tile.width, tile.height, [&](int x, int y) {
    const Pixel<C> pixel = jittered(block.load(x, y), view, 0, view.contrast_at, 0.0f);
    if (keep && view.contrast_at > 0) block.store(x, y, pixel);
    sum += grey_of(pixel);
  });
  return block_sum(static_cast<double>(sum));
}

// Colours the whole region in place, from operation `begin`.
template <int C>
__device__ __forceinline__ void colour_region(const Block<C>& block, int begin) {
  const Region& region = block.region;
  for_each_pixel(region.left, region.top, region.width(), region.height(),
                 [&](int x, int y) { block.store(x, y, coloured(block.load(x, y), block.view, begin)); });
}

// The normalised weights of the blur, zeros beside them: weight of distance d at d + 3 + halo_columns(), so that the
// blurs may read whole groups of four. The caller has a barrier before they are read.
template <int C>
__device__ __forceinline__ void fill_blur_weights(const Block<C>& block) {
  const int radius = block.view.blur_radius;
  if (radius == 0 || warp_index() != 0) return;
  const float sigma = block.view.params.sigma;
  float sum = 0.0f;
  for (int d = lane_index() - radius; d <= radius; d += kWarp) sum += blur_weight(d, sigma);
  sum = warp_sum(sum);
  for (int k = lane_index(); k < weights_length(block.plan.margin); k += kWarp) {
    const int d = k - 3 - block.view.halo_columns();
    block.weights[k] = d >= -radius && d <= radius ? blur_weight(d, sigma) / sum : 0.0f;
  }
}

// Adds four taps to four neighbouring outputs: value i lies i after the first tap of output 0, so that for output j its
// weight is w[i - j + 3].
__device__ __forceinline__ void add_taps(const float (&value)[4], const float (&w)[8], float (&sum)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] += w[i - j + 3] * value[i];
  }
}

__device__ __forceinline__ void load4(const float* p, float* to) {
  const float4 v = *reinterpret_cast<const float4*>(p);
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
  to[3] = v.w;
}

// Blurs the rows of the region in place, for the tile's columns. A warp owns the rows it works on, several at once
// where a tile is narrow: first it mirrors the image's edges into the margins, then every lane blurs kBlurColumns
// neighbours.
template <int C>
__device__ __forceinline__ void blur_horizontally(const Block<C>& block) {
  const Tile& tile = block.tile;
  const int halo = block.view.halo_columns(), width = block.args.out_width;
  const int lanes_per_row = (tile.width + kBlurColumns - 1) / kBlurColumns;
  const int rows_at_once = kWarp / lanes_per_row;
  const int rows = C * block.region.height();
  const int lane_row = lane_index() / lanes_per_row, lane_column = lane_index() % lanes_per_row;
  // Columns that are read but lie outside the image: [left, 0) and [width, right).
  const int left = tile.x - halo, right = tile.x + lanes_per_row * kBlurColumns + halo;
  const int outside_left = max(-left, 0), outside = outside_left + max(right - width, 0);

  for (int first = warp_index() * rows_at_once; first < rows; first += warp_count() * rows_at_once) {
    const int row = first + lane_row;
    const bool active = lane_row < rows_at_once && row < rows;
    const int channel = row / block.region.height();
    float* origin = block.pixels + channel * block.plane() +
                    (row - channel * block.region.height()) * block.plan.pitch + block.plan.margin;
    if (active) {
      for (int k = lane_column; k < outside; k += lanes_per_row) {
        const int x = k < outside_left ? left + k : width + k - outside_left;
        // Columns that the image's reflection does not reach have weight 0 and need only be numbers.
        const int from = clamp_int(reflected(x, width), block.region.left, block.region.right - 1);
        origin[x - tile.x] = origin[from - tile.x];
      }
    }
    __syncwarp();
    float sum[kBlurColumns] = {};
    if (active) {
      const float* value = origin + lane_column * kBlurColumns - halo;
      float v[4], w[8];
      load4(block.weights, w);
      for (int k = 0; k < 2 * halo + 4; k += 4) {
        load4(block.weights + k + 4, w + 4);
        load4(value + k, v);
        add_taps(v, w, sum);
#pragma unroll
        for (int i = 0; i < 4; ++i) w[i] = w[i + 4];
      }
    }
    __syncwarp();
    if (active) {
      *reinterpret_cast<float4*>(origin + lane_column * kBlurColumns) = make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
  }
}

// Output pixels (x, y) .. (x, y + 3), blurred vertically; rows below the tile hold some other row's pixels.
template <int C>
__device__ __forceinline__ void blur_vertically(const Block<C>& block, int x, int y, Pixel<C> (&out)[kBlurRows]) {
  const int radius = block.view.blur_radius, height = block.args.out_height;
  const int bottom = block.tile.y + block.tile.height - 1 + radius;  // the last row that any pixel of the tile needs
  const float* weights = block.weights + block.view.halo_columns() - radius;
  float sum[C][kBlurRows] = {};
  float w[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) w[i] = weights[i];
  for (int k = 0; k < 2 * radius + 4; k += 4) {
    float v[C][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[i + 4] = weights[k + 4 + i];
      const float* pixel = block.at(x, reflected(min(y - radius + k + i, bottom), height));
#pragma unroll
      for (int c = 0; c < C; ++c) v[c][i] = pixel[c * block.plane()];
    }
#pragma unroll
    for (int c = 0; c < C; ++c) add_taps(v[c], w, sum[c]);
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = w[i + 4];
  }
#pragma unroll
  for (int j = 0; j < kBlurRows; ++j) {
#pragma unroll
    for (int c = 0; c < C; ++c) out[j].v[c] = sum[c][j];
  }
}

}  // namespace simclr::cuda
