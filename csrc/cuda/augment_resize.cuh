// The crop, resized (antialiased bilinear, separable) into a block's pixel buffer.
//
// Chunks of kChunkRows source rows go through shared memory: their bytes are staged as they are, by whole sectors;
// resized horizontally; and added, weighted, to the output rows they belong to. A row that is longer
// than the staging area comes in chunks of columns, so that no scale and no image is too large.
#pragma once

#include <cstdint>

#include "augment_tile.cuh"

namespace simclr::cuda {

// Source rows that share a thread's horizontal weights: sums and addresses of four rows of three channels take 36 of
// the 80 registers; with eight rows the kernels spill.
constexpr int kRowsPerThread = 4;
// Columns of a thread, 32 apart, that share its vertical weights: three serve the 88 columns of a tile with the halo of
// 23 taps, and a whole view of 96, in one round; two would take two rounds.
constexpr int kSpansPerRow = 3;

// The taps of outputs [begin, end) of one axis; output i shows position(i) of the resized crop. put(i, taps) keeps
// them.
template <class Position, class Put>
__device__ __forceinline__ void find_taps(const ResizeAxis& axis, int begin, int end, float scale,
                                          const Position& position, const Put& put) {
  for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += blockDim.x) {
    const float centre = tap_centre(axis, position(i));
    const int first = first_tap(axis, centre), last = end_tap(axis, centre);
    float sum = 0.0f;
    for (int k = first; k < last; ++k) sum += tap_weight(axis, centre, k);
    put(i - begin, Taps{first, last, centre, scale / sum});
  }
}

// Ends with a barrier.
template <int C>
__device__ __forceinline__ void fill_tap_tables(const Block<C>& block, bool flip) {
  const AugmentParams& p = block.view.params;
  const int mirror = block.args.out_width - 1;
  find_taps(
      block.view.x, block.region.left, block.region.right,
      block.args.images.type == PixelType::kUint8 ? 1.0f / 255.0f : 1.0f,
      [&](int x) { return (flip ? mirror - x : x) + p.shift_x; },
      [&](int i, const Taps& taps) { block.columns.set(i, taps); });
  find_taps(
      block.view.y, block.region.top, block.region.bottom, 1.0f, [&](int y) { return y + p.shift_y; },
      [&](int i, const Taps& taps) { block.lines[i] = taps; });
  __syncthreads();
}

// The part of the crop that the region's taps reach, and how many of its columns are staged at once.
struct Reach {
  int32_t first_row, end_row, first_column, end_column, columns_at_once;
};

template <int C>
__device__ __forceinline__ Reach reach_of(const Block<C>& block) {
  const Source& s = block.view.source;
  const Taps leftmost = block.columns[0],
             rightmost = block.columns[block.region.width() - 1];  // or swapped by a flip
  const int run_pitch = block.plan.staged_row_bytes / s.runs_per_row;
  const int pixel = s.contiguous ? s.run_pixel : s.element;
  return {block.lines[0].first, block.lines[block.region.height() - 1].end, min(leftmost.first, rightmost.first),
          max(leftmost.end, rightmost.end),
          (run_pitch - (kSectorBytes - 1)) / pixel};  // wherever in a sector a run starts
}

// A chunk of the crop: rows [row, row + rows) and columns [column, column + columns).
struct Chunk {
  int32_t row, rows, column, columns;
};

__device__ __forceinline__ const char* run_address(const Source& s, const Chunk& chunk, int row, int channel) {
  return s.crop + (chunk.row + row) * s.stride_h + channel * s.stride_c + chunk.column * s.stride_w;
}

// Bytes of the staging area before a run's first pixel: runs keep their place within a sector. The low bits of
// run_address.
__device__ __forceinline__ int run_shift(const Source& s, const Chunk& chunk, int row, int channel) {
  const auto low = [](int64_t x) { return static_cast<uint32_t>(x); };
  const uint32_t address = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(s.crop)) +
                           static_cast<uint32_t>(chunk.row + row) * low(s.stride_h) +
                           static_cast<uint32_t>(channel) * low(s.stride_c) +
                           static_cast<uint32_t>(chunk.column) * low(s.stride_w);
  return s.contiguous ? static_cast<int>(address % kSectorBytes) : 0;
}

// The word at `from`, with zeros for its bytes outside of [low, high).
__device__ __forceinline__ uint32_t word_within(const char* from, const char* low, const char* high) {
  if (from >= low && from + 4 <= high) return *reinterpret_cast<const uint32_t*>(from);
  uint32_t word = 0;
  for (int k = 0; k < 4; ++k) {
    if (from + k >= low && from + k < high) {
      word |= static_cast<uint32_t>(static_cast<unsigned char>(from[k])) << (8 * k);
    }
  }
  return word;
}

// Copies the sectors that hold bytes [begin, begin + bytes), 16 bytes per lane. Memory is read by whole sectors anyhow,
// and whole ones need no narrow loads at their ends. Only bytes in [low, high), the image's own row, are touched.
__device__ __forceinline__ void stage_sectors(const char* begin, int bytes, const char* low, const char* high,
                                              char* staged) {
  const int shift = static_cast<int>(reinterpret_cast<uintptr_t>(begin) % kSectorBytes);
  const int end = (shift + bytes + kSectorBytes - 1) / kSectorBytes * kSectorBytes;
  for (int at = lane_index() * 16; at < end; at += kWarp * 16) {
    const char* from = begin - shift + at;
    uint4 quad;
    if (from >= low && from + 16 <= high) {
      quad = *reinterpret_cast<const uint4*>(from);
    } else {
      quad = make_uint4(word_within(from, low, high), word_within(from + 4, low, high),
                        word_within(from + 8, low, high), word_within(from + 12, low, high));
    }
    *reinterpret_cast<uint4*>(staged + at) = quad;
  }
}

template <class T>
__device__ __forceinline__ void stage_elements(const char* begin, int64_t stride, int count, char* staged) {
  for (int k = lane_index(); k < count; k += kWarp) {
    reinterpret_cast<T*>(staged)[k] = *reinterpret_cast<const T*>(begin + k * stride);
  }
}

template <int C>
__device__ __forceinline__ void stage(const Block<C>& block, const Source& s, const Chunk& chunk) {
  const int run_pitch = block.plan.staged_row_bytes / s.runs_per_row;
  for (int run = warp_index(); run < chunk.rows * s.runs_per_row; run += warp_count()) {
    const char* begin = run_address(s, chunk, run / s.runs_per_row, run % s.runs_per_row);
    char* staged = block.staged + run * run_pitch;
    if (s.contiguous) {
      const char* low = begin - (block.view.params.left + chunk.column) * s.stride_w;
      stage_sectors(begin, chunk.columns * s.run_pixel, low, low + s.image_width * s.stride_w, staged);
    } else if (s.element == 1) {
      stage_elements<uint8_t>(begin, s.stride_w, chunk.columns, staged);
    } else if (s.element == 2) {
      stage_elements<uint16_t>(begin, s.stride_w, chunk.columns, staged);
    } else {
      stage_elements<uint32_t>(begin, s.stride_w, chunk.columns, staged);
    }
  }
}

__device__ __forceinline__ float to_float(uint8_t x) { return static_cast<float>(x); }
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// Calls f(T()) for the images' type of pixels, T.
template <class F>
__device__ __forceinline__ void with_pixel_type(PixelType type, const F& f) {
  switch (type) {
    case PixelType::kUint8:
      f(uint8_t());
      break;
    case PixelType::kFloat16:
      f(__half());
      break;
    case PixelType::kBfloat16:
      f(__nv_bfloat16());
      break;
    case PixelType::kFloat32:
      f(float());
      break;
  }
}

// Channel c of the first pixel of a staged row; the next pixel is run_pixel bytes further.
template <class T, int C>
__device__ __forceinline__ const T* staged_pixels(const Block<C>& block, const Source& s, const Chunk& chunk, int row,
                                                  int c) {
  const int run_pitch = block.plan.staged_row_bytes / s.runs_per_row;
  const char* run = block.staged + (s.interleaved ? row : row * C + c) * run_pitch;
  return reinterpret_cast<const T*>(run + run_shift(s, chunk, row, s.interleaved ? 0 : c)) + (s.interleaved ? c : 0);
}

// Resizes the staged rows to the region's columns. A warp takes 32 columns of kRowsPerThread rows.
template <class T, int C>
__device__ __forceinline__ void resize_horizontally(const Block<C>& block, const Source& s, const Chunk& chunk) {
  const int width = block.region.width(), pitch = block.plan.pitch;
  const int step = s.run_pixel / static_cast<int>(sizeof(T));
  float* resized = block.resized_rows + block.region.left - block.tile.x + block.plan.margin;
  const Spans spans(width);
  const int units = spans.count * ((chunk.rows + kRowsPerThread - 1) / kRowsPerThread);
  for (int unit = warp_index(); unit < units; unit += warp_count()) {
    const int group = spans.row(unit), x = spans.column(unit, group);
    if (x >= width) continue;
    const Taps taps = block.columns[x];
    const int begin = max(taps.first, chunk.column), end = min(taps.end, chunk.column + chunk.columns);
    if (begin >= end) continue;

    const T* pixel[kRowsPerThread][C];
    float sum[kRowsPerThread][C];
    const int first_row = group * kRowsPerThread, rows = min(kRowsPerThread, chunk.rows - first_row);
    float* out = resized + first_row * C * pitch + x;
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) {
      const int row = first_row + min(r, rows - 1);  // the last group's spare rows repeat its last
#pragma unroll
      for (int c = 0; c < C; ++c) {
        pixel[r][c] = staged_pixels<T>(block, s, chunk, row, c) + (begin - chunk.column) * step;
        sum[r][c] = begin == taps.first ? 0.0f : out[(min(r, rows - 1) * C + c) * pitch];
      }
    }
    float offset = static_cast<float>(begin) - taps.centre + 0.5f;
    for (int k = begin; k < end; ++k, offset += 1.0f) {
      const float weight = tap_weight(block.view.x, offset);
#pragma unroll
      for (int r = 0; r < kRowsPerThread; ++r) {
#pragma unroll
        for (int c = 0; c < C; ++c) {
          sum[r][c] += weight * to_float(*pixel[r][c]);
          pixel[r][c] += step;
        }
      }
    }
    const float scale = end == taps.end ? taps.scale : 1.0f;
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) {
      if (r >= rows) break;
#pragma unroll
      for (int c = 0; c < C; ++c) out[(r * C + c) * pitch] = sum[r][c] * scale;
    }
  }
}

// Adds the resized source rows [row, row + rows) to the output rows they belong to. A warp takes a whole row of the
// region, kSpansPerRow times 32 columns at once, which share the weights.
template <int C>
__device__ __forceinline__ void resize_vertically(const Block<C>& block, int row, int rows) {
  const Region& region = block.region;
  const int width = region.width(), pitch = block.plan.pitch;
  const int origin = region.left - block.tile.x + block.plan.margin + lane_index();
  for (int y = warp_index(); y < region.height(); y += warp_count()) {
    const Taps taps = block.lines[y];
    const int begin = max(taps.first, row), end = min(taps.end, row + rows);
    if (begin >= end) continue;
    const bool starts = begin == taps.first;
    const float scale = end == taps.end ? taps.scale : 1.0f;
    const float first_offset = static_cast<float>(begin) - taps.centre + 0.5f;
    for (int left = 0; left < width; left += kSpansPerRow * kWarp) {
      float* out = block.pixels + y * pitch + origin + left;
      const float* resized = block.resized_rows + (begin - row) * C * pitch + origin + left;
      const int spans = min(kSpansPerRow, (width - left + kWarp - 1) / kWarp);
      const auto inside = [&](int s) { return left + s * kWarp + lane_index() < width; };
      float sum[kSpansPerRow][C];
#pragma unroll
      for (int s = 0; s < kSpansPerRow; ++s) {
#pragma unroll
        for (int c = 0; c < C; ++c) sum[s][c] = starts || !inside(s) ? 0.0f : out[s * kWarp + c * block.plane()];
      }
      float offset = first_offset;
      for (int k = begin; k < end; ++k, offset += 1.0f) {
        const float weight = tap_weight(block.view.y, offset);
#pragma unroll
        for (int s = 0; s < kSpansPerRow; ++s) {
          if (s >= spans) break;
#pragma unroll
          for (int c = 0; c < C; ++c) {
            if (inside(s)) sum[s][c] += weight * resized[c * pitch + s * kWarp];
          }
        }
        resized += C * pitch;
      }
#pragma unroll
      for (int s = 0; s < kSpansPerRow; ++s) {
#pragma unroll
        for (int c = 0; c < C; ++c) {
          if (inside(s)) out[s * kWarp + c * block.plane()] = sum[s][c] * scale;
        }
      }
    }
  }
}

// Fills the region of the pixel buffer; ends with a barrier.
template <int C>
__device__ __forceinline__ void resize(const Block<C>& block) {
  fill_tap_tables(block, block.view.params.flags & kHflip);
  const Source& s = block.view.source;
  const Reach reach = reach_of(block);
  for (int row = reach.first_row; row < reach.end_row; row += kChunkRows) {
    const int rows = min(kChunkRows, reach.end_row - row);
    for (int column = reach.first_column; column < reach.end_column; column += reach.columns_at_once) {
      const Chunk chunk = {row, rows, column, min(reach.columns_at_once, reach.end_column - column)};
      stage(block, s, chunk);
      __syncthreads();
      with_pixel_type(block.args.images.type,
                      [&](auto pixel) { resize_horizontally<decltype(pixel)>(block, s, chunk); });
      __syncthreads();
    }
    resize_vertically(block, row, rows);
  }
  __syncthreads();
}

}  // namespace simclr::cuda
