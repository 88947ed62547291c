// A block's share of one augmented view: which output pixels it owns, and where they live in shared memory.
//
// A block resizes its tile of the output, with a halo where the view is blurred, into a buffer of floats in shared
// memory. Colour and the horizontal blur work in place there; the vertical blur, solarize and normalise happen on the
// way out (augment_store.cuh). Small outputs are one tile. Shared memory, in this order:
//   pixels   [C][rows][pitch] floats; output pixel (x, y) is at column x - tile.x + margin, row y - region.top
//   weights  of the blur
//   scratch  while resizing: tap tables, resized source rows, staged source bytes (augment_resize.cuh);
//            afterwards: each warp's output rows (augment_store.cuh)
#pragma once

#include "../augment_color.h"
#include "../augment_launch.h"
#include "../augment_params.h"
#include "../augment_resample.h"
#include "augment_plan.h"
#include "launch.cuh"

namespace simclr::cuda {

// Where resized column or row i of the output comes from.
struct Taps {
  int32_t first, end;  // crop pixels
  float centre;
  float scale;  // 1 / sum of the weights; for columns also the factor that brings a pixel to [0, 1]
};
static_assert(sizeof(Taps) == kTapsBytes, "the plan counts as many");

struct Tile {
  int32_t x, y, width, height;
};

// Output pixels that the block computes: the tile and its halo, as far as the output reaches.
struct Region {
  int32_t left, top, right, bottom;
  __device__ __forceinline__ int32_t width() const { return right - left; }
  __device__ __forceinline__ int32_t height() const { return bottom - top; }
};

// What thread 0 works out for the block.
struct View {
  AugmentParams params;  // made safe
  ImageView source;
  ResizeAxis x, y;
  uint32_t ops;         // the jitter operations that change something, four bits each, the first in the lowest
  int32_t op_count;     // 0 without jitter
  int32_t contrast_at;  // the position of contrast among them, else op_count
  int32_t blur_radius;  // 0 without blur
  float contrast_mean;

  __device__ __forceinline__ bool has_contrast() const { return contrast_at < op_count; }
  // The halo's columns; the blur reads whole groups of four.
  __device__ __forceinline__ int32_t halo_columns() const { return (blur_radius + 3) / 4 * 4; }
};

template <int C>
struct Pixel {
  float v[C];
};

// Everything a phase of the kernel needs. The pointers are the areas of shared memory named above.
template <int C>
struct Block {
  const AugmentArgs& args;
  const AugmentPlan& plan;
  const View& view;
  Tile tile;
  Region region;
  int64_t out_image;  // index into the output
  float* pixels;
  float* weights;
  Taps* columns;        // [region.width()]
  Taps* lines;          // [region.height()]
  float* resized_rows;  // [kChunkRows][C][pitch]
  char* staged;         // [kChunkRows][staged_row_bytes]
  float* out_rows;      // [warps][kOutRows][kWarp * C], over the scratch of the resize

  __device__ __forceinline__ int plane() const { return plan.rows * plan.pitch; }
  // Channel 0 of output pixel (x, y); the next channel is plane() further.
  __device__ __forceinline__ float* at(int x, int y) const {
    return pixels + (y - region.top) * plan.pitch + (x - tile.x + plan.margin);
  }
  __device__ __forceinline__ Pixel<C> load(int x, int y) const {
    const float* p = at(x, y);
    Pixel<C> pixel;
#pragma unroll
    for (int c = 0; c < C; ++c) pixel.v[c] = p[c * plane()];
    return pixel;
  }
  __device__ __forceinline__ void store(int x, int y, const Pixel<C>& pixel) const {
    float* p = at(x, y);
#pragma unroll
    for (int c = 0; c < C; ++c) p[c * plane()] = pixel.v[c];
  }
};

__device__ __forceinline__ int warp_index() { return threadIdx.x / kWarp; }
__device__ __forceinline__ int lane_index() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warp_count() { return blockDim.x / kWarp; }

// Calls f(x, y) for every pixel of the rectangle; a warp takes 32 neighbours of a row.
template <class F>
__device__ __forceinline__ void for_each_pixel(int left, int top, int width, int height, const F& f) {
  const int spans = (width + kWarp - 1) / kWarp;
  for (int unit = warp_index(); unit < spans * height; unit += warp_count()) {
    const int x = unit % spans * kWarp + lane_index();
    if (x < width) f(left + x, top + unit / spans);
  }
}

// The jitter's operations without those that leave every image as it is.
__device__ inline void list_jitter_ops(int channels, View* view) {
  const AugmentParams& p = view->params;
  const uint32_t sequence = jitter_sequence(p.order);
  view->ops = 0;
  view->op_count = 0;
  view->contrast_at = -1;
  if (p.flags & kJitter) {
    for (int k = 0; k < kJitterOps; ++k) {
      const JitterOp op = jitter_op(sequence, k);
      const bool needs_colour = op == kSaturation || op == kHue;
      const float factor = op == kBrightness ? p.brightness : op == kContrast ? p.contrast : p.saturation;
      const bool neutral = op == kHue ? p.hue == 0.0f : factor == 1.0f;
      if (neutral || (needs_colour && channels == 1)) continue;
      if (op == kContrast) view->contrast_at = view->op_count;
      view->ops |= static_cast<uint32_t>(op) << (4 * view->op_count++);
    }
  }
  if (view->contrast_at < 0) view->contrast_at = view->op_count;
}

// Which tile of which view this block owns. Blocks of one sample's views are neighbours: they read the same image.
struct BlockIndex {
  int32_t tile, view;
  int64_t sample;
};

__device__ __forceinline__ BlockIndex block_index(const AugmentArgs& args, const AugmentPlan& plan) {
  const unsigned tiles = plan.tiles_x * plan.tiles_y;
  const unsigned owner = blockIdx.x / tiles;
  return {static_cast<int32_t>(blockIdx.x % tiles), static_cast<int32_t>(owner % args.views), owner / args.views};
}

// Fills *view (in shared memory); the caller has a barrier before it reads it.
__device__ inline void read_view(const AugmentArgs& args, const BlockIndex& index, View* view) {
  if (threadIdx.x != 0) return;
  view->source = image_at(args.images, index.sample);
  const AugmentParams p = made_safe(args.params[index.view * static_cast<int64_t>(args.batch) + index.sample],
                                    view->source.height, view->source.width, args.out_height, args.out_width);
  view->params = p;
  view->x = resize_axis(p.width, p.resize_width);
  view->y = resize_axis(p.height, p.resize_height);
  view->blur_radius = p.flags & kBlur ? blur_radius(p.sigma, args.blur_kernel) : 0;
  list_jitter_ops(args.images.channels, view);
}

// The block's tile, and its areas of the dynamic shared memory. with_halo: the tile will be blurred.
template <int C>
__device__ __forceinline__ Block<C> make_block(const AugmentArgs& args, const AugmentPlan& plan, const View& view,
                                               const BlockIndex& index, bool with_halo, char* shared) {
  Tile tile;
  tile.x = index.tile % plan.tiles_x * plan.tile_width;
  tile.y = index.tile / plan.tiles_x * plan.tile_height;
  tile.width = min(plan.tile_width, args.out_width - tile.x);
  tile.height = min(plan.tile_height, args.out_height - tile.y);
  const int halo_x = with_halo ? view.halo_columns() : 0, halo_y = with_halo ? view.blur_radius : 0;
  const Region region = {max(tile.x - halo_x, 0), max(tile.y - halo_y, 0),
                         min(tile.x + tile.width + halo_x, args.out_width),
                         min(tile.y + tile.height + halo_y, args.out_height)};

  float* pixels = reinterpret_cast<float*>(shared);
  float* weights = pixels + C * plan.rows * plan.pitch;
  float* scratch = weights + weights_length(plan.margin);
  Taps* columns = reinterpret_cast<Taps*>(scratch);
  Taps* lines = columns + plan.pitch;
  float* resized_rows = reinterpret_cast<float*>(lines + plan.rows);
  char* staged = reinterpret_cast<char*>(resized_rows + kChunkRows * C * plan.pitch);
  const int64_t out_image = index.view * static_cast<int64_t>(args.batch) + index.sample;
  return {args, plan, view, tile, region, out_image, pixels, weights, columns, lines, resized_rows, staged, scratch};
}

}  // namespace simclr::cuda
