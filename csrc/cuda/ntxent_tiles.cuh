// Tiles of u in shared memory, and the tensor-core operands made of them.
//
// A tile holds rows of u as 16-byte chunks; chunk c of row r lies at chunk c ^ (r mod 8). Rows are a multiple of 128
// bytes long, so eight neighbouring rows of one chunk column fall into eight different bank groups: ldmatrix, plain and
// transposed, and the copies into the tile are free of bank conflicts.
//
// A step is 32 bytes of a row: the depth of one mma, 16 fp16 or 8 tf32 elements. Byte for byte the two fragment layouts
// are the same, so one ldmatrix.x4 loads either.
#pragma once

#include "launch.cuh"
#include "ptx.cuh"

namespace simclr::cuda {

constexpr int kChunkBytes = 16;
constexpr int kStepBytes = 32;

__device__ __forceinline__ int chunk_offset(int row, int chunk, int row_bytes) {
  return row * row_bytes + ((chunk ^ (row & 7)) * kChunkBytes);
}

// A matrix of u in global memory: `rows` rows, of which every one is `pitch` bytes, a multiple of 16.
struct RowMatrix {
  const unsigned char* data;
  int64_t pitch;
  int rows;
};

// Starts copying rows [row, row + tile_rows), bytes [byte, byte + row_bytes) of the matrix into a tile, with all
// `threads` of the block. What lies outside the matrix becomes zero. row_bytes / 16 must divide `threads`.
__device__ __forceinline__ void copy_tile(unsigned char* tile, const RowMatrix& matrix, int row, int tile_rows,
                                          int64_t byte, int row_bytes, int threads) {
  const int chunks = row_bytes / kChunkBytes;
  const int chunk = threadIdx.x % chunks, first = threadIdx.x / chunks, rows_at_once = threads / chunks;
  const int64_t column = byte + chunk * kChunkBytes, step = rows_at_once * matrix.pitch;
  const int rows_inside = column < matrix.pitch ? matrix.rows - row : 0;
  const unsigned char* source = matrix.data + (row + first) * matrix.pitch + column;  // not touched where it is outside
#pragma unroll 8
  for (int r = first; r < tile_rows; r += rows_at_once, source += step) {
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

// fp16 operands, one product.
struct HalfOperand {
  using Element = __half;
  static constexpr int kRowFragments = 2;   // 16-row fragments that a warp of the backward kernel owns
  static constexpr int kStepsUnrolled = 4;  // of a stage in the forward: all of them

  template <int N>
  struct Fragment {
    uint32_t x[N];
  };
  template <int N>
  __device__ static Fragment<N> fragment(const uint32_t* raw) {
    Fragment<N> f;
    for (int i = 0; i < N; ++i) f.x[i] = raw[i];
    return f;
  }
  __device__ static void multiply_add(float (&d)[4], const Fragment<4>& a, const Fragment<2>& b) {
    ptx::mma_m16n8k16_f16(d, a.x, b.x);
  }

  // Accumulators p of 16 columns (0-7 in p[.][0], 8-15 in p[.][1]) as A operands: packed in pairs, they are as they
  // stand.
  struct Coefficients {
    Fragment<4> a[kRowFragments];
  };
  __device__ static Coefficients coefficients(const float (&p)[kRowFragments][2][4]) {
    Coefficients c;
#pragma unroll
    for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) c.a[m].x[i] = pack(p[m][i / 2][2 * (i % 2)], p[m][i / 2][2 * (i % 2) + 1]);
    }
    return c;
  }

  __device__ static LaneOffset element_offset(int row_bytes) { return a_offset(row_bytes); }

  // d[.][kFirst .. kFirst + kCount) += c (rows [0, 16), from their 8 kFirst-th element on).
  template <int kFirst, int kCount, int kAll>
  __device__ static void accumulate(float (&d)[kRowFragments][kAll][4], const Coefficients& c,
                                    const unsigned char* rows, const LaneOffset& offset, int) {
#pragma unroll
    for (int n = kFirst; n < kFirst + kCount; n += 2) {
      uint32_t b[4];
      ptx::ldmatrix_x4_trans(b, rows + offset.at(n));
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m) {
        multiply_add(d[m][n], c.a[m], fragment<2>(b));
        multiply_add(d[m][n + 1], c.a[m], fragment<2>(b + 2));
      }
    }
  }

  __device__ static uint32_t pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
  }
};

// fp32 operands as tf32: one product, or three that together keep fp32's accuracy. x = big + small with both tf32:
// x y = big big + big small + small big, and what is left out is below 2^-22 |x y|. Tensor cores cut off what does not
// fit when they add, always toward zero; so three products are summed from zero, the small ones first, and go into the
// accumulators by ordinary additions, which round: else every logit would be short of up to 1e-6 of itself.
template <int kProducts>
struct FloatOperand {
  static_assert(kProducts == 1 || kProducts == 3, "one tf32 product, or three");
  using Element = float;
  static constexpr int kRowFragments = 1;
  static constexpr int kStepsUnrolled = kProducts == 3 ? 1 : 4;  // more at once would be held in registers, and spilled

  template <int N>
  struct Fragment {
    uint32_t big[N];
    uint32_t small[kProducts == 3 ? N : 1];
  };
  template <int N>
  __device__ static Fragment<N> fragment(const uint32_t* raw) {
    Fragment<N> f;
    for (int i = 0; i < N; ++i) {
      uint32_t bits = raw[i];
      if constexpr (kProducts == 3)
        asm volatile("" : "+r"(bits));  // else splits are kept from before a loop, and spilled
      const float x = __uint_as_float(bits);
      f.big[i] = ptx::to_tf32(x);
      if constexpr (kProducts == 3) f.small[i] = ptx::to_tf32(x - __uint_as_float(f.big[i]));
    }
    return f;
  }
  __device__ static void multiply_add(float (&d)[4], const Fragment<4>& a, const Fragment<2>& b) {
    if constexpr (kProducts == 1) {
      ptx::mma_m16n8k8_tf32(d, a.big, b.big);
    } else {
      float part[4] = {};
      add_small_products(part, a, b);
      ptx::mma_m16n8k8_tf32(part, a.big, b.big);
      promote(d, part);
    }
  }
  // Two steps.
  __device__ static void multiply_add(float (&d)[4], const Fragment<4> (&a)[2], const Fragment<2> (&b)[2]) {
    if constexpr (kProducts == 1) {
      multiply_add(d, a[0], b[0]);
      multiply_add(d, a[1], b[1]);
    } else {
      float part[4] = {};
      add_small_products(part, a[0], b[0]);
      add_small_products(part, a[1], b[1]);
      ptx::mma_m16n8k8_tf32(part, a[0].big, b[0].big);
      ptx::mma_m16n8k8_tf32(part, a[1].big, b[1].big);
      promote(d, part);
    }
  }
  __device__ static void add_small_products(float (&part)[4], const Fragment<4>& a, const Fragment<2>& b) {
    ptx::mma_m16n8k8_tf32(part, a.small, b.big);
    ptx::mma_m16n8k8_tf32(part, a.big, b.small);
  }
  __device__ static void promote(float (&d)[4], const float (&part)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += part[i];
  }

  // As HalfOperand's, in two steps of eight rows. The accumulators are A operands if the rows of a step are numbered 0,
  // 2, 4, 6, 1, 3, 5, 7 in both operands; reading every other row of a tile is free of bank conflicts, too.
  struct Coefficients {
    Fragment<4> a[kRowFragments][2];
  };
  __device__ static Coefficients coefficients(const float (&p)[kRowFragments][2][4]) {
    Coefficients c;
#pragma unroll
    for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const float(&x)[4] = p[m][step];
        const uint32_t raw[4] = {__float_as_uint(x[0]), __float_as_uint(x[2]), __float_as_uint(x[1]),
                                 __float_as_uint(x[3])};
        c.a[m][step] = fragment<4>(raw);
      }
    }
    return c;
  }

  __device__ static LaneOffset element_offset(int row_bytes) {
    const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    return LaneOffset(2 * quad, group / 4, row_bytes);
  }

  template <int kFirst, int kCount, int kAll>
  __device__ static void accumulate(float (&d)[kRowFragments][kAll][4], const Coefficients& c,
                                    const unsigned char* rows, const LaneOffset& offset, int row_bytes) {
    const unsigned char* own = rows + threadIdx.x / 4 % 4 * sizeof(float);
#pragma unroll
    for (int n = kFirst; n < kFirst + kCount; ++n) {
      const unsigned char* even = own + offset.at(2 * n);                             // row 2 quad
      const unsigned char* odd = own + (offset.at(2 * n) ^ kChunkBytes) + row_bytes;  // row 2 quad + 1
      Fragment<2> b[2];
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint32_t raw[2] = {*reinterpret_cast<const uint32_t*>(even + 8 * step * row_bytes),
                                 *reinterpret_cast<const uint32_t*>(odd + 8 * step * row_bytes)};
        b[step] = fragment<2>(raw);
      }
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m) multiply_add(d[m][n], c.a[m], b);
    }
  }
};

}  // namespace simclr::cuda
