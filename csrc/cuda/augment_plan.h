// How the CUDA augmentation cuts the output into blocks and their shared memory into areas. Host code without CUDA.
#pragma once

#include <initializer_list>

#include "../augment_launch.h"

namespace simclr::cuda {

constexpr int kWarp = 32;
// Two blocks of 384 threads leave a thread 80 registers; of 512 they would leave 64, and kernels spill.
constexpr int kMaxThreads = 384;
// Source rows that are staged and resized at a time, between two barriers. With 17, two blocks of a tile with 23 taps
// of blur no longer share a multiprocessor (kTileWidth).
constexpr int kChunkRows = 16;
constexpr int kSectorBytes = 32;  // what device memory is read by
// Most bytes of a source row staged at a time: whole sectors of 1 or 3 channels. One sector more, and two blocks of a
// tile with 23 taps no longer share a multiprocessor.
constexpr int kStagedRowBytes = 384;
// Output rows that a warp lays out before it writes them, over the resize's scratch. Four would outgrow it where views
// are 32 x 32.
constexpr int kOutRows = 2;
constexpr int kTapsBytes = 16;  // of a tap table's entry

// Floats of the blur's weight table: see fill_blur_weights.
constexpr int weights_length(int margin) { return 2 * margin + 12; }

struct AugmentPlan {
  int32_t tile_width, tile_height;  // output pixels
  int32_t tiles_x, tiles_y;         // per view
  int32_t margin;                   // columns on each side of the tile: the blur's radius, rounded up to four
  int32_t pitch, rows;              // of the pixel buffer, halo included; pitch is a multiple of four
  int32_t staged_row_bytes;
  int32_t threads, shared_bytes;
};

// The launches of one call; a plan with 0 threads is not launched. All 0: no tile fits with this blur_kernel.
struct AugmentPlans {
  AugmentPlan whole, mean, tile;
};

namespace plan_detail {

// Output pixels a side of a view that one block may own: 149,200 bytes of shared memory with three channels, of the
// 166,912 that sm_80 has. At 104 they would be 182,640.
constexpr int kLargestWhole = 96;
// Two such blocks share a multiprocessor of sm_80 (164 KiB, of which it keeps 1 KiB per block) beside their static
// View.
constexpr int kSharedForTwoBlocks = 81 * 1024 - 464;
// With three channels and the halo of 23 taps (the recipe at 224) it takes exactly kSharedForTwoBlocks: one row or four
// columns more, and one block has the multiprocessor to itself.
constexpr int kTileWidth = 64, kTileHeight = 32;
// Of the mean, which has no halo: wide, to cut fewer sectors in two, and low enough for two blocks to share (33 rows
// are too many).
constexpr int kMeanTileWidth = 128, kMeanTileHeight = 28;
// Pixels of a tile from which on it takes kMaxThreads: a thread then has five or more. Smaller ones take kFewThreads.
constexpr int kPixelsForMaxThreads = 2048;
constexpr int kFewThreads = 256;

inline int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

// Bytes of a staged source row: no more than the widest crop needs, where the host knows the images' width. A run may
// start anywhere in a sector, and is staged by whole ones.
inline int staged_row_bytes(const ImageBatch& images) {
  if (images.ragged != nullptr || images.width > kStagedRowBytes) return kStagedRowBytes;
  const int run = images.width * pixel_bytes(images.type) + kSectorBytes - 1;
  const int needed = images.channels * round_up(run, kSectorBytes);
  return needed < kStagedRowBytes ? needed : kStagedRowBytes;
}

// half: the blur's largest radius. whole: the tile is the view, and has no halo.
inline AugmentPlan make_plan(const AugmentArgs& args, int width, int height, int half, bool whole) {
  AugmentPlan plan;
  plan.tile_width = width;
  plan.tile_height = height;
  plan.tiles_x = (args.out_width + width - 1) / width;
  plan.tiles_y = (args.out_height + height - 1) / height;
  plan.margin = round_up(half, 4);
  plan.pitch = round_up(width, 4) + 2 * plan.margin;
  plan.rows = whole ? height : height + 2 * half;
  plan.threads = width * height >= kPixelsForMaxThreads ? kMaxThreads : kFewThreads;
  plan.staged_row_bytes = staged_row_bytes(args.images);
  const int channels = args.images.channels, row = channels * plan.pitch * static_cast<int>(sizeof(float));
  const int resize = (plan.pitch + plan.rows) * kTapsBytes + kChunkRows * (row + plan.staged_row_bytes);
  const int out_rows = plan.threads * kOutRows * channels * static_cast<int>(sizeof(float));
  plan.shared_bytes = plan.rows * row + weights_length(plan.margin) * static_cast<int>(sizeof(float)) +
                      (resize > out_rows ? resize : out_rows);
  return plan;
}

}  // namespace plan_detail

// The plan of the pass that sums for contrast. Does not depend on the device: the caller sizes its scratch by it.
inline AugmentPlan mean_plan(const AugmentArgs& args) {
  return plan_detail::make_plan(args, plan_detail::kMeanTileWidth, plan_detail::kMeanTileHeight, 0, false);
}

// shared_limit: bytes that the device lets a block have.
inline AugmentPlans augment_plans(const AugmentArgs& args, int shared_limit) {
  using namespace plan_detail;
  const int half = args.blur_kernel / 2;
  AugmentPlans plans{};
  if (args.out_width <= kLargestWhole && args.out_height <= kLargestWhole) {
    const AugmentPlan whole = make_plan(args, args.out_width, args.out_height, half, true);
    if (whole.shared_bytes <= shared_limit) {
      plans.whole = whole;
      return plans;
    }
  }
  // The largest tile of which two blocks share a multiprocessor, else the largest that fits. With three channels two
  // blocks share up to 23, 37, 45, 49 and 49 taps of blur; one alone on sm_86 fits up to 33, 49, 55, 57 and 61.
  const int sizes[][2] = {{kTileWidth, kTileHeight}, {32, 32}, {32, 16}, {32, 8}, {32, 4}};
  for (const int limit : {shared_limit < kSharedForTwoBlocks ? shared_limit : kSharedForTwoBlocks, shared_limit}) {
    for (const auto& size : sizes) {
      const AugmentPlan tile = make_plan(args, size[0], size[1], half, false);
      if (tile.shared_bytes > limit) continue;
      plans.mean = mean_plan(args);
      plans.tile = tile;
      return plans;
    }
  }
  return plans;
}

}  // namespace simclr::cuda
