// The way out of shared memory: vertical blur or colour, solarize, normalise, convert, and coalesced stores.
#pragma once

#include "augment_filter.cuh"
#include "augment_tile.cuh"

namespace simclr::cuda {

// The bits of four 16-bit elements, the first in the lowest: one 64-bit store.
__device__ __forceinline__ uint64_t pack4(uint16_t a, uint16_t b, uint16_t c, uint16_t d) {
  return static_cast<uint64_t>(static_cast<uint32_t>(d) << 16 | c) << 32 | (static_cast<uint32_t>(b) << 16 | a);
}
__device__ __forceinline__ uint16_t half_bits(float x) { return __half_as_ushort(__float2half_rn(x)); }
__device__ __forceinline__ uint16_t bfloat16_bits(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }

// Writes four neighbouring elements at once; `at` is a multiple of four. __stcg (no hint: stores go past L1 anyhow)
// because nvcc splits the assignment of a float4 into its members.
__device__ __forceinline__ void store4(PixelType type, void* out, int64_t at, const float (&v)[4]) {
  switch (type) {
    case PixelType::kFloat32:
      __stcg(reinterpret_cast<float4*>(static_cast<float*>(out) + at), make_float4(v[0], v[1], v[2], v[3]));
      break;
    case PixelType::kFloat16:
      *reinterpret_cast<uint64_t*>(static_cast<__half*>(out) + at) =
          pack4(half_bits(v[0]), half_bits(v[1]), half_bits(v[2]), half_bits(v[3]));
      break;
    default:
      *reinterpret_cast<uint64_t*>(static_cast<__nv_bfloat16*>(out) + at) =
          pack4(bfloat16_bits(v[0]), bfloat16_bits(v[1]), bfloat16_bits(v[2]), bfloat16_bits(v[3]));
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

// Writes rows (0 to kOutRows) of 32 pixels from (x, y), of which `columns` exist, from the warp's own area of shared
// memory. It holds them as the output does: runs of 32 C elements per row (channels last), or of 32 per row and
// channel.
template <int C>
__device__ __forceinline__ void write_rows(const Block<C>& block, const float* own, int x, int y, int rows,
                                           int columns) {
  const AugmentArgs& args = block.args;
  const int width = args.out_width;
  const int64_t image = static_cast<int64_t>(block.image) * C * args.out_height * width;
  const bool by_four = width % 4 == 0;  // then runs start at multiples of four elements, and are multiples of four long
  const int step = by_four ? 4 : 1;
  for (int k = lane_index() * step; k < kOutRows * kWarp * C; k += kWarp * step) {
    const int row = k / (kWarp * C);
    const int element = args.channels_last ? k % (kWarp * C) : k % kWarp;
    if (row >= rows || element >= (args.channels_last ? columns * C : columns)) continue;
    const int start =
        args.channels_last ? ((y + row) * width + x) * C : (k / kWarp % C * args.out_height + y + row) * width + x;
    if (by_four) {
      float v[4];
      load4(own + k, v);
      store4(args.out_type, args.out, image + start + element, v);
    } else {
      store1(args.out_type, args.out, image + start + element, own[k]);
    }
  }
}

// Writes the tile; its pixels are blurred horizontally, or (without a blur) still need the colour operations from
// `color_begin`. A warp takes kGroupRows rows of 32 columns.
template <int C>
__device__ __forceinline__ void write_tile(const Block<C>& block, int color_begin) {
  const AugmentArgs& args = block.args;
  const View& view = block.view;
  const Tile& tile = block.tile;
  const bool solarized = view.params.flags & kSolarize;
  float* own = block.out_rows + warp_index() * kOutRows * kWarp * C;
  float* slot = own + lane_index() * (args.channels_last ? C : 1);
  const int channel_step = args.channels_last ? 1 : kWarp;
  const Spans spans(tile.width);
  const int units = spans.count * ((tile.height + kGroupRows - 1) / kGroupRows);

  for (int unit = warp_index(); unit < units; unit += warp_count()) {
    const int index = spans.row(unit), first_x = spans.column(unit, index) - lane_index(), y = index * kGroupRows;
    const int columns = min(kWarp, tile.width - first_x), rows = min(kGroupRows, tile.height - y);
    const int x = tile.x + first_x + min(lane_index(), columns - 1);
    Group<C> group;
    if (view.blur_radius > 0) {
      blur_vertically(block, x, tile.y + y, &group);
    } else {
      load_group(block, x, tile.y + y, rows, &group);
      color(view, color_begin, &group);
    }
#pragma unroll
    for (int j = 0; j < kGroupRows; ++j) {
#pragma unroll
      for (int c = 0; c < C; ++c) {
        float value = group.pixel[j].v[c];
        if (solarized) value = solarize(value, view.params.solarize_threshold);
        slot[j % kOutRows * kWarp * C + c * channel_step] = value * args.norm_scale[c] + args.norm_shift[c];
      }
      if (j % kOutRows == kOutRows - 1) {
        const int first = j - (kOutRows - 1);
        __syncwarp();
        write_rows(block, own, tile.x + first_x, tile.y + y + first, rows - first, columns);
        __syncwarp();
      }
    }
  }
}

}  // namespace simclr::cuda
