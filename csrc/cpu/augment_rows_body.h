// Whole rows for one instruction set: vertical taps, horizontal taps, blur, output. Included by augment_body.h.

// to[i] = sum over k of weight[k] * from[i + k * row_stride], for i in [0, n).
template <class T>
static inline void blend(const T* from, int64_t row_stride, const float* weight, int32_t taps, float* to, int64_t n) {
  constexpr int kUnroll = 4;
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= n; i += kUnroll * kLanes) {
    F32 sum[kUnroll] = {};
    for (int32_t k = 0; k < taps; ++k) {
      for (int u = 0; u < kUnroll; ++u) sum[u] += load(from + k * row_stride + i + u * kLanes) * weight[k];
    }
    for (int u = 0; u < kUnroll; ++u) store(to + i + u * kLanes, sum[u]);
  }
  while (i < n) {
    if (n < kLanes) {  // too short to load a vector: through a copy
      T column[kLanes];
      F32 sum = {};
      for (int32_t k = 0; k < taps; ++k) {
        __builtin_memcpy(column, from + k * row_stride, n * sizeof(T));
        sum += load(column) * weight[k];
      }
      return store(to, sum, static_cast<int>(n));
    }
    i = i + kLanes <= n ? i : n - kLanes;  // the last vector overlaps the one before
    F32 sum = {};
    for (int32_t k = 0; k < taps; ++k) sum += load(from + k * row_stride + i) * weight[k];
    store(to + i, sum);
    i += kLanes;
  }
}

// The blended source row of output row y, [channels, blended_stride], whatever the layout of the source.
template <class T>
static void blend_rows_of(const ImageView& source, const AugmentParams& p, Workspace& ws, int32_t y, int32_t channels,
                          float* blended, int32_t blended_stride) {
  const int32_t first = ws.rows.first.data()[y], taps = ws.rows.count.data()[y];
  const float* weight = ws.rows.weight.data() + static_cast<int64_t>(y) * ws.rows.most;
  const T* from = static_cast<const T*>(source.data) + (static_cast<int64_t>(p.top) + first) * source.stride_h +
                  p.left * source.stride_w;
  if (source.stride_w == 1) {
    for (int32_t c = 0; c < channels; ++c) {
      blend(from + c * source.stride_c, source.stride_h, weight, taps, blended + c * blended_stride, p.width);
    }
  } else if (channels == 3 && source.stride_c == 1 && source.stride_w == 3) {
    float* mixed = ws.interleaved.at_least(3 * p.width);
    blend(from, source.stride_h, weight, taps, mixed, 3 * p.width);
    float *r = blended, *g = blended + blended_stride, *b = blended + 2 * blended_stride;
    for (int32_t x = 0; x < p.width; ++x) {
      r[x] = mixed[3 * x];
      g[x] = mixed[3 * x + 1];
      b[x] = mixed[3 * x + 2];
    }
  } else {
    for (int32_t c = 0; c < channels; ++c) {
      for (int32_t x = 0; x < p.width; ++x) {
        blend(from + c * source.stride_c + x * source.stride_w, source.stride_h, weight, taps,
              blended + c * blended_stride + x, 1);
      }
    }
  }
}

static void blend_rows(PixelType type, const ImageView& source, const AugmentParams& p, Workspace& ws, int32_t y,
                       int32_t channels, float* blended, int32_t blended_stride) {
  switch (type) {
    case PixelType::kUint8:
      return blend_rows_of<uint8_t>(source, p, ws, y, channels, blended, blended_stride);
    case PixelType::kFloat16:
      return blend_rows_of<Half>(source, p, ws, y, channels, blended, blended_stride);
    case PixelType::kBfloat16:
      return blend_rows_of<BFloat16>(source, p, ws, y, channels, blended, blended_stride);
    case PixelType::kFloat32:
      return blend_rows_of<float>(source, p, ws, y, channels, blended, blended_stride);
  }
}

// Output columns x .. x + kLanes - 1 of C blended rows. Within a window, all taps of these columns lie in two vectors
// of the row, and picking them is a permutation in registers.
template <int C>
static inline void sum_columns(const ColumnTaps& columns, const float* blended, int32_t blended_stride, int32_t x,
                               F32 (&sum)[C]) {
  for (int c = 0; c < C; ++c) sum[c] = F32{};
  const int32_t* index = columns.index.data() + x;
  const float* weight = columns.weight.data() + x;
  if (kCanPermute && columns.windowed) {
    const float* from = blended + columns.base.data()[x / kLanes];
    F32 low[C], high[C];
    for (int c = 0; c < C; ++c) {
      low[c] = load(from + c * blended_stride);
      high[c] = load(from + c * blended_stride + kLanes);
    }
    for (int32_t k = 0; k < columns.taps; ++k, index += columns.stride, weight += columns.stride) {
      I32 at;
      __builtin_memcpy(&at, index, sizeof(at));
      for (int c = 0; c < C; ++c) sum[c] += permute(low[c], high[c], at) * load(weight);
    }
    return;
  }
  for (int32_t k = 0; k < columns.taps; ++k, index += columns.stride, weight += columns.stride) {
    for (int c = 0; c < C; ++c) sum[c] += gather(blended + c * blended_stride, index) * load(weight);
  }
}

// weight[k], k = 0..radius: half of the symmetric kernel, which sums to 1.
static inline void fill_blur(float* weight, int32_t radius, float sigma) {
  float sum = 0.0f;
  for (int32_t k = 0; k <= radius; ++k) {
    weight[k] = blur_weight(k, sigma);
    sum += k == 0 ? weight[k] : 2.0f * weight[k];
  }
  for (int32_t k = 0; k <= radius; ++k) weight[k] /= sum;
}

// Fills `radius` columns on either side of row[0..width).
static inline void reflect_row(float* row, int32_t width, int32_t radius) {
  for (int32_t k = 1; k <= radius; ++k) {
    row[-k] = row[reflected(-k, width)];
    row[width - 1 + k] = row[reflected(width - 1 + k, width)];
  }
}

// The sum over -radius..radius at a distance of `step` floats.
static inline F32 blur_at(const float* centre, int64_t step, const float* weight, int32_t radius) {
  F32 sum = load(centre) * weight[0];
  for (int32_t k = 1; k <= radius; ++k) sum += (load(centre - k * step) + load(centre + k * step)) * weight[k];
  return sum;
}

static inline void blur_row(const float* row, const float* weight, int32_t radius, float* to, int32_t stride) {
  for (int32_t x = 0; x < stride; x += kLanes) store(to + x, blur_at(row + x, 1, weight, radius));
}

// Output row y of an image plane [height, stride] that is reflected at its top and bottom.
static inline void blur_column(const float* plane, int32_t stride, int32_t height, int32_t y, const float* weight,
                               int32_t radius, float* to) {
  if (y >= radius && y + radius < height) {
    for (int32_t x = 0; x < stride; x += kLanes) {
      store(to + x, blur_at(plane + static_cast<int64_t>(y) * stride + x, stride, weight, radius));
    }
    return;
  }
  for (int32_t x = 0; x < stride; x += kLanes) {
    F32 sum = load(plane + static_cast<int64_t>(y) * stride + x) * weight[0];
    for (int32_t k = 1; k <= radius; ++k) {
      const int64_t above = reflected(y - k, height), below = reflected(y + k, height);
      sum += (load(plane + above * stride + x) + load(plane + below * stride + x)) * weight[k];
    }
    store(to + x, sum);
  }
}

// Normalises the rows (one per channel) of the output's pixels [pixel, pixel + out_width) and writes them.
template <class T>
static inline void write_pixels(const AugmentArgs& args, const float* const* rows, T* out, int64_t pixel) {
  const int32_t width = args.out_width, channels = args.images.channels;
  if (channels == 3 && args.channels_last) {
    T* to = out + 3 * pixel;
    for (int32_t x = 0; x < width; x += kLanes) {
      const int count = width - x < kLanes ? width - x : kLanes;
      T r[kLanes], g[kLanes], b[kLanes];
      store(r, load(rows[0] + x) * args.norm_scale[0] + args.norm_shift[0], kLanes);
      store(g, load(rows[1] + x) * args.norm_scale[1] + args.norm_shift[1], kLanes);
      store(b, load(rows[2] + x) * args.norm_scale[2] + args.norm_shift[2], kLanes);
      T mixed[3 * kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        mixed[3 * lane] = r[lane];
        mixed[3 * lane + 1] = g[lane];
        mixed[3 * lane + 2] = b[lane];
      }
      __builtin_memcpy(to + 3 * x, mixed, 3 * count * sizeof(T));
    }
    return;
  }
  const int64_t plane = static_cast<int64_t>(args.out_height) * width;
  for (int32_t c = 0; c < channels; ++c) {
    for (int32_t x = 0; x < width; x += kLanes) {
      const F32 v = load(rows[c] + x) * args.norm_scale[c] + args.norm_shift[c];
      store(out + c * plane + pixel + x, v, width - x < kLanes ? width - x : kLanes);
    }
  }
}
