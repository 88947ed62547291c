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

// Starts copying rows [row, row + tile_rows), bytes [byte, byte + row_bytes) of the matrix into a tile. What lies
// outside the matrix becomes zero. row_bytes / 16 must divide the number of threads.
__device__ __forceinline__ void copy_tile(unsigned char* tile, const RowMatrix& matrix, int row, int tile_rows,
                                          int64_t byte, int row_bytes) {
  const int chunks = row_bytes / kChunkBytes;
  const int chunk = threadIdx.x % chunks, rows_at_once = blockDim.x / chunks;
  const int64_t column = byte + chunk * kChunkBytes;
  for (int r = threadIdx.x / chunks; r < tile_rows; r += rows_at_once) {
    const bool inside = row + r < matrix.rows && column < matrix.pitch;
    const unsigned char* source = inside ? matrix.data + (row + r) * matrix.pitch + column : matrix.data;
    ptx::cp_async<kChunkBytes>(tile + chunk_offset(r, chunk, row_bytes), source, inside ? kChunkBytes : 0);
  }
}

// Rows [row, row + 16) of a step: the A operand.
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const unsigned char* tile, int row, int step, int row_bytes) {
  const int lane = threadIdx.x % 32;
  ptx::ldmatrix_x4(a, tile + chunk_offset(row + lane % 16, 2 * step + lane / 16, row_bytes));
}

// Rows [row, row + 16) of a step as columns of the product: b[0..1] and b[2..3] are the B operands of eight columns
// each.
__device__ __forceinline__ void load_b(uint32_t (&b)[4], const unsigned char* tile, int row, int step, int row_bytes) {
  const int lane = threadIdx.x % 32;
  ptx::ldmatrix_x4(b, tile + chunk_offset(row + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2, row_bytes));
}

// fp16 operands, one product.
struct HalfOperand {
  using Element = __half;
  static constexpr int kRowFragments = 2;  // 16-row fragments that a warp of the backward kernel owns

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

  // d[.][kFirst .. kFirst + kCount) += p (tile rows [row, row + 16), element columns from column + 8 kFirst). p are
  // accumulators: columns 0-7 in p[.][0], 8-15 in p[.][1]. Packed in pairs they are an A operand as they stand.
  template <int kFirst, int kCount, int kAll>
  __device__ static void accumulate(float (&d)[kRowFragments][kAll][4], const float (&p)[kRowFragments][2][4],
                                    const unsigned char* tile, int row, int column, int row_bytes) {
    const int lane = threadIdx.x % 32;
    Fragment<4> a[kRowFragments];
#pragma unroll
    for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[m].x[i] = pack(p[m][i / 2][2 * (i % 2)], p[m][i / 2][2 * (i % 2) + 1]);
    }
#pragma unroll
    for (int n = 0; n < kCount; n += 2) {
      uint32_t b[4];
      ptx::ldmatrix_x4_trans(b, tile + chunk_offset(row + lane % 16, column / 8 + kFirst + n + lane / 16, row_bytes));
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m) {
        multiply_add(d[m][kFirst + n], a[m], fragment<2>(b));
        multiply_add(d[m][kFirst + n + 1], a[m], fragment<2>(b + 2));
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
// x y = big big + big small + small big, and what is left out is below 2^-22 |x y|.
template <int kProducts>
struct FloatOperand {
  static_assert(kProducts == 1 || kProducts == 3, "one tf32 product, or three");
  using Element = float;
  static constexpr int kRowFragments = 1;

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
    if constexpr (kProducts == 3) {
      ptx::mma_m16n8k8_tf32(d, a.small, b.big);
      ptx::mma_m16n8k8_tf32(d, a.big, b.small);
    }
    ptx::mma_m16n8k8_tf32(d, a.big, b.big);
  }

  // As HalfOperand::accumulate, in two steps of eight rows. The accumulators are an A operand if the rows of a step are
  // numbered 0, 2, 4, 6, 1, 3, 5, 7 in both operands; reading every other row is free of bank conflicts, too.
  template <int kFirst, int kCount, int kAll>
  __device__ static void accumulate(float (&d)[kRowFragments][kAll][4], const float (&p)[kRowFragments][2][4],
                                    const unsigned char* tile, int row, int column, int row_bytes) {
    const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      Fragment<4> a[kRowFragments];
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m) {
        const float(&x)[4] = p[m][step];
        const uint32_t raw[4] = {__float_as_uint(x[0]), __float_as_uint(x[2]), __float_as_uint(x[1]),
                                 __float_as_uint(x[3])};
        a[m] = fragment<4>(raw);
      }
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
        uint32_t raw[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int element = column + 8 * (kFirst + n) + group;
          const unsigned char* chunk = tile + chunk_offset(row + 8 * step + 2 * quad + i, element / 4, row_bytes);
          raw[i] = *reinterpret_cast<const uint32_t*>(chunk + element % 4 * 4);
        }
#pragma unroll
        for (int m = 0; m < kRowFragments; ++m) multiply_add(d[m][kFirst + n], a[m], fragment<2>(raw));
      }
    }
  }
};

}  // namespace simclr::cuda
