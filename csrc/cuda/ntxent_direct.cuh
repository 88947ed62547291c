// Tensor-core operands of u that come straight from global memory, without shared memory and barriers between.
//
// Every load is 16 bytes, and a warp's loads are whole sectors. The order of an mma's depth, and of its columns, is free
// as long as both operands and the accumulators mean the same by it; it is chosen so that what a lane loads is what it
// needs. Rows of u are padded with zeros to whole lines of 128 bytes, their number to whole panels of 16.
//
//   x = u_rows u_columns^T: a lane loads bytes 64 s + 16 quad of row `group` of either operand; its four words serve two
//   mmas. Byte for byte this is the same for fp16 and for tf32.
//   du += c u_columns: c are the accumulators x as they lie. A lane loads 16 bytes of rows 2 quad, 2 quad + 1, + 8, + 9:
//   those of chunk_of(group) of a line. Element t of these is its column `group` of the t-th mma.
#pragma once

#include "ntxent_resident_plan.h"
#include "ntxent_tiles.cuh"

namespace simclr::cuda {

// The most lines of 128 bytes that a row of E has.
template <class E>
constexpr int kLines = kResidentDepth * static_cast<int>(sizeof(E)) / kResidentLine;
// Elements of a 16-byte chunk, and so mmas that a line of u takes as columns.
template <class E>
constexpr int kPerChunk = kChunkBytes / static_cast<int>(sizeof(E));

template <class E>
using DirectRows = uint32_t[kLines<E>][4][4];  // of each step of 32 bytes, the A operand
template <class E>
using DirectSums = float[kLines<E>][kPerChunk<E>][4];  // du of 16 rows

__device__ __forceinline__ uint4 load_chunk(const unsigned char* p) { return *reinterpret_cast<const uint4*>(p); }

__device__ __forceinline__ void words_of(uint32_t (&words)[4], const uint4& chunk) {
  words[0] = chunk.x, words[1] = chunk.y, words[2] = chunk.z, words[3] = chunk.w;
}

// A operands of 16 rows.
template <class E>
__device__ void load_direct_rows(DirectRows<E>& rows, const unsigned char* u, int row_bytes, int lines) {
  const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  const unsigned char* own = u + group * row_bytes + kChunkBytes * quad;
#pragma unroll
  for (int line = 0; line < kLines<E>; ++line) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      uint4 upper = {}, lower = {};
      if (line < lines) {
        upper = load_chunk(own + kResidentLine * line + 64 * s);
        lower = load_chunk(own + kResidentLine * line + 64 * s + 8 * row_bytes);
      }
      uint32_t(&first)[4] = rows[line][2 * s], (&second)[4] = rows[line][2 * s + 1];
      first[0] = upper.x, first[1] = lower.x, first[2] = upper.y, first[3] = lower.y;
      second[0] = upper.z, second[1] = lower.z, second[2] = upper.w, second[3] = lower.w;
    }
  }
}

// x = the rows times the panel's 16 columns, which are rows of u. All loads are under way before the first mma: nothing
// else covers the time that they take.
template <class Operand>
__device__ void multiply_direct(float (&x)[2][4], const DirectRows<typename Operand::Element>& rows,
                                const unsigned char* panel, int row_bytes, int lines) {
  constexpr int kAll = kLines<typename Operand::Element>;
  const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  const unsigned char* own = panel + group * row_bytes + kChunkBytes * quad;
  uint4 columns[kAll][2][2] = {};
#pragma unroll
  for (int line = 0; line < kAll; ++line) {
    if (line >= lines) continue;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int n = 0; n < 2; ++n)
        columns[line][s][n] = load_chunk(own + kResidentLine * line + 64 * s + 8 * n * row_bytes);
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[n][i] = 0;
  }
#pragma unroll
  for (int line = 0; line < kAll; ++line) {
    if (line >= lines) continue;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const auto first = Operand::template fragment<4>(rows[line][2 * s]);
      const auto second = Operand::template fragment<4>(rows[line][2 * s + 1]);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        uint32_t raw[4];
        words_of(raw, columns[line][s][n]);
        Operand::multiply_add(x[n], first, Operand::template fragment<2>(raw));
        Operand::multiply_add(x[n], second, Operand::template fragment<2>(raw + 2));
      }
    }
  }
}

// Which chunk of a line is column `n` of the mmas. A lane's sums are columns 2 quad and 2 quad + 1: with fp16 they are
// written without bank conflicts if these lie half a line apart, with fp32 if they are neighbours.
template <class E>
__device__ __forceinline__ int chunk_of(int n) {
  return sizeof(E) == 2 ? n / 2 + n % 2 * 4 : n;
}

// The fp16 elements t of two rows as one register of a B operand.
__device__ __forceinline__ uint32_t pair_of(const uint32_t (&a)[4], const uint32_t (&b)[4], int t) {
  return t % 2 == 0 ? (a[t / 2] & 0xFFFFu) | b[t / 2] << 16 : a[t / 2] >> 16 | (b[t / 2] & 0xFFFF0000u);
}

__device__ __forceinline__ void multiply_panel(float (&sums)[8][4], const HalfOperand&, const float (&c)[2][4],
                                               const uint32_t (&rows)[4][4]) {
  uint32_t raw[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) raw[i] = HalfOperand::pack(c[i / 2][2 * (i % 2)], c[i / 2][2 * (i % 2) + 1]);
  const auto a = HalfOperand::fragment<4>(raw);
#pragma unroll
  for (int t = 0; t < 8; ++t) {
    const uint32_t b[2] = {pair_of(rows[0], rows[1], t), pair_of(rows[2], rows[3], t)};
    HalfOperand::multiply_add(sums[t], a, HalfOperand::fragment<2>(b));
  }
}

template <int kProducts>
__device__ __forceinline__ void multiply_panel(float (&sums)[4][4], const FloatOperand<kProducts>&,
                                               const float (&c)[2][4], const uint32_t (&rows)[4][4]) {
  using Operand = FloatOperand<kProducts>;
  const float(&one)[1][2][4] = reinterpret_cast<const float(&)[1][2][4]>(c);
  const auto a = Operand::coefficients(one);
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const uint32_t raw[2][2] = {{rows[0][t], rows[1][t]}, {rows[2][t], rows[3][t]}};
    const typename Operand::template Fragment<2> b[2] = {Operand::template fragment<2>(raw[0]),
                                                         Operand::template fragment<2>(raw[1])};
    Operand::multiply_add(sums[t], a.a[0], b);
  }
}

// sums += c u, over the panel's 16 rows of u.
template <class Operand>
__device__ void accumulate_direct(DirectSums<typename Operand::Element>& sums, const float (&c)[2][4],
                                  const unsigned char* panel, int row_bytes, int lines) {
  using E = typename Operand::Element;
  const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  const unsigned char* own = panel + 2 * quad * row_bytes + kChunkBytes * chunk_of<E>(group);
  uint4 chunks[kLines<E>][4] = {};
#pragma unroll
  for (int line = 0; line < kLines<E>; ++line) {
    if (line >= lines) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      chunks[line][i] = load_chunk(own + kResidentLine * line + (i % 2 + i / 2 * 8) * row_bytes);
  }
#pragma unroll
  for (int line = 0; line < kLines<E>; ++line) {
    if (line >= lines) continue;
    uint32_t rows[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words_of(rows[i], chunks[line][i]);
    multiply_panel(sums[line], Operand{}, c, rows);
  }
}

// Writes 16 rows of sums, kResidentPitch apart.
template <class E>
__device__ void store_direct(float* to, const DirectSums<E>& sums, int lines, float unit) {
  const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
  for (int line = 0; line < kLines<E>; ++line) {
    if (line >= lines) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* out = to + (group + i / 2 * 8) * kResidentPitch + line * 8 * kPerChunk<E>;
      out += chunk_of<E>(2 * quad + i % 2) * kPerChunk<E>;
#pragma unroll
      for (int t = 0; t < kPerChunk<E>; t += 4) {
        *reinterpret_cast<float4*>(out + t) = make_float4(sums[line][t][i] * unit, sums[line][t + 1][i] * unit,
                                                          sums[line][t + 2][i] * unit, sums[line][t + 3][i] * unit);
      }
    }
  }
}

}  // namespace simclr::cuda
