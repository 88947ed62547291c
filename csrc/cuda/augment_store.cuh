// The way out of shared memory: vertical blur or colour, solarize, normalise, convert, and coalesced stores.
#pragma once

#include "augment_filter.cuh"
#include "augment_tile.cuh"

namespace simclr::cuda {

__device__ __forceinline__ uint32_t pack_half(float a, float b) {
  return static_cast<uint32_t>(__half_as_ushort(__float2half_rn(b))) << 16 | __half_as_ushort(__float2half_rn(a));
}
__device__ __forceinline__ uint32_t pack_bfloat16(float a, float b) {
  return static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(b))) << 16 |
         __bfloat16_as_ushort(__float2bfloat16_rn(a));
}

// Writes four neighbouring elements at once; `at` is a multiple of four.
__device__ __forceinline__ void store4(PixelType type, void* out, int64_t at, const float4& v) {
  switch (type) {
    case PixelType::kFloat32:
      *reinterpret_cast<float4*>(static_cast<float*>(out) + at) = v;
      break;
    case PixelType::kFloat16:
      *reinterpret_cast<uint2*>(static_cast<__half*>(out) + at) = make_uint2(pack_half(v.x, v.y), pack_half(v.z, v.w));
      break;
    default:
      *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(out) + at) =
          make_uint2(pack_bfloat16(v.x, v.y), pack_bfloat16(v.z, v.w));
  }
}

__device__ __forceinline__ void store1(PixelType type, void* out, int64_t at, float v) {
  switch (type) {
    case PixelType::kFloat32:
      static_cast<float*>(out)[at] = v;
      break;
    case PixelType::kFloat16:
      static_cast<__half*>(out)[at] = __float2half_rn(v);
      break;
    default:
      static_cast<__nv_bfloat16*>(out)[at] = __float2bfloat16_rn(v);
  }
}

// Writes `rows` rows of 32 pixels from (x, y), of which `columns` exist, from the warp's own area of shared memory. It
// holds them as the output does: runs of 32 C elements per row (channels last), or of 32 per row and channel.
template <int C>
__device__ __forceinline__ void write_rows(const Block<C>& block, const float* own, int x, int y, int rows,
                                           int columns) {
  const AugmentArgs& args = block.args;
  const int64_t height = args.out_height, width = args.out_width;
  const bool by_four =
      width % 4 == 0;  // then every run starts at a multiple of four elements and has a multiple of four
  const int step = by_four ? 4 : 1;
  for (int k = lane_index() * step; k < kOutRows * kWarp * C; k += kWarp * step) {
    int row, element;
    int64_t start;
    bool exists;
    if (args.channels_last) {
      row = k / (kWarp * C);
      element = k % (kWarp * C);
      start = ((block.out_image * height + y + row) * width + x) * C;
      exists = element < columns * C;
    } else {
      row = k / (kWarp * C);
      element = k % kWarp;
      start = ((block.out_image * C + k / kWarp % C) * height + y + row) * width + x;
      exists = element < columns;
    }
    if (!exists || row >= rows) continue;
    if (by_four) {
      store4(args.out_type, args.out, start + element, *reinterpret_cast<const float4*>(own + k));
    } else {
      store1(args.out_type, args.out, start + element, own[k]);
    }
  }
}

// Writes the tile; its pixels are blurred horizontally, or (without a blur) still need the colour operations from
// `colour_begin`. A warp takes kBlurRows rows of 32 columns.
template <int C>
__device__ __forceinline__ void write_tile(const Block<C>& block, int colour_begin) {
  const AugmentArgs& args = block.args;
  const View& view = block.view;
  const Tile& tile = block.tile;
  const bool solarized = view.params.flags & kSolarize;
  float* own = block.out_rows + warp_index() * kOutRows * kWarp * C;
  const int pixel_step = args.channels_last ? C : 1, channel_step = args.channels_last ? 1 : kWarp;
  const int spans = (tile.width + kWarp - 1) / kWarp, groups = (tile.height + kBlurRows - 1) / kBlurRows;

  for (int unit = warp_index(); unit < spans * groups; unit += warp_count()) {
    const int first_x = tile.x + unit % spans * kWarp, y = tile.y + unit / spans * kBlurRows;
    const int columns = min(kWarp, tile.x + tile.width - first_x), rows = min(kBlurRows, tile.y + tile.height - y);
    const int x = first_x + min(lane_index(), columns - 1);
    Pixel<C> pixel[kBlurRows];
    if (view.blur_radius > 0) {
      blur_vertically(block, x, y, pixel);
    } else {
#pragma unroll
      for (int j = 0; j < kBlurRows; ++j) {
        pixel[j] = coloured(block.load(x, y + min(j, rows - 1)), view, colour_begin);
      }
    }
#pragma unroll
    for (int j = 0; j < kBlurRows; ++j) {
#pragma unroll
      for (int c = 0; c < C; ++c) {
        float value = pixel[j].v[c];
        if (solarized) value = solarize(value, view.params.solarize_threshold);
        own[j % kOutRows * kWarp * C + lane_index() * pixel_step + c * channel_step] =
            value * args.norm_scale[c] + args.norm_shift[c];
      }
      if (j % kOutRows == kOutRows - 1) {
        __syncwarp();
        write_rows(block, own, first_x, y + j - (kOutRows - 1), rows - (j - (kOutRows - 1)), columns);
        __syncwarp();
      }
    }
  }
}

}  // namespace simclr::cuda
