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

// Starts copying rows [row, row + tile_rows), bytes [byte, byte + row_bytes) of the matrix into a tile. What lies outside
// the matrix becomes zero. row_bytes / 16 must divide the number of threads.
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

// Rows [row, row + 16) of a step as columns of the product: b[0..1] and b[2..3] are the B operands of eight columns each.
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
      const float x = __uint_as_float(raw[i]);
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
};

}  // namespace simclr::cuda
