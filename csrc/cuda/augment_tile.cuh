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
#include "ptx.cuh"

namespace simclr {

#if defined(__CUDA_ARCH__) || !defined(__CUDACC__)
// On the device two instructions, instead of two comparisons and two selections.
template <>
HOST_DEVICE float clamp01(float x) {
  return ptx::max_or_nan(ptx::min_or_nan(x, 1.0f), 0.0f);
}
#endif

}  // namespace simclr

namespace simclr::cuda {

// Where resized column or row i of the output comes from.
struct Taps {
  int32_t first, end;  // crop pixels
  float centre;
  float scale;  // 1 / sum of the weights; for columns also the factor that brings a pixel to [0, 1]
};
static_assert(sizeof(Taps) == kTapsBytes, "the plan counts as many");

// Taps in shared memory, one array per member: lanes that read neighbouring taps meet all banks.
struct TapTable {
  float* words;  // [4][capacity]
  int32_t capacity;
  __device__ __forceinline__ void set(int i, const Taps& taps) const {
    words[i] = __int_as_float(taps.first);
    words[i + capacity] = __int_as_float(taps.end);
    words[i + 2 * capacity] = taps.centre;
    words[i + 3 * capacity] = taps.scale;
  }
  __device__ __forceinline__ Taps operator[](int i) const {
    return {__float_as_int(words[i]), __float_as_int(words[i + capacity]), words[i + 2 * capacity],
            words[i + 3 * capacity]};
  }
};

struct Tile {
  int32_t x, y, width, height;
};

// Output pixels that the block computes: the tile and its halo, as far as the output reaches.
struct Region {
  int32_t left, top, right, bottom;
  __device__ __forceinline__ int32_t width() const { return right - left; }
  __device__ __forceinline__ int32_t height() const { return bottom - top; }
};

// The view's crop in device memory; strides in bytes. A run is a piece of a row that is contiguous there: all channels
// of interleaved pixels, or one channel.
struct Source {
  const char* crop;  // pixel (top, left), channel 0
  int64_t stride_c, stride_h, stride_w;
  int32_t image_width;  // the whole image's
  int32_t element;      // bytes
  bool interleaved, contiguous;
  int32_t runs_per_row, run_pixel;  // run_pixel: bytes from pixel to pixel within a run
};

// What thread 0 works out for the block.
struct View {
  AugmentParams params;  // made safe
  Source source;
  ResizeAxis x, y;
  uint32_t ops;         // the jitter operations that change something, four bits each, the first in the lowest
  int32_t op_count;     // 0 without jitter
  int32_t contrast_at;  // the position of contrast among them, else op_count
  int32_t blur_radius;  // 0 without blur
  Tile tile;
  Region region;
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
  const Tile& tile;
  const Region& region;
  int32_t image;  // of the output
  float* pixels;
  float* weights;
  TapTable columns;     // [region.width()]
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

// Work in units of (row, 32 columns): unit u is columns 32 (u % spans).. of row u / spans, without a division.
struct Spans {
  int32_t count;
  uint32_t reciprocal;  // of count, times 2^16, rounded up: exact for fewer than 2^16 / count units
  __device__ __forceinline__ explicit Spans(int width)
      : count((width + kWarp - 1) / kWarp), reciprocal((65536u + count - 1) / count) {}
  __device__ __forceinline__ int row(int unit) const { return static_cast<int>(unit * reciprocal >> 16); }
  __device__ __forceinline__ int column(int unit, int row) const { return (unit - row * count) * kWarp + lane_index(); }
};

// Rows of pixels that a thread colours or blurs together: one branch on the next operation serves them all, and a tap
// of the vertical blur that is read once serves up to four outputs.
constexpr int kGroupRows = 4;

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
      const bool needs_color = op == kSaturation || op == kHue;
      const float factor = op == kBrightness ? p.brightness : op == kContrast ? p.contrast : p.saturation;
      const bool neutral = op == kHue ? p.hue == 0.0f : factor == 1.0f;
      if (neutral || (needs_color && channels == 1)) continue;
      if (op == kContrast) view->contrast_at = view->op_count;
      view->ops |= static_cast<uint32_t>(op) << (4 * view->op_count++);
    }
  }
  if (view->contrast_at < 0) view->contrast_at = view->op_count;
}

// Which tile of which view this block owns. Blocks of one sample's views are neighbours: they read the same image.
struct BlockIndex {
  int32_t tile, view, sample;
  int32_t image;  // of the output
};

__device__ __forceinline__ BlockIndex block_index(const AugmentArgs& args, const AugmentPlan& plan) {
  const unsigned tiles = plan.tiles_x * plan.tiles_y, owner = blockIdx.x / tiles;
  const int32_t view = static_cast<int32_t>(owner % args.views), sample = static_cast<int32_t>(owner / args.views);
  return {static_cast<int32_t>(blockIdx.x % tiles), view, sample, view * args.batch + sample};
}

__device__ inline Source crop_source(const ImageBatch& images, const ImageView& image, const AugmentParams& p) {
  Source s;
  s.element = pixel_bytes(images.type);
  s.stride_c = image.stride_c * s.element;
  s.stride_h = image.stride_h * s.element;
  s.stride_w = image.stride_w * s.element;
  s.image_width = image.width;
  s.interleaved = images.channels > 1 && image.stride_c == 1 && image.stride_w == images.channels;
  s.contiguous = s.interleaved || image.stride_w == 1;
  s.runs_per_row = s.interleaved ? 1 : images.channels;
  s.run_pixel = s.interleaved ? images.channels * s.element : s.element;
  s.crop = static_cast<const char*>(image.data) + p.top * s.stride_h + p.left * s.stride_w;
  return s;
}

// Fills *view (in shared memory); the caller has a barrier before it reads it. with_halo: a blurred tile gets its halo.
__device__ inline void read_view(const AugmentArgs& args, const AugmentPlan& plan, const BlockIndex& index,
                                 bool with_halo, View* view) {
  if (warp_index() != 0) return;
  constexpr int kWords = sizeof(AugmentParams) / sizeof(int32_t);
  if (lane_index() < kWords) {  // one request of 64 bytes
    reinterpret_cast<int32_t*>(&view->params)[lane_index()] =
        reinterpret_cast<const int32_t*>(args.params + index.image)[lane_index()];
  }
  __syncwarp();
  if (lane_index() != 0) return;
  const ImageView image = image_at(args.images, index.sample);
  const AugmentParams p = made_safe(view->params, image.height, image.width, args.out_height, args.out_width);
  view->params = p;
  view->source = crop_source(args.images, image, p);
  view->x = resize_axis(p.width, p.resize_width);
  view->y = resize_axis(p.height, p.resize_height);
  view->blur_radius = p.flags & kBlur ? blur_radius(p.sigma, args.blur_kernel) : 0;
  view->contrast_mean = 0.0f;
  list_jitter_ops(args.images.channels, view);

  const int x = index.tile % plan.tiles_x * plan.tile_width, y = index.tile / plan.tiles_x * plan.tile_height;
  const int right = min(x + plan.tile_width, args.out_width), bottom = min(y + plan.tile_height, args.out_height);
  const int halo_x = with_halo ? view->halo_columns() : 0, halo_y = with_halo ? view->blur_radius : 0;
  view->tile = {x, y, right - x, bottom - y};
  view->region = {max(x - halo_x, 0), max(y - halo_y, 0), min(right + halo_x, args.out_width),
                  min(bottom + halo_y, args.out_height)};
}

// The block's areas of the dynamic shared memory.
template <int C>
__device__ __forceinline__ Block<C> make_block(const AugmentArgs& args, const AugmentPlan& plan, const View& view,
                                               const BlockIndex& index, char* shared) {
  float* pixels = reinterpret_cast<float*>(shared);
  float* weights = pixels + C * plan.rows * plan.pitch;
  float* scratch = weights + weights_length(plan.margin);
  const TapTable columns = {scratch, plan.pitch};
  Taps* lines = reinterpret_cast<Taps*>(scratch + 4 * plan.pitch);
  float* resized_rows = reinterpret_cast<float*>(lines + plan.rows);
  char* staged = reinterpret_cast<char*>(resized_rows + kChunkRows * C * plan.pitch);
  return {args,    plan,    view,  view.tile,    view.region, index.image, pixels,
          weights, columns, lines, resized_rows, staged,      scratch};
}

}  // namespace simclr::cuda
