// Which source pixels make an output pixel, and with what weight: antialiased bilinear resize, and Gaussian blur.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace simclr {

// A float product that is rounded before it is used: a fused multiply-add would keep more bits than torch does, and at
// pixel 500 the bits of a tap's centre are worth 3e-5 of weight.
HOST_DEVICE float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return static_cast<float>(static_cast<double>(a) * static_cast<double>(b));
#endif
}

// One axis of torch's antialiased bilinear interpolation (align_corners=False): output i is centred at scale (i + 1/2),
// and pixel k of the crop weighs max(0, 1 - |k + 1/2 - centre| / support), then divided by the sum of the weights.
struct ResizeAxis {
  int32_t in;  // length of the crop
  float scale, support, inv_support;
};

HOST_DEVICE ResizeAxis resize_axis(int32_t in, int32_t out) {
  const float scale = static_cast<float>(in) / static_cast<float>(out);
  const float support = scale > 1.0f ? scale : 1.0f;
  return {in, scale, support, 1.0f / support};
}

// No output has more taps than this.
HOST_DEVICE int32_t most_taps(const ResizeAxis& axis) { return 2 * static_cast<int32_t>(ceilf(axis.support)) + 1; }

HOST_DEVICE float tap_centre(const ResizeAxis& axis, int32_t i) {
  return rounded_product(axis.scale, static_cast<float>(i) + 0.5f);
}

// Taps [first_tap, end_tap) lie inside the crop and are at least one.
HOST_DEVICE int32_t first_tap(const ResizeAxis& axis, float centre) {
  const int32_t first = static_cast<int32_t>(centre - axis.support + 0.5f);
  return first < 0 ? 0 : first < axis.in ? first : axis.in - 1;
}

HOST_DEVICE int32_t end_tap(const ResizeAxis& axis, float centre) {
  const int32_t end = static_cast<int32_t>(centre + axis.support + 0.5f);
  return end < axis.in ? end : axis.in;
}

// The weight of a pixel whose centre lies `offset` from the output's, before division by the sum.
HOST_DEVICE float tap_weight(const ResizeAxis& axis, float offset) {
  const float weight = 1.0f - fabsf(offset) * axis.inv_support;
  return weight > 0.0f ? weight : 0.0f;
}

HOST_DEVICE float tap_weight(const ResizeAxis& axis, float centre, int32_t k) {
  return tap_weight(axis, static_cast<float>(k) - centre + 0.5f);
}

// Reflection without repeating the edge (torch's "reflect" padding), for -n < i < 2n - 1.
HOST_DEVICE int32_t reflected(int32_t i, int32_t n) {
  const int32_t from_left = i < 0 ? -i : i;
  return from_left < n ? from_left : 2 * n - 2 - from_left;
}

// Taps of the blur on each side. Beyond 4.75 sigma the Gaussian holds 2e-6 of its mass, so the kernel that the caller
// asked for (odd, blur_kernel taps) is cut there. A NaN or non-positive sigma blurs nothing.
HOST_DEVICE int32_t blur_radius(float sigma, int32_t blur_kernel) {
  const int32_t half = blur_kernel / 2;
  const float reach = ceilf(4.75f * sigma);
  if (!(reach > 0.0f)) return 0;
  return reach < static_cast<float>(half) ? static_cast<int32_t>(reach) : half;
}

// Before division by the sum over -radius..radius.
HOST_DEVICE float blur_weight(int32_t k, float sigma) {
  const float x = static_cast<float>(k) / sigma;
  return expf(-0.5f * x * x);
}

}  // namespace simclr
