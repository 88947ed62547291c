// What happens to resized pixels: colour in the drawn order, the mean that contrast needs, and the separable blur.
#pragma once

#include "augment_tile.cuh"
#include "reduce.cuh"

namespace simclr::cuda {

constexpr int kBlurColumns = 4;  // neighbouring output columns of a thread in the horizontal blur: what a float4 holds
static_assert(kBlurColumns == 4 && kGroupRows == 4, "add_taps serves four outputs");

template <int C>
__device__ __forceinline__ float gray_of(const Pixel<C>& pixel) {
  if constexpr (C == 1) {
    return pixel.v[0];
  } else {
    return gray(Rgb<float>{pixel.v[0], pixel.v[1], pixel.v[2]});
  }
}

// Pixels (x, y) .. (x, y + 3); rows from `rows` on repeat the last.
template <int C>
struct Group {
  Pixel<C> pixel[kGroupRows];
};

// The jitter operations at positions [begin, end) of the view's list.
template <int C>
__device__ __forceinline__ void jitter(const View& view, int begin, int end, float mean, Group<C>* group) {
  const AugmentParams& p = view.params;
  const auto for_each = [&](const auto& f) {
#pragma unroll
    for (Pixel<C>& pixel : group->pixel) {
      if constexpr (C == 1) {
        pixel.v[0] = f(pixel.v[0]);
      } else {
        const Rgb<float> rgb = f(Rgb<float>{pixel.v[0], pixel.v[1], pixel.v[2]});
        pixel = {{rgb.r, rgb.g, rgb.b}};
      }
    }
  };
  uint32_t ops = view.ops >> (4 * begin);
  for (int k = begin; k < end; ++k, ops >>= 4) {
    switch (jitter_op(ops, 0)) {
      case kBrightness:
        for_each([&](const auto& x) { return adjust_brightness(x, p.brightness); });
        break;
      case kContrast:
        for_each([&](const auto& x) { return adjust_contrast(x, p.contrast, mean); });
        break;
      case kSaturation:
        if constexpr (C == 3) for_each([&](const auto& x) { return adjust_saturation(x, p.saturation); });
        break;
      case kHue:
        if constexpr (C == 3) for_each([&](const auto& x) { return adjust_hue(x, p.hue); });
        break;
    }
  }
}

// The operations from position `begin` to the end, and the grey conversion.
template <int C>
__device__ __forceinline__ void color(const View& view, int begin, Group<C>* group) {
  jitter(view, begin, view.op_count, view.contrast_mean, group);
  if (C == 3 && view.params.flags & kGray) {
#pragma unroll
    for (Pixel<C>& pixel : group->pixel) {
      const float value = gray_of(pixel);
#pragma unroll
      for (float& channel : pixel.v) channel = value;
    }
  }
}

template <int C>
__device__ __forceinline__ void load_group(const Block<C>& block, int x, int y, int rows, Group<C>* group) {
  const float* p = block.at(x, y);
#pragma unroll
  for (int j = 0; j < kGroupRows; ++j) {
#pragma unroll
    for (int c = 0; c < C; ++c) group->pixel[j].v[c] = p[min(j, rows - 1) * block.plan.pitch + c * block.plane()];
  }
}

template <int C>
__device__ __forceinline__ void store_group(const Block<C>& block, int x, int y, int rows, const Group<C>& group) {
  float* p = block.at(x, y);
#pragma unroll
  for (int j = 0; j < kGroupRows; ++j) {
    if (j >= rows) break;
#pragma unroll
    for (int c = 0; c < C; ++c) p[j * block.plan.pitch + c * block.plane()] = group.pixel[j].v[c];
  }
}

// Calls f(x, y, rows) for every kGroupRows rows of 32 columns of the rectangle, one column per lane.
template <class F>
__device__ __forceinline__ void for_each_group(int left, int top, int width, int height, const F& f) {
  const Spans spans(width);
  const int units = spans.count * ((height + kGroupRows - 1) / kGroupRows);
  for (int unit = warp_index(); unit < units; unit += warp_count()) {
    const int group = spans.row(unit), x = spans.column(unit, group), y = group * kGroupRows;
    if (x < width) f(left + x, top + y, min(kGroupRows, height - y));
  }
}

// Runs the operations before contrast over the tile and returns the sum of the grey image after them, in thread 0.
// keep: their results replace the pixels. Ends with a barrier.
template <int C>
__device__ __forceinline__ double sum_before_contrast(const Block<C>& block, bool keep) {
  const Tile& tile = block.tile;
  const View& view = block.view;
  float sum = 0.0f;
  for_each_group(tile.x, tile.y, tile.width, tile.height, [&](int x, int y, int rows) {
    Group<C> group;
    load_group(block, x, y, rows, &group);
    jitter(view, 0, view.contrast_at, 0.0f, &group);
    if (keep && view.contrast_at > 0) store_group(block, x, y, rows, group);
#pragma unroll
    for (int j = 0; j < kGroupRows; ++j) sum += j < rows ? gray_of(group.pixel[j]) : 0.0f;
  });
  return block_sum(static_cast<double>(sum));
}

// Colours the whole region in place, from operation `begin`.
template <int C>
__device__ __forceinline__ void color_region(const Block<C>& block, int begin) {
  const Region& region = block.region;
  for_each_group(region.left, region.top, region.width(), region.height(), [&](int x, int y, int rows) {
    Group<C> group;
    load_group(block, x, y, rows, &group);
    color(block.view, begin, &group);
    store_group(block, x, y, rows, group);
  });
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

// Blurs the group at (x, y) vertically; rows below the tile hold some other row's pixels.
template <int C>
__device__ __forceinline__ void blur_vertically(const Block<C>& block, int x, int y, Group<C>* group) {
  const int radius = block.view.blur_radius, height = block.args.out_height;
  const int bottom = block.tile.y + block.tile.height - 1 + radius;  // the last row that any pixel of the tile needs
  const float* weights = block.weights + block.view.halo_columns() - radius;
  const float* column = block.at(x, 0);
  float sum[C][kGroupRows] = {};
  float w[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) w[i] = weights[i];
  for (int k = 0; k < 2 * radius + 4; k += 4) {
    float v[C][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[i + 4] = weights[k + 4 + i];
      const float* pixel = column + reflected(min(y - radius + k + i, bottom), height) * block.plan.pitch;
#pragma unroll
      for (int c = 0; c < C; ++c) v[c][i] = pixel[c * block.plane()];
    }
#pragma unroll
    for (int c = 0; c < C; ++c) add_taps(v[c], w, sum[c]);
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = w[i + 4];
  }
#pragma unroll
  for (int j = 0; j < kGroupRows; ++j) {
#pragma unroll
    for (int c = 0; c < C; ++c) group->pixel[j].v[c] = sum[c][j];
  }
}

}  // namespace simclr::cuda
