// Tensor-core operands of u that come straight from global memory, without shared memory and barriers between.
//
// Every load is 16 bytes, and a warp's loads are whole sectors. The order of an mma's depth, and of its columns, is free
// as long as both operands and the accumulators mean the same by it; it is chosen so that what a lane loads is what it
// needs. Rows of u are padded with zeros to whole lines of 128 bytes, their number to whole panels of 16.
//
//   x = u_rows u_columns^T: a lane loads bytes 64 s + 16 quad of row `group` of either operand; its four words serve two
//   mmas.
//   du += c u_columns: c are the accumulators x as they lie. A lane loads 16 bytes of rows 2 quad, 2 quad + 1, + 8, + 9:
//   those of chunk_of(group) of a line. Element t of these is its column `group` of the t-th mma.
#pragma once

#include "ntxent_resident_plan.h"
#include "ntxent_tiles.cuh"

namespace simclr::cuda {

constexpr int kLines = kResidentDepth * kPartElementBytes / kResidentLine;  // the most that a part of a row has
constexpr int kPerChunk = kChunkBytes / kPartElementBytes;  // elements, and so mmas that a line of u takes as columns

template <class Operand>
using DirectRows = typename Operand::Fragment[kLines][4];  // of each step of 32 bytes, the A operand
using DirectSums = float[kLines][kPerChunk][4];            // du of 16 rows

__device__ __forceinline__ uint4 load_chunk(const unsigned char* p) { return *reinterpret_cast<const uint4*>(p); }

// A operands of 16 rows.
template <class Operand>
__device__ void load_direct_rows(DirectRows<Operand>& rows, const unsigned char* u, int row_bytes, int lines) {
  const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
  for (int part = 0; part < Operand::kParts; ++part) {
    const unsigned char* own = u + part * lines * kResidentLine + group * row_bytes + kChunkBytes * quad;
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        uint4 upper = {}, lower = {};
        if (line < lines) {
          upper = load_chunk(own + kResidentLine * line + 64 * s);
          lower = load_chunk(own + kResidentLine * line + 64 * s + 8 * row_bytes);
        }
        uint32_t(&first)[4] = rows[line][2 * s].of_part[part], (&second)[4] = rows[line][2 * s + 1].of_part[part];
        first[0] = upper.x, first[1] = lower.x, first[2] = upper.y, first[3] = lower.y;
        second[0] = upper.z, second[1] = lower.z, second[2] = upper.w, second[3] = lower.w;
      }
    }
  }
}

// x = the rows times the panel's 16 columns, which are rows of u. All loads are under way before the first mma: nothing
// else covers the time that they take.
template <class Operand>
__device__ void multiply_direct(float (&x)[2][4], const DirectRows<Operand>& rows, const unsigned char* panel,
                                int row_bytes, int lines) {
  const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  uint4 columns[Operand::kParts][kLines][2][2] = {};
#pragma unroll
  for (int part = 0; part < Operand::kParts; ++part) {
    const unsigned char* own = panel + part * lines * kResidentLine + group * row_bytes + kChunkBytes * quad;
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
      if (line >= lines) continue;
#pragma unroll
      for (int s = 0; s < 2; ++s) {
#pragma unroll
        for (int n = 0; n < 2; ++n)
          columns[part][line][s][n] = load_chunk(own + kResidentLine * line + 64 * s + 8 * n * row_bytes);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[n][i] = 0;
  }
#pragma unroll
  for (int line = 0; line < kLines; ++line) {
    if (line >= lines) continue;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      typename Operand::Fragment b[2];  // of the two mmas that a chunk serves
#pragma unroll
      for (int part = 0; part < Operand::kParts; ++part) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const uint4& chunk = columns[part][line][s][n];
          b[0].of_part[part][2 * n] = chunk.x, b[0].of_part[part][2 * n + 1] = chunk.y;
          b[1].of_part[part][2 * n] = chunk.z, b[1].of_part[part][2 * n + 1] = chunk.w;
        }
      }
      const typename Operand::Fragment(&a)[2] = {rows[line][2 * s], rows[line][2 * s + 1]};
#pragma unroll
      for (int n = 0; n < 2; ++n) Operand::multiply_add(x[n], a, b, n);
    }
  }
}

// Which chunk of a line is column `n` of the mmas. A lane's sums are columns 2 quad and 2 quad + 1: they are written
// without bank conflicts if these lie half a line apart.
__device__ __forceinline__ int chunk_of(int n) { return n / 2 + n % 2 * 4; }

__device__ __forceinline__ uint32_t word_of(const uint4& chunk, int i) {
  return i == 0 ? chunk.x : i == 1 ? chunk.y : i == 2 ? chunk.z : chunk.w;
}

// The elements t of two rows' chunks as one register of a B operand.
__device__ __forceinline__ uint32_t pair_of(const uint4& upper, const uint4& lower, int t) {
  const uint32_t a = word_of(upper, t / 2), b = word_of(lower, t / 2);
  return t % 2 == 0 ? (a & 0xFFFFu) | b << 16 : a >> 16 | (b & 0xFFFF0000u);
}

// sums += c u, over the panel's 16 rows of u.
template <class Operand>
__device__ void accumulate_direct(DirectSums& sums, const float (&c)[2][4], const unsigned char* panel, int row_bytes,
                                  int lines) {
  const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  uint4 chunks[Operand::kParts][kLines][4] = {};  // of rows 2 quad, 2 quad + 1, + 8, + 9
#pragma unroll
  for (int part = 0; part < Operand::kParts; ++part) {
    const unsigned char* own =
        panel + part * lines * kResidentLine + 2 * quad * row_bytes + kChunkBytes * chunk_of(group);
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
      if (line >= lines) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        chunks[part][line][i] = load_chunk(own + kResidentLine * line + (i % 2 + i / 2 * 8) * row_bytes);
    }
  }
  const typename Operand::Fragment a = Operand::coefficients(c);
#pragma unroll
  for (int line = 0; line < kLines; ++line) {
    if (line >= lines) continue;
#pragma unroll
    for (int t = 0; t < kPerChunk; ++t) {
      typename Operand::Fragment b = {};
#pragma unroll
      for (int part = 0; part < Operand::kParts; ++part) {
        const uint4(&of_row)[4] = chunks[part][line];
        b.of_part[part][0] = pair_of(of_row[0], of_row[1], t);
        b.of_part[part][1] = pair_of(of_row[2], of_row[3], t);
      }
      Operand::multiply_add(sums[line][t], a, b, 0);
    }
  }
}

// Writes 16 rows of sums, kResidentPitch apart.
__device__ __forceinline__ void store_direct(float* to, const DirectSums& sums, int lines, float unit) {
  const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
  for (int line = 0; line < kLines; ++line) {
    if (line >= lines) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* out = to + (group + i / 2 * 8) * kResidentPitch + line * 8 * kPerChunk;
      out += chunk_of(2 * quad + i % 2) * kPerChunk;
#pragma unroll
      for (int t = 0; t < kPerChunk; t += 4) {
        *reinterpret_cast<float4*>(out + t) = make_float4(sums[line][t][i] * unit, sums[line][t + 1][i] * unit,
                                                          sums[line][t + 2][i] * unit, sums[line][t + 3][i] * unit);
      }
    }
  }
}

}  // namespace simclr::cuda
