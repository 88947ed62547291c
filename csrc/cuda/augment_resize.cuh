// The crop, resized (antialiased bilinear, separable) into a block's pixel buffer.
//
// Chunks of kChunkRows source rows go through shared memory: their bytes are staged as they are, with whole words of
// coalesced loads; resized horizontally; and added, weighted, to the output rows they belong to. A row that is longer
// than the staging area comes in chunks of columns, so that no scale and no image is too large.
#pragma once

#include <cstdint>

#include "augment_tile.cuh"

namespace simclr::cuda {

constexpr int kRowsPerThread = 2;  // source rows that share a thread's horizontal weights

// The weight tables of one axis. Output i shows position position(i) of the resized crop.
template <class Position>
__device__ __forceinline__ void fill_taps(const ResizeAxis& axis, int begin, int end, float scale,
                                          const Position& position, Taps* table) {
  for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += blockDim.x) {
    const float centre = tap_centre(axis, position(i));
    const int first = first_tap(axis, centre), last = end_tap(axis, centre);
    float sum = 0.0f;
    for (int k = first; k < last; ++k) sum += tap_weight(axis, centre, k);
    table[i - begin] = {first, last, centre, scale / sum};
  }
}

template <int C>
__device__ __forceinline__ void fill_tap_tables(const Block<C>& block) {
  const AugmentParams& p = block.view.params;
  const bool flip = p.flags & kHflip;
  const int mirror = block.args.out_width - 1;
  fill_taps(
      block.view.x, block.region.left, block.region.right,
      block.args.images.type == PixelType::kUint8 ? 1.0f / 255.0f : 1.0f,
      [&](int x) { return (flip ? mirror - x : x) + p.shift_x; }, block.columns);
  fill_taps(
      block.view.y, block.region.top, block.region.bottom, 1.0f, [&](int y) { return y + p.shift_y; }, block.lines);
}

// How source pixels lie in memory, in bytes. A run is a piece of a row that is contiguous there: all channels of
// interleaved pixels, or one channel.
struct SourceLayout {
  const char* crop;  // pixel (top, left), channel 0
  int64_t stride_c, stride_h, stride_w;
  int32_t element;  // bytes
  bool interleaved, contiguous;
  int32_t runs_per_row, run_pixel;  // run_pixel: bytes from pixel to pixel within a run
};

template <int C>
__device__ __forceinline__ SourceLayout source_layout(const Block<C>& block) {
  const ImageView& image = block.view.source;
  SourceLayout s;
  s.element = pixel_bytes(block.args.images.type);
  s.stride_c = image.stride_c * s.element;
  s.stride_h = image.stride_h * s.element;
  s.stride_w = image.stride_w * s.element;
  s.interleaved = C > 1 && image.stride_c == 1 && image.stride_w == C;
  s.contiguous = s.interleaved || image.stride_w == 1;
  s.runs_per_row = s.interleaved ? 1 : C;
  s.run_pixel = s.interleaved ? C * s.element : s.element;
  s.crop =
      static_cast<const char*>(image.data) + block.view.params.top * s.stride_h + block.view.params.left * s.stride_w;
  return s;
}

// A chunk of the crop: rows [row, row + rows) and columns [column, column + columns).
struct Chunk {
  int32_t row, rows, column, columns;
};

__device__ __forceinline__ const char* run_address(const SourceLayout& s, const Chunk& chunk, int row, int channel) {
  return s.crop + (chunk.row + row) * s.stride_h + channel * s.stride_c + chunk.column * s.stride_w;
}

// Bytes of the staging area before a run's first pixel: runs keep their alignment to words.
__device__ __forceinline__ int run_shift(const SourceLayout& s, const char* run) {
  return s.contiguous ? static_cast<int>(reinterpret_cast<uintptr_t>(run) & 3) : 0;
}

// Copies the words that hold bytes [begin, begin + bytes). Words are read whole where they lie within [low, high), the
// image's own row.
__device__ __forceinline__ void stage_words(const char* begin, int bytes, const char* low, const char* high,
                                            char* staged) {
  const char* first = begin - (reinterpret_cast<uintptr_t>(begin) & 3);
  const int words = static_cast<int>(begin + bytes - first + 3) / 4;
  for (int w = lane_index(); w < words; w += kWarp) {
    const char* from = first + 4 * w;
    uint32_t word = 0;
    if (from >= low && from + 4 <= high) {
      word = *reinterpret_cast<const uint32_t*>(from);
    } else {
      for (int k = 0; k < 4; ++k) {
        if (from + k >= low && from + k < high) {
          word |= static_cast<uint32_t>(static_cast<unsigned char>(from[k])) << (8 * k);
        }
      }
    }
    reinterpret_cast<uint32_t*>(staged)[w] = word;
  }
}

template <class T>
__device__ __forceinline__ void stage_elements(const char* begin, int64_t stride, int count, char* staged) {
  for (int k = lane_index(); k < count; k += kWarp) {
    reinterpret_cast<T*>(staged)[k] = *reinterpret_cast<const T*>(begin + k * stride);
  }
}

template <int C>
__device__ __forceinline__ void stage(const Block<C>& block, const SourceLayout& s, const Chunk& chunk) {
  const int run_pitch = block.plan.staged_row_bytes / s.runs_per_row;
  for (int run = warp_index(); run < chunk.rows * s.runs_per_row; run += warp_count()) {
    const char* begin = run_address(s, chunk, run / s.runs_per_row, run % s.runs_per_row);
    char* staged = block.staged + run * run_pitch;
    if (s.contiguous) {
      const char* low = begin - (block.view.params.left + chunk.column) * s.stride_w;
      stage_words(begin, chunk.columns * s.run_pixel, low, low + block.view.source.width * s.stride_w, staged);
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

// Resizes the staged rows to the region's columns. A warp takes 32 columns of kRowsPerThread rows.
template <class T, int C>
__device__ __forceinline__ void resize_horizontally(const Block<C>& block, const SourceLayout& s, const Chunk& chunk) {
  const int width = block.region.width(), left = block.region.left - block.tile.x + block.plan.margin;
  const int spans = (width + kWarp - 1) / kWarp;
  const int groups = (chunk.rows + kRowsPerThread - 1) / kRowsPerThread;
  const int run_pitch = block.plan.staged_row_bytes / s.runs_per_row;
  const int step = s.run_pixel / static_cast<int>(sizeof(T));
  for (int unit = warp_index(); unit < spans * groups; unit += warp_count()) {
    const int x = unit % spans * kWarp + lane_index();
    if (x >= width) continue;
    const Taps taps = block.columns[x];
    const int begin = max(taps.first, chunk.column), end = min(taps.end, chunk.column + chunk.columns);
    if (begin >= end) continue;

    const T* pixel[kRowsPerThread][C];
    float* out[kRowsPerThread];
    float sum[kRowsPerThread][C];
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) {
      // The last group's spare rows repeat the chunk's last row.
      const int row = min(unit / spans * kRowsPerThread + r, chunk.rows - 1);
      out[r] = block.resized_rows + row * C * block.plan.pitch + left + x;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const int run = s.interleaved ? row : row * s.runs_per_row + c;
        const char* first =
            block.staged + run * run_pitch + run_shift(s, run_address(s, chunk, row, s.interleaved ? 0 : c));
        pixel[r][c] = reinterpret_cast<const T*>(first) + (s.interleaved ? c : 0) + (begin - chunk.column) * step;
        sum[r][c] = begin == taps.first ? 0.0f : out[r][c * block.plan.pitch];
      }
    }
    for (int k = begin; k < end; ++k) {
      const float weight = tap_weight(block.view.x, taps.centre, k);
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
#pragma unroll
      for (int c = 0; c < C; ++c) out[r][c * block.plan.pitch] = sum[r][c] * scale;
    }
  }
}

// Adds the resized source rows [row, row + rows) to the output rows they belong to.
template <int C>
__device__ __forceinline__ void resize_vertically(const Block<C>& block, int row, int rows) {
  const Region& region = block.region;
  for_each_pixel(region.left, region.top, region.width(), region.height(), [&](int x, int y) {
    const Taps taps = block.lines[y - region.top];
    const int begin = max(taps.first, row), end = min(taps.end, row + rows);
    if (begin >= end) return;
    Pixel<C> pixel{};
    if (begin != taps.first) pixel = block.load(x, y);
    const float* resized =
        block.resized_rows + (begin - row) * C * block.plan.pitch + x - block.tile.x + block.plan.margin;
    for (int k = begin; k < end; ++k) {
      const float weight = tap_weight(block.view.y, taps.centre, k);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        pixel.v[c] += weight * *resized;
        resized += block.plan.pitch;
      }
    }
    if (end == taps.end) {
#pragma unroll
      for (int c = 0; c < C; ++c) pixel.v[c] *= taps.scale;
    }
    block.store(x, y, pixel);
  });
}

// Fills the region of the pixel buffer; ends with a barrier.
template <int C>
__device__ __forceinline__ void resize(const Block<C>& block) {
  fill_tap_tables(block);
  __syncthreads();
  const SourceLayout s = source_layout(block);
  const Taps &leftmost = block.columns[0],
             &rightmost = block.columns[block.region.width() - 1];  // or swapped by a flip
  const int first_column = min(leftmost.first, rightmost.first), end_column = max(leftmost.end, rightmost.end);
  const int end_row = block.lines[block.region.height() - 1].end;
  // Room for a shift of up to three bytes in every run.
  const int columns_at_once = (block.plan.staged_row_bytes / C - 4) / s.element;

  for (int row = block.lines[0].first; row < end_row; row += kChunkRows) {
    const int rows = min(kChunkRows, end_row - row);
    for (int column = first_column; column < end_column; column += columns_at_once) {
      const Chunk chunk = {row, rows, column, min(columns_at_once, end_column - column)};
      stage(block, s, chunk);
      __syncthreads();
      switch (block.args.images.type) {
        case PixelType::kUint8:
          resize_horizontally<uint8_t>(block, s, chunk);
          break;
        case PixelType::kFloat16:
          resize_horizontally<__half>(block, s, chunk);
          break;
        case PixelType::kBfloat16:
          resize_horizontally<__nv_bfloat16>(block, s, chunk);
          break;
        case PixelType::kFloat32:
          resize_horizontally<float>(block, s, chunk);
          break;
      }
      __syncthreads();
    }
    resize_vertically(block, row, rows);
  }
  __syncthreads();
}

}  // namespace simclr::cuda
