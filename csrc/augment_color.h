// Colour operations on one pixel, equal to torchvision.transforms.v2.functional on float tensors in [0, 1].
//
// F is float, or a vector of floats with element-wise operators and ?: (the CPU kernels); the same source serves both.
// Every jitter operation clamps its result to [0, 1] as torchvision does; hue cannot leave it.
#pragma once

#include "host_device.h"

namespace simclr {

template <class F>
struct Rgb {
  F r, g, b;
};

template <class F>
HOST_DEVICE F lower(F a, F b) {
  return a < b ? a : b;
}
template <class F>
HOST_DEVICE F higher(F a, F b) {
  return a > b ? a : b;
}
// x / y for 1e-30 <= y < 8e37: from 2^126 on, 8.5e37, __fdividef is 0.
template <class F>
HOST_DEVICE F quotient(F x, F y) {
  return x / y;
}
#ifdef __CUDA_ARCH__
// Two instructions without a branch, at most 2 ulp off: the exact division is eight, and a call where y is small.
template <>
HOST_DEVICE float quotient(float x, float y) {
  return __fdividef(x, y);
}
// One instruction each on the device.
template <>
HOST_DEVICE float lower(float a, float b) {
  return fminf(a, b);
}
template <>
HOST_DEVICE float higher(float a, float b) {
  return fmaxf(a, b);
}
#endif

// A scalar as F (every lane, for a vector).
template <class F>
HOST_DEVICE F all_lanes(float x) {
  return F{} + x;
}

// x in [0, 1]. NaN stays NaN, as no comparison with it holds; of lower and higher it would become a bound. An adjusted
// hue, whose weights are clamped, is then NaN in all channels if one is.
template <class F>
HOST_DEVICE F clamp01(F x) {
  const F zero = all_lanes<F>(0.0f), one = all_lanes<F>(1.0f);
  const F at_most_one = one < x ? one : x;
  return zero > at_most_one ? zero : at_most_one;
}

// torchvision's luma; the weights sum to 0.9999.
template <class F>
HOST_DEVICE F gray(const Rgb<F>& p) {
  return p.r * 0.2989f + p.g * 0.587f + p.b * 0.114f;
}

template <class F>
HOST_DEVICE F adjust_brightness(F x, float factor) {
  return clamp01(x * factor);
}

// mean: of the grey image (of the image itself where it has one channel), taken after the preceding operations.
template <class F>
HOST_DEVICE F adjust_contrast(F x, float factor, float mean) {
  return clamp01(x * factor + (1.0f - factor) * mean);
}

template <class F>
HOST_DEVICE Rgb<F> adjust_brightness(const Rgb<F>& p, float factor) {
  return {adjust_brightness(p.r, factor), adjust_brightness(p.g, factor), adjust_brightness(p.b, factor)};
}

template <class F>
HOST_DEVICE Rgb<F> adjust_contrast(const Rgb<F>& p, float factor, float mean) {
  return {adjust_contrast(p.r, factor, mean), adjust_contrast(p.g, factor, mean), adjust_contrast(p.b, factor, mean)};
}

template <class F>
HOST_DEVICE Rgb<F> adjust_saturation(const Rgb<F>& p, float factor) {
  const F rest = gray(p) * (1.0f - factor);
  return {clamp01(p.r * factor + rest), clamp01(p.g * factor + rest), clamp01(p.b * factor + rest)};
}

// Rotates the hue by `turns`, value and saturation kept, without a branch and with one division.
//
// With V = max, m = min and d = V - m, the hue in sixths of a turn, h, is (g - b)/d, 2 + (b - r)/d or 4 + (r - g)/d as
// r, g or b is the largest (in this order where they tie), and HSV back to RGB is m + d w with
//     w_r = clamp(|h - 3| - 1),   w_g = clamp(2 - |h - 2|),   w_b = clamp(2 - |h - 4|),   0 <= h < 6.
// A grey pixel has d = 0 and stays as it is, whatever h: the divisor is only kept from being 0.
template <class F>
HOST_DEVICE Rgb<F> adjust_hue(const Rgb<F>& p, float turns) {
  const F zero = all_lanes<F>(0.0f), one = all_lanes<F>(1.0f), two = all_lanes<F>(2.0f);
  const F largest = higher(p.r, higher(p.g, p.b));
  const F smallest = lower(p.r, lower(p.g, p.b));
  const F d = largest - smallest;
  const auto is_r = largest == p.r;
  const auto is_g = largest == p.g;
  const F difference = is_r ? p.g - p.b : is_g ? p.b - p.r : p.r - p.g;
  const F sector = is_r ? zero : is_g ? two : two + two;
  F h = sector + quotient(difference, higher(d, all_lanes<F>(1e-30f))) + 6.0f * turns;  // -4 .. 8
  h = h < zero ? h + 6.0f : h;
  h = h >= all_lanes<F>(6.0f) ? h - 6.0f : h;
  const F h2 = h - 2.0f, h3 = h - 3.0f, h4 = h - 4.0f;
  const F w_r = clamp01(higher(h3, -h3) - one);
  const F w_g = clamp01(two - higher(h2, -h2));
  const F w_b = clamp01(two - higher(h4, -h4));
  return {smallest + d * w_r, smallest + d * w_g, smallest + d * w_b};
}

template <class F>
HOST_DEVICE F solarize(F x, float threshold) {
  return x >= all_lanes<F>(threshold) ? 1.0f - x : x;
}

}  // namespace simclr
