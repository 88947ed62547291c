// Tiles of u in shared memory, and the tensor-core operands made of them.
//
// A tile holds rows of u as 16-byte chunks; chunk c of row r lies at chunk c ^ (r mod 8). Rows are a multiple of 128
// bytes long, so eight neighbouring rows of one chunk column fall into eight different bank groups: ldmatrix, plain and
// transposed, and the copies into the tile are free of bank conflicts.
//
// A step is 32 bytes of a row: the depth of one mma, 16 fp16 elements. Where three products make one, a row of the tile
// holds runs of hi and of lo in turn, so that one tile brings both.
#pragma once

#include "launch.cuh"
#include "ntxent_problem.h"
#include "ptx.cuh"

namespace simclr::cuda {

constexpr int kChunkBytes = 16;
constexpr int kStepBytes = 32;

__device__ __forceinline__ int chunk_offset(int row, int chunk, int row_bytes) {
  return row * row_bytes + ((chunk ^ (row & 7)) * kChunkBytes);
}

// Starts copying rows [row, row + tile_rows) of the matrix into a tile, with all `threads` of the block: of each of the
// first kParts parts the row_bytes / kParts bytes from `byte` on, in runs of kRunBytes, the parts' runs in turn. What
// lies outside the matrix becomes zero. row_bytes / 16 is a power of two and divides `threads`.
template <int kParts, int kRunBytes>
__device__ __forceinline__ void copy_tile(unsigned char* tile, const RowMatrix& matrix, int row, int tile_rows,
                                          int64_t byte, int row_bytes, int threads) {
  constexpr int kRunChunks = kRunBytes / kChunkBytes;
  const int chunks_log2 = __ffs(row_bytes / kChunkBytes) - 1;
  const int chunk = threadIdx.x & ((1 << chunks_log2) - 1), first = threadIdx.x >> chunks_log2;
  const int rows_at_once = threads >> chunks_log2, run = chunk / kRunChunks;
  const int64_t column = byte + (run / kParts * kRunChunks + chunk % kRunChunks) * kChunkBytes;
  const int64_t step = rows_at_once * matrix.pitch;
  const int rows_inside = column < matrix.part_bytes ? matrix.rows - row : 0;
  const unsigned char* source = matrix.data + (row + first) * matrix.pitch + run % kParts * matrix.part_bytes + column;
#pragma unroll 8
  for (int r = first; r < tile_rows; r += rows_at_once, source += step) {  // a source outside is not touched
    ptx::cp_async<kChunkBytes>(tile + chunk_offset(r, chunk, row_bytes), source, r < rows_inside ? kChunkBytes : 0);
  }
}

// Where the rows lie that a lane passes to ldmatrix (or reads itself): row lane_row, chunk `chunk` + lane_chunk, with
// lane_chunk 0 or 1 and chunk even, counted from a row that is a multiple of 8. Made once per kernel: at() is then an
// exclusive-or, the same one for all chunks that are equal modulo 8.
class LaneOffset {
 public:
  __device__ LaneOffset(int lane_row, int lane_chunk, int row_bytes)
      : base_(lane_row * row_bytes + (lane_chunk ^ (lane_row & 7)) * kChunkBytes) {}
  __device__ int at(int chunk) const { return (base_ ^ ((chunk & 7) * kChunkBytes)) + (chunk & ~7) * kChunkBytes; }

 private:
  int base_;
};

// ldmatrix.x4 of rows [0, 16) of a step as the A operand.
__device__ __forceinline__ LaneOffset a_offset(int row_bytes) {
  const int lane = threadIdx.x % 32;
  return LaneOffset(lane % 16, lane / 16, row_bytes);
}

// ldmatrix.x4 of rows [0, 16) of a step as columns of the product: b[0..1] and b[2..3] are B operands of eight columns.
__device__ __forceinline__ LaneOffset b_offset(int row_bytes) {
  const int lane = threadIdx.x % 32;
  return LaneOffset(lane % 8 + lane / 16 * 8, lane / 8 % 2, row_bytes);
}

__device__ __forceinline__ void load_step(uint32_t (&r)[4], const unsigned char* rows, const LaneOffset& offset,
                                          int step) {
  ptx::ldmatrix_x4(r, rows + offset.at(2 * step));
}

// Two halves as a register of an operand.
__device__ __forceinline__ uint32_t bits_of(const __half2& pair) {
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

// How many fp16 products make one. One: fp16 rows, or of split rows hi alone. Three: split rows, x = hi + lo, as exact as
// fp32 (docs/ntxent.md): x y = lo hi + hi lo + hi hi, and what is left out is below 2^-22 |x y|. Tensor cores cut off
// what does not fit when they add, always toward zero; so three products are summed from zero, the small ones first, and
// go into the accumulators by ordinary additions, which round: else every logit would be short of up to 1e-6 of itself.
template <int kProducts>
struct Products {
  static_assert(kProducts == 1 || kProducts == 3, "one fp16 product, or three");
  static constexpr int kParts = kProducts == 3 ? 2 : 1;
  static constexpr int kRowFragments = 2 / kParts;  // 16-row fragments that a warp of the backward kernel owns
  // Steps of the forward's stage at once: all that it has. Two steps of both parts would be held in registers, and
  // spilled.
  static constexpr int kStepsUnrolled = kProducts == 3 ? 1 : 4;

  // 16 rows of a step of each part: as an A operand, or as the B operands of columns 0-7 (words 0, 1) and 8-15.
  struct Fragment {
    uint32_t of_part[kParts][4];
  };

  // From rows of a tile in runs of kRunBytes.
  template <int kRunBytes>
  __device__ static Fragment load(const unsigned char* rows, const LaneOffset& offset, int step) {
    Fragment f;
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      load_step(f.of_part[part], rows, offset, step + part * (kRunBytes / kStepBytes));
    return f;
  }

  // d += a b, b's columns [8 half, 8 half + 8).
  __device__ static void multiply_add(float (&d)[4], const Fragment& a, const Fragment& b, int half) {
    if constexpr (kProducts == 1) {
      multiply(d, a, 0, b, 0, half);
    } else {
      float sum[4] = {};
      multiply(sum, a, 1, b, 0, half);
      multiply(sum, a, 0, b, 1, half);
      multiply(sum, a, 0, b, 0, half);
      promote(d, sum);
    }
  }
  // The same over two steps.
  __device__ static void multiply_add(float (&d)[4], const Fragment (&a)[2], const Fragment (&b)[2], int half) {
    if constexpr (kProducts == 1) {
      multiply_add(d, a[0], b[0], half);
      multiply_add(d, a[1], b[1], half);
    } else {
      float sum[4] = {};
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        multiply(sum, a[step], 1, b[step], 0, half);
        multiply(sum, a[step], 0, b[step], 1, half);
      }
      multiply(sum, a[0], 0, b[0], 0, half);
      multiply(sum, a[1], 0, b[1], 0, half);
      promote(d, sum);
    }
  }
  __device__ static void multiply(float (&d)[4], const Fragment& a, int part_of_a, const Fragment& b, int part_of_b,
                                  int half) {
    const uint32_t(&words)[4] = b.of_part[part_of_b];
    const uint32_t columns[2] = {words[2 * half], words[2 * half + 1]};
    ptx::mma_m16n8k16_f16(d, a.of_part[part_of_a], columns);
  }
  __device__ static void promote(float (&d)[4], const float (&sum)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += sum[i];
  }

  // Accumulators p of 16 columns (0-7 in p[0], 8-15 in p[1]) as an A operand: packed in pairs, they are as they stand.
  __device__ static Fragment coefficients(const float (&p)[2][4]) {
    Fragment c;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float low = p[i / 2][2 * (i % 2)], high = p[i / 2][2 * (i % 2) + 1];
      const __half2 hi = __floats2half2_rn(low, high);
      c.of_part[0][i] = bits_of(hi);
      if constexpr (kParts == 2) {
        const float2 rounded = __half22float2(hi);
        c.of_part[1][i] = bits_of(__floats2half2_rn(low - rounded.x, high - rounded.y));
      }
    }
    return c;
  }

  // d[.][kFirst .. kFirst + kCount) += c (rows [0, 16), from their 8 kFirst-th column on).
  template <int kFirst, int kCount, int kRunBytes, int kAll>
  __device__ static void accumulate(float (&d)[kRowFragments][kAll][4], const Fragment (&c)[kRowFragments],
                                    const unsigned char* rows, const LaneOffset& offset) {
#pragma unroll
    for (int n = kFirst; n < kFirst + kCount; n += 2) {
      Fragment b;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        ptx::ldmatrix_x4_trans(b.of_part[part], rows + offset.at(n + part * (kRunBytes / kChunkBytes)));
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m) {
        multiply_add(d[m][n], c[m], b, 0);
        multiply_add(d[m][n + 1], c[m], b, 1);
      }
    }
  }
};

}  // namespace simclr::cuda
