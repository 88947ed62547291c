// What one thread needs to make one view: buffers that are kept from view to view and never exceed one image.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../augment_launch.h"
#include "../augment_resample.h"
#include "aligned_buffer.h"

namespace simclr::cpu {

constexpr int kPad = kCacheLine / sizeof(float);  // rows are padded to whole vectors of the widest instruction set

inline int32_t padded(int32_t n) { return (n + kPad - 1) / kPad * kPad; }

// The taps of the vertical axis: output row y blends rows [first[y], first[y] + count[y]) of the crop.
struct RowTaps {
  int32_t most;                  // weights per output row in the table
  AlignedBuffer<int32_t> first;  // [out]
  AlignedBuffer<int32_t> count;  // [out]
  AlignedBuffer<float> weight;   // [out, most]
};

// The taps of the horizontal axis, tap by tap, so that neighbouring outputs are neighbouring lanes: output column x
// sums weight[k, x] * row[index[k, x]]. Missing taps weigh 0 and index a valid column; so do the columns of the
// padding.
//
// Where the crop is not shrunk too far, the taps of each vector of outputs lie within two vectors of the row: then the
// table is windowed, and index counts from base[x / lanes].
struct ColumnTaps {
  int32_t taps;    // of every output
  int32_t stride;  // padded(out)
  bool windowed;
  AlignedBuffer<int32_t> base;   // [stride / lanes]
  AlignedBuffer<int32_t> index;  // [taps, stride]
  AlignedBuffer<float> weight;   // [taps, stride]
};

struct Workspace {
  RowTaps rows;
  ColumnTaps columns;
  AlignedBuffer<float> interleaved;  // one blended source row, channels-last
  AlignedBuffer<float> blended;      // [C, crop width]: one blended source row
  AlignedBuffer<float> stage;        // [C, margin + padded(out_width) + margin]: one output row, reflected for the blur
  AlignedBuffer<float> image;        // [C, out_height, padded(out_width)]
  AlignedBuffer<float> blur;         // [radius + 1]: the half kernel
};

// scale multiplies every weight: it is what takes a pixel of the source's type to [0, 1].
inline void fill_row_taps(RowTaps* taps, const ResizeAxis& axis, int32_t out, int32_t shift, float scale) {
  taps->most = most_taps(axis);
  int32_t* first = taps->first.at_least(out);
  int32_t* count = taps->count.at_least(out);
  float* weights = taps->weight.at_least(static_cast<size_t>(out) * taps->most);
  for (int32_t y = 0; y < out; ++y, weights += taps->most) {
    const float centre = tap_centre(axis, y + shift);
    first[y] = first_tap(axis, centre);
    count[y] = end_tap(axis, centre) - first[y];
    float sum = 0.0f;
    for (int32_t k = 0; k < count[y]; ++k) sum += weights[k] = tap_weight(axis, centre, first[y] + k);
    const float share = scale / sum;
    for (int32_t k = 0; k < count[y]; ++k) weights[k] *= share;
  }
}

// flip: output column x shows what column out - 1 - x would. lanes: of a vector, 0 for no windows.
inline void fill_column_taps(ColumnTaps* taps, const ResizeAxis& axis, int32_t out, int32_t shift, bool flip,
                             int32_t lanes) {
  taps->stride = padded(out);
  const int32_t most = most_taps(axis), stride = taps->stride;
  int32_t* index = taps->index.at_least(static_cast<size_t>(most) * stride);
  float* weight = taps->weight.at_least(static_cast<size_t>(most) * stride);
  taps->taps = 1;
  for (int32_t x = 0; x < stride; ++x) {
    const int32_t column = x < out ? x : out - 1;
    const float centre = tap_centre(axis, shift + (flip ? out - 1 - column : column));
    const int32_t first = first_tap(axis, centre), count = end_tap(axis, centre) - first;
    float sum = 0.0f;
    for (int32_t k = 0; k < most; ++k) {
      index[k * stride + x] = first + (k < count ? k : count - 1);
      weight[k * stride + x] = k < count ? tap_weight(axis, centre, first + k) : 0.0f;
      sum += weight[k * stride + x];
    }
    const float share = x < out ? 1.0f / sum : 0.0f;
    for (int32_t k = 0; k < count; ++k) weight[k * stride + x] *= share;
    taps->taps = count > taps->taps ? count : taps->taps;
  }

  // Columns ascend with x, or descend with a flip: the first taps of a vector's ends are the extremes.
  taps->windowed = lanes > 0;
  int32_t* base = taps->base.at_least(lanes > 0 ? stride / lanes : 0);
  const int32_t* last = index + (taps->taps - 1) * stride;
  for (int32_t x = 0; taps->windowed && x < stride; x += lanes) {
    base[x / lanes] = index[flip ? x + lanes - 1 : x];
    taps->windowed = last[flip ? x : x + lanes - 1] - base[x / lanes] < 2 * lanes;
  }
  if (!taps->windowed) return;
  for (int32_t k = 0; k < taps->taps; ++k) {
    for (int32_t x = 0; x < stride; ++x) index[k * stride + x] -= base[x / lanes];
  }
}

}  // namespace simclr::cpu
