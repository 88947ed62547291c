// Draws the parameters of one (sample, view): torchvision's distributions from a counter-based generator.
//
// The draws depend on (seed, sample, view) alone, and are the same bits on every device: integers where the result is
// an integer, and otherwise only double operations that IEEE 754 rounds in one way (no libm, no fused multiply-add).
// simclr_fast/ops/augment/reference_sampling.py is the same arithmetic in torch operations.
//
// Block t = 0..9 of four words is try t of the crop: area, log ratio, top, left. Then:
//   block 10: jitter order, hflip, jitter, gray     block 11: brightness, contrast, saturation, hue
//   block 12: blur, sigma, solarize, unused
#pragma once

#include <cmath>
#include <cstdint>

#include "augment_params.h"
#include "host_device.h"
#include "philox.h"

namespace simclr {

// A uniform distribution on [low, low + span).
struct Uniform {
  double low, span;
};

// The constants of the distributions, as doubles only, so that the op can take them as one list.
struct AugmentRecipe {
  Uniform area;           // of the crop, as a fraction of the image's
  double sqrt_ratio_low;  // sqrt(lowest width / height)
  double half_log_span;   // log(highest / lowest ratio) / 2
  double ratio_low, ratio_high;
  double hflip_p, jitter_p, gray_p, blur_p, solarize_p;
  Uniform brightness, contrast, saturation, hue, sigma;
  double solarize_threshold;
};
constexpr int kRecipeDoubles = sizeof(AugmentRecipe) / sizeof(double);
static_assert(kRecipeDoubles == 22, "AugmentRecipe of simclr_fast/ops/augment/params.py has as many");

constexpr int kCropTries = 10;

// Products and sums that no compiler fuses. The volatile store costs the host a few nanoseconds per sample.
HOST_DEVICE double mul_rn(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  volatile double product = a * b;
  return product;
#endif
}

HOST_DEVICE double add_rn(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

// exp(x) to 1e-12 for 0 <= x < 8: exp(x / 16) by its Taylor series of degree 10, squared four times.
HOST_DEVICE double reproducible_exp(double x) {
  const double y = x * 0.0625;
  double series = 1.0;
  for (int k = 10; k >= 1; --k) series = add_rn(1.0, mul_rn(series, y / k));
  for (int k = 0; k < 4; ++k) series = mul_rn(series, series);
  return series;
}

HOST_DEVICE double unit_interval(uint32_t word) { return word * (1.0 / 4294967296.0); }  // exact, in [0, 1)

HOST_DEVICE double uniform(const Uniform& u, uint32_t word) {
  return add_rn(u.low, mul_rn(u.span, unit_interval(word)));
}

// An integer in [0, n).
HOST_DEVICE int32_t below(int32_t n, uint32_t word) {
  return static_cast<int32_t>(static_cast<uint64_t>(word) * static_cast<uint32_t>(n) >> 32);
}

HOST_DEVICE bool bernoulli(double p, uint32_t word) { return unit_interval(word) < p; }

// torchvision's centred crop for an image whose shape never fitted: as much of it as the ratio's bounds allow.
HOST_DEVICE void fallback_crop(const AugmentRecipe& recipe, int32_t image_height, int32_t image_width,
                               AugmentParams* p) {
  const double ratio = static_cast<double>(image_width) / image_height;
  p->height = image_height;
  p->width = image_width;
  if (ratio < recipe.ratio_low) p->height = static_cast<int32_t>(rint(image_width / recipe.ratio_low));
  if (ratio > recipe.ratio_high) p->width = static_cast<int32_t>(rint(mul_rn(image_height, recipe.ratio_high)));
  p->height = clamp_int(p->height, 1, image_height);
  p->width = clamp_int(p->width, 1, image_width);
  p->top = (image_height - p->height) / 2;
  p->left = (image_width - p->width) / 2;
}

HOST_DEVICE AugmentParams sample_augment(const AugmentRecipe& recipe, uint64_t seed, uint64_t sample, uint32_t view,
                                         int32_t image_height, int32_t image_width) {
  const uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  const auto block = [&](uint32_t index) {
    return philox4x32({{index, view, static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32)}}, key0, key1);
  };
  AugmentParams p{};

  const double image_area = static_cast<double>(image_height) * image_width;
  bool fits = false;
  for (int t = 0; t < kCropTries && !fits; ++t) {
    const Philox4 draw = block(t);
    const double side = sqrt(mul_rn(image_area, uniform(recipe.area, draw.word[0])));
    const double stretch =
        mul_rn(recipe.sqrt_ratio_low, reproducible_exp(mul_rn(recipe.half_log_span, unit_interval(draw.word[1]))));
    const double width = rint(mul_rn(side, stretch)), height = rint(side / stretch);
    fits = width >= 1.0 && width <= image_width && height >= 1.0 && height <= image_height;
    if (fits) {
      p.width = static_cast<int32_t>(width);
      p.height = static_cast<int32_t>(height);
      p.top = below(image_height - p.height + 1, draw.word[2]);
      p.left = below(image_width - p.width + 1, draw.word[3]);
    }
  }
  if (!fits) fallback_crop(recipe, image_height, image_width, &p);

  const Philox4 choices = block(10), factors = block(11), filters = block(12);
  p.order = below(kJitterOrders, choices.word[0]);
  p.flags = (bernoulli(recipe.hflip_p, choices.word[1]) ? kHflip : 0) |
            (bernoulli(recipe.jitter_p, choices.word[2]) ? kJitter : 0) |
            (bernoulli(recipe.gray_p, choices.word[3]) ? kGray : 0) |
            (bernoulli(recipe.blur_p, filters.word[0]) ? kBlur : 0) |
            (bernoulli(recipe.solarize_p, filters.word[2]) ? kSolarize : 0);
  p.brightness = static_cast<float>(uniform(recipe.brightness, factors.word[0]));
  p.contrast = static_cast<float>(uniform(recipe.contrast, factors.word[1]));
  p.saturation = static_cast<float>(uniform(recipe.saturation, factors.word[2]));
  p.hue = static_cast<float>(uniform(recipe.hue, factors.word[3]));
  p.sigma = static_cast<float>(uniform(recipe.sigma, filters.word[1]));
  p.solarize_threshold = static_cast<float>(recipe.solarize_threshold);
  return p;
}

}  // namespace simclr
