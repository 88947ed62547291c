// C++ entry points of the augmentation kernels, and the arguments that the CPU and CUDA kernels share.
#pragma once

#include <cstdint>

#include "augment_params.h"
#include "augment_sample.h"
#include "parallel.h"

namespace simclr {

enum class PixelType : int32_t { kUint8, kFloat16, kBfloat16, kFloat32 };

// Columns of the table that describes a ragged batch, one row of int64 per image; offsets and strides in elements.
// RAGGED_COLUMNS of simclr_fast/ops/augment/params.py mirrors them.
enum RaggedColumn {
  kRaggedOffset,
  kRaggedHeight,
  kRaggedWidth,
  kRaggedStrideC,
  kRaggedStrideH,
  kRaggedStrideW,
  kRaggedColumns
};

// One source image; strides in elements.
struct ImageView {
  const void* data;  // pixel (0, 0) of channel 0
  int32_t height, width;
  int64_t stride_c, stride_h, stride_w;
};

// A batch of images: all of one size, or (ragged != nullptr) described by a [batch, kRaggedColumns] table.
struct ImageBatch {
  const void* data;
  PixelType type;
  int32_t channels;  // 1 or 3
  int32_t height, width;
  int64_t stride_b, stride_c, stride_h, stride_w;
  const int64_t* ragged;
};

HOST_DEVICE int32_t pixel_bytes(PixelType type) {
  return type == PixelType::kUint8 ? 1 : type == PixelType::kFloat32 ? 4 : 2;
}

HOST_DEVICE ImageView image_at(const ImageBatch& batch, int64_t index) {
  const char* base = static_cast<const char*>(batch.data);
  if (batch.ragged == nullptr) {
    return {base + index * batch.stride_b * pixel_bytes(batch.type),
            batch.height,
            batch.width,
            batch.stride_c,
            batch.stride_h,
            batch.stride_w};
  }
  const int64_t* row = batch.ragged + index * kRaggedColumns;
  return {base + row[kRaggedOffset] * pixel_bytes(batch.type),
          static_cast<int32_t>(row[kRaggedHeight]),
          static_cast<int32_t>(row[kRaggedWidth]),
          row[kRaggedStrideC],
          row[kRaggedStrideH],
          row[kRaggedStrideW]};
}

struct AugmentArgs {
  ImageBatch images;
  const AugmentParams* params;  // [views, batch]
  void* out;                    // [views * batch, channels, out_height, out_width], in the layout below
  PixelType out_type;           // not kUint8
  bool channels_last;
  int32_t views, batch, out_height, out_width;
  int32_t blur_kernel;                 // odd; blur_kernel / 2 < out_height and out_width
  float norm_scale[3], norm_shift[3];  // per channel: out = x * norm_scale + norm_shift, x in [0, 1]
};

struct AugmentSampleArgs {
  AugmentRecipe recipe;
  const int64_t* seed;     // one number, where the params are
  const int64_t* indices;  // [batch] sample numbers, or nullptr for 0..batch-1
  const int64_t* ragged;   // [batch, kRaggedColumns], or nullptr where all images are height x width
  int32_t height, width, views, batch;
  AugmentParams* params;  // [views, batch]
};

namespace cpu {
void augment(const AugmentArgs& args, const Parallel& parallel);
void augment_sample(const AugmentSampleArgs& args, const Parallel& parallel);
}  // namespace cpu

namespace cuda {
// Launch on `stream` (a cudaStream_t) of the current device; return the cudaError_t of the launch.
// contrast_sums: scratch of augment_scratch_doubles(args) doubles.
// kBlurTooLarge: nothing was launched, because the halo of blur_kernel does not fit into the shared memory that the
// device lets a block have; that of sm_86 and sm_89, the smallest, holds 61 taps.
constexpr int kBlurTooLarge = -1;
int64_t augment_scratch_doubles(const AugmentArgs& args);
int augment(const AugmentArgs& args, double* contrast_sums, void* stream);
int augment_sample(const AugmentSampleArgs& args, void* stream);
}  // namespace cuda

}  // namespace simclr
