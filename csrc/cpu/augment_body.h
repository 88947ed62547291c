// One view for one instruction set; included by augment.cpp through for_each_isa.h.
//
// Row by row: blend source rows (vertical taps), sum columns (horizontal taps), colour operations in registers.
// Contrast needs the mean of the whole image, and the blur needs neighbouring rows, so an image with either is kept
// (one image per thread, within the second-level cache) between passes; others go straight from the source to the
// output row.

#include "augment_pixels_body.h"
#include "augment_rows_body.h"

// The colour operations of one pass, in order.
struct Program {
  enum Op : uint8_t { kDoBrightness, kDoContrast, kDoSaturation, kDoHue, kDoGray };
  Op op[kJitterOps + 1];
  int count = 0;

  void add(Op next) { op[count++] = next; }
};

// What one view does. The jitter is split where the mean is needed: `before` ends where contrast would come.
struct Plan {
  Program before, after;
  bool contrast = false, gray = false, blur = false, solarize = false;
  int32_t radius = 0;
};

static inline Plan plan_view(const AugmentArgs& args, const AugmentParams& p) {
  Plan plan;
  const bool color = args.images.channels == 3;
  Program* program = &plan.before;
  if (p.flags & kJitter) {
    const uint32_t sequence = jitter_sequence(p.order);
    for (int k = 0; k < kJitterOps; ++k) {
      switch (jitter_op(sequence, k)) {
        case kBrightness:
          if (p.brightness != 1.0f) program->add(Program::kDoBrightness);
          break;
        case kContrast:
          if (p.contrast != 1.0f) {
            plan.contrast = true;
            program = &plan.after;
            program->add(Program::kDoContrast);
          }
          break;
        case kSaturation:
          if (color && p.saturation != 1.0f) program->add(Program::kDoSaturation);
          break;
        case kHue:
          if (color && p.hue != 0.0f) program->add(Program::kDoHue);
          break;
      }
    }
  }
  plan.gray = color && (p.flags & kGray);
  if (plan.gray) program->add(Program::kDoGray);
  if (p.flags & kBlur) plan.radius = blur_radius(p.sigma, args.blur_kernel);
  plan.blur = plan.radius > 0;
  plan.solarize = p.flags & kSolarize;
  return plan;
}

static inline Rgb<F32> run(const Program& program, Rgb<F32> v, const AugmentParams& p, float mean) {
  for (int k = 0; k < program.count; ++k) {
    switch (program.op[k]) {
      case Program::kDoBrightness:
        v = adjust_brightness(v, p.brightness);
        break;
      case Program::kDoContrast:
        v = adjust_contrast(v, p.contrast, mean);
        break;
      case Program::kDoSaturation:
        v = adjust_saturation(v, p.saturation);
        break;
      case Program::kDoHue:
        v = adjust_hue(v, p.hue);
        break;
      case Program::kDoGray:
        v.r = v.g = v.b = gray(v);
        break;
    }
  }
  return v;
}

static inline F32 run(const Program& program, F32 v, const AugmentParams& p, float mean) {
  for (int k = 0; k < program.count; ++k) {
    v = program.op[k] == Program::kDoContrast ? adjust_contrast(v, p.contrast, mean)
                                              : adjust_brightness(v, p.brightness);
  }
  return v;
}

// The view that one thread is making.
struct View {
  const AugmentArgs& args;
  const AugmentParams& p;
  const Plan plan;
  Workspace& ws;
  int32_t channels, planes;  // planes: the channels that are left after grey
  int32_t width, stride;     // of an output row; stride is padded
  int32_t stage_stride;      // of a channel's row in the stage
  char* out;                 // pixel (0, 0) of channel 0
  float* blended;            // [channels, blended_stride]
  float* stage;              // [channels, stage_stride], column 0
  float* image;              // [planes, height, stride]
  int32_t blended_stride;

  float* image_row(int32_t channel, int32_t y) const {
    return image + (static_cast<int64_t>(channel) * args.out_height + y) * stride;
  }

  // Sums the columns of the blended row and runs `before`. Where contrast is to come, the row goes to the image and its
  // grey sum is returned; otherwise it goes to the stage.
  double resample_row(int32_t y) const {
    float* to[3];
    for (int32_t c = 0; c < channels; ++c) to[c] = plan.contrast ? image_row(c, y) : stage + c * stage_stride;
    F32 sum = {};
    for (int32_t x = 0; x < stride; x += kLanes) {
      if (channels == 3) {
        F32 source[3];
        sum_columns(ws.columns, blended, blended_stride, x, source);
        const Rgb<F32> v = run(plan.before, Rgb<F32>{source[0], source[1], source[2]}, p, 0.0f);
        store(to[0] + x, v.r);
        if (planes == 3 || plan.contrast) {
          store(to[1] + x, v.g);
          store(to[2] + x, v.b);
        }
        if (plan.contrast) sum += gray(v);
      } else {
        F32 source[1];
        sum_columns(ws.columns, blended, blended_stride, x, source);
        const F32 v = run(plan.before, source[0], p, 0.0f);
        store(to[0] + x, v);
        sum += v;
      }
    }
    return plan.contrast ? sum_lanes(sum) : 0.0;
  }

  // Runs `after` on a row of the image, into the stage.
  void contrast_row(int32_t y, float mean) const {
    for (int32_t x = 0; x < stride; x += kLanes) {
      if (channels == 3) {
        const Rgb<F32> source = {load(image_row(0, y) + x), load(image_row(1, y) + x), load(image_row(2, y) + x)};
        const Rgb<F32> v = run(plan.after, source, p, mean);
        store(stage + x, v.r);
        if (planes == 3) {
          store(stage + stage_stride + x, v.g);
          store(stage + 2 * stage_stride + x, v.b);
        }
      } else {
        store(stage + x, run(plan.after, load(image_row(0, y) + x), p, mean));
      }
    }
  }

  // The row in the stage is complete but for blur, solarize and normalisation.
  void finish_row(int32_t y) const {
    if (!plan.blur) return write_row(y);
    for (int32_t c = 0; c < planes; ++c) {
      reflect_row(stage + c * stage_stride, width, plan.radius);
      blur_row(stage + c * stage_stride, ws.blur.data(), plan.radius, image_row(c, y), stride);
    }
  }

  void blur_columns_and_write(int32_t y) const {
    for (int32_t c = 0; c < planes; ++c) {
      blur_column(image_row(c, 0), stride, args.out_height, y, ws.blur.data(), plan.radius, stage + c * stage_stride);
    }
    write_row(y);
  }

  void write_row(int32_t y) const {
    if (plan.solarize) {
      for (int32_t c = 0; c < planes; ++c) {
        float* row = stage + c * stage_stride;
        for (int32_t x = 0; x < stride; x += kLanes) store(row + x, solarize(load(row + x), p.solarize_threshold));
      }
    }
    const float* rows[3];
    for (int32_t c = 0; c < channels; ++c) rows[c] = stage + (c < planes ? c : 0) * stage_stride;
    const int64_t pixel = static_cast<int64_t>(y) * width;
    switch (args.out_type) {
      case PixelType::kFloat32:
        return write_pixels(args, rows, reinterpret_cast<float*>(out), pixel);
      case PixelType::kFloat16:
        return write_pixels(args, rows, reinterpret_cast<Half*>(out), pixel);
      default:
        return write_pixels(args, rows, reinterpret_cast<BFloat16*>(out), pixel);
    }
  }
};

static void make_view(const AugmentArgs& args, int32_t view, int32_t sample, Workspace* workspace) {
  Workspace& ws = *workspace;
  const ImageView source = image_at(args.images, sample);
  const int64_t number = static_cast<int64_t>(view) * args.batch + sample;
  const int32_t height = args.out_height, width = args.out_width, channels = args.images.channels;
  const AugmentParams p = made_safe(args.params[number], source.height, source.width, height, width);
  const Plan plan = plan_view(args, p);

  const float to_unit = args.images.type == PixelType::kUint8 ? 1.0f / 255.0f : 1.0f;
  fill_row_taps(&ws.rows, resize_axis(p.height, p.resize_height), height, p.shift_y, to_unit);
  fill_column_taps(&ws.columns, resize_axis(p.width, p.resize_width), width, p.shift_x, p.flags & kHflip,
                   kCanPermute ? kLanes : 0);
  if (plan.blur) fill_blur(ws.blur.at_least(plan.radius + 1), plan.radius, p.sigma);

  const int32_t stride = padded(width), margin = padded(plan.radius), stage_stride = stride + 2 * margin;
  const int32_t blended_stride = padded(p.width) + 2 * kPad;  // a window may reach past the end of the crop
  const int64_t image_bytes = static_cast<int64_t>(channels) * height * width * pixel_bytes(args.out_type);
  const View v = {args,
                  p,
                  plan,
                  ws,
                  channels,
                  plan.gray ? 1 : channels,
                  width,
                  stride,
                  stage_stride,
                  static_cast<char*>(args.out) + number * image_bytes,
                  ws.blended.at_least(static_cast<size_t>(channels) * blended_stride),
                  ws.stage.at_least(static_cast<size_t>(channels) * stage_stride) + margin,
                  ws.image.at_least(plan.contrast || plan.blur ? static_cast<size_t>(channels) * height * stride : 0),
                  blended_stride};

  double gray_sum = 0.0;
  for (int32_t y = 0; y < height; ++y) {
    blend_rows(args.images.type, source, p, ws, y, channels, v.blended, blended_stride);
    gray_sum += v.resample_row(y);
    if (!plan.contrast) v.finish_row(y);
  }
  if (plan.contrast) {
    const float mean = static_cast<float>(gray_sum / (static_cast<double>(height) * width));
    for (int32_t y = 0; y < height; ++y) {
      v.contrast_row(y, mean);
      v.finish_row(y);
    }
  }
  if (plan.blur) {
    for (int32_t y = 0; y < height; ++y) v.blur_columns_and_write(y);
  }
}
