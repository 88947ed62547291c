// The parameters of one view of one sample: 64 bytes, drawn by augment_sample.h, read by every augmentation kernel.
//
// A parameter tensor is int32 [views, batch, 16]; the floats are stored by their bits. simclr_fast.AugmentParams is
// this struct as a dataclass of tensors, and simclr_fast/ops/augment/params.py mirrors the layout.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace simclr {

enum AugmentFlag : int32_t { kHflip = 1, kJitter = 2, kGray = 4, kBlur = 8, kSolarize = 16 };

// The colour operations of the jitter; an order is an index into itertools.permutations((0, 1, 2, 3)).
enum JitterOp : int32_t { kBrightness = 0, kContrast = 1, kSaturation = 2, kHue = 3 };
constexpr int kJitterOps = 4;
constexpr int kJitterOrders = 24;

// All 16 words are taken, and 16 is what the kernels are cut for: CUDA reads a view's words by one request and writes
// them as four quads (augment_sample.cu), Triton reads a power of two of them and joins them in pairs
// (triton_sample.py). One more parameter goes into bits that are free: flags and order use five each, and a shift and
// a size fit into 16. Name its word in WORDS of params.py, and unpack it in made_safe and in triton_view.py. Draw it
// last in sample_augment (block 12 has a word left), so that a seed keeps drawing what it drew.
struct AugmentParams {
  int32_t top, left, height, width;        // the crop box, in source pixels
  int32_t flags;                           // AugmentFlag bits
  int32_t order;                           // 0..23, the order of the jitter operations
  float brightness, contrast, saturation;  // factors; 1 leaves the image as it is
  float hue;                               // shift in turns, -0.5..0.5; 0 leaves the image as it is
  float sigma;                             // of the blur, in output pixels
  float solarize_threshold;                // in [0, 1]: values at or above it are inverted
  // The box is resized to resize_height x resize_width (0: the output size), and the output is the window of that which
  // starts at shift_y, shift_x. Only the test-time transform (resize, then centre crop) sets them.
  int32_t resize_height, resize_width, shift_y, shift_x;
};
static_assert(sizeof(AugmentParams) == 64, "the Python side packs 16 words");

// The operation at each position of the order, four bits each, the first in the lowest: a Lehmer code read as digits.
HOST_DEVICE uint32_t jitter_sequence(int32_t order) {
  uint32_t left = 0x3210, sequence = 0;
  const int32_t digits[kJitterOps] = {order / 6, order % 6 / 2, order % 2, 0};
  for (int k = 0; k < kJitterOps; ++k) {
    const int shift = 4 * digits[k];
    sequence |= (left >> shift & 15u) << (4 * k);
    left = (left & ((1u << shift) - 1u)) | (left >> (shift + 4) << shift);
  }
  return sequence;
}

HOST_DEVICE JitterOp jitter_op(uint32_t sequence, int position) {
  return static_cast<JitterOp>(sequence >> (4 * position) & 15u);
}

HOST_DEVICE int32_t clamp_int(int32_t x, int32_t lo, int32_t hi) { return x < lo ? lo : x > hi ? hi : x; }

// The same parameters with every integer made safe to index with: the box inside the image and at least one pixel, the
// window inside the resized box, the order a permutation. Parameters that were drawn for this image are unchanged.
// Every kernel calls this first, since it cannot raise; AugmentParams.check refuses such parameters where looking is
// free.
HOST_DEVICE AugmentParams made_safe(AugmentParams p, int32_t image_height, int32_t image_width, int32_t out_height,
                                    int32_t out_width) {
  p.height = clamp_int(p.height, 1, image_height);
  p.width = clamp_int(p.width, 1, image_width);
  p.top = clamp_int(p.top, 0, image_height - p.height);
  p.left = clamp_int(p.left, 0, image_width - p.width);
  p.order = clamp_int(p.order, 0, kJitterOrders - 1);
  if (p.resize_height < out_height) p.resize_height = out_height;
  if (p.resize_width < out_width) p.resize_width = out_width;
  p.shift_y = clamp_int(p.shift_y, 0, p.resize_height - out_height);
  p.shift_x = clamp_int(p.shift_x, 0, p.resize_width - out_width);
  return p;
}

}  // namespace simclr
