// Drives the CPU augmentation with random sizes, layouts and parameters, good and garbage, for a build under
// sanitizers. Every image and every output has its own allocation of exactly its size: a pixel read or written beside
// it is reported.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "augment_launch.h"

namespace {

using simclr::AugmentArgs;
using simclr::AugmentParams;
using simclr::PixelType;

std::mt19937 generator(1);

int32_t below(int32_t n) { return static_cast<int32_t>(generator() % static_cast<uint32_t>(n)); }
float unit() { return static_cast<float>(generator()) * 0x1p-32f; }

// Mostly a number that makes sense, now and then one that does not.
int32_t any_int(int32_t sensible) {
  const int32_t odd[] = {0,
                         -1,
                         1,
                         sensible + 1,
                         -sensible,
                         1 << 30,
                         std::numeric_limits<int32_t>::max(),
                         std::numeric_limits<int32_t>::min()};
  return below(4) == 0 ? odd[below(8)] : below(sensible + 1);
}

float any_float(float sensible) {
  const float odd[] = {0.0f, -0.0f, -1.0f, 1e30f, -1e30f, 1e-40f, INFINITY, -INFINITY, NAN};
  return below(4) == 0 ? odd[below(9)] : unit() * sensible;
}

AugmentParams any_params(int32_t height, int32_t width, int32_t out_height, int32_t out_width) {
  AugmentParams p;
  p.top = any_int(height), p.left = any_int(width), p.height = any_int(height), p.width = any_int(width);
  p.flags = below(8) == 0 ? any_int(1 << 20) : below(32);
  p.order = any_int(23);
  p.brightness = any_float(2), p.contrast = any_float(2), p.saturation = any_float(2);
  p.hue = any_float(0.5f), p.sigma = any_float(4), p.solarize_threshold = any_float(1);
  p.resize_height = below(2) ? 0 : any_int(2 * out_height), p.resize_width = below(2) ? 0 : any_int(2 * out_width);
  p.shift_y = any_int(3), p.shift_x = any_int(3);
  return p;
}

void one_case() {
  const int32_t height = 1 + below(below(2) ? 4 : 90), width = 1 + below(below(2) ? 4 : 90);
  AugmentArgs args{};
  args.out_height = 1 + below(40), args.out_width = 1 + below(40);
  args.images.channels = below(2) ? 1 : 3;
  args.images.type = static_cast<PixelType>(below(4));
  args.out_type = static_cast<PixelType>(1 + below(3));
  args.channels_last = below(2);
  args.views = 1 + below(2), args.batch = 1;
  args.blur_kernel = 2 * below(std::min(args.out_height, args.out_width)) + 1;
  const int32_t channels = args.images.channels, layout = below(3);
  const int64_t gap = layout == 2 ? 2 : 1;  // every second pixel of a wider image
  args.images.height = height, args.images.width = width;
  args.images.stride_c = layout == 1 ? 1 : height * width * gap;
  args.images.stride_h = layout == 1 ? width * channels : width * gap;
  args.images.stride_w = layout == 1 ? channels : gap;
  const int64_t last =
      (channels - 1) * args.images.stride_c + (height - 1) * args.images.stride_h + (width - 1) * args.images.stride_w;
  const size_t bytes = static_cast<size_t>(last + 1) * simclr::pixel_bytes(args.images.type);
  uint8_t* pixels = static_cast<uint8_t*>(std::malloc(bytes));
  for (size_t k = 0; k < bytes; ++k) pixels[k] = static_cast<uint8_t>(generator());
  args.images.data = pixels;

  const int64_t ragged[simclr::kRaggedColumns] = {
      0, height, width, args.images.stride_c, args.images.stride_h, args.images.stride_w};
  if (below(3) == 0) {
    args.images.ragged = ragged;
    args.images.height = args.images.width = 0;
  }

  std::vector<AugmentParams> params;
  for (int k = 0; k < args.views; ++k) params.push_back(any_params(height, width, args.out_height, args.out_width));
  args.params = params.data();
  for (int c = 0; c < 3; ++c) args.norm_scale[c] = 2.0f, args.norm_shift[c] = -1.0f;
  const size_t out_bytes = static_cast<size_t>(args.views) * channels * args.out_height * args.out_width *
                           simclr::pixel_bytes(args.out_type);
  args.out = std::malloc(out_bytes);

  const auto serial = [](int64_t begin, int64_t end, int64_t, simclr::Parallel::Body body, void* context) {
    body(begin, end, context);
  };
  simclr::cpu::augment(args, simclr::Parallel(serial, 1));

  std::free(args.out);
  std::free(pixels);
}

}  // namespace

int main(int, char** argv) {
  const int cases = std::atoi(argv[1]);
  for (int k = 0; k < cases; ++k) one_case();
  std::printf("%d cases\n", cases);
}
