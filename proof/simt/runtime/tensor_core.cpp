// ldmatrix and mma.sync, with the PTX manual's register layouts (see csrc/cuda/ptx.cuh).
#include <cstring>

#include "block.h"
#include "fused_sum.h"
#include "options.h"
#include "sanitizers.h"

namespace simt {
namespace {

constexpr int kRows = 16, kColumns = 8;  // of an accumulator tile
constexpr int kDepth = 16;
constexpr int kLeastExponent = -14;  // of the operands' normal numbers

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

float from_half(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3FFu;
  if (exponent == 31) return from_bits(sign | 0x7F800000u | fraction << 13);
  if (exponent != 0) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float subnormal = static_cast<float>(fraction) * 0x1p-24f;
  return sign != 0 ? -subnormal : subnormal;
}

// ---- ldmatrix

struct MatrixLane {
  uint32_t* registers;
  const void* row;
  bool transposed;
};

void exchange_load_matrices(void* const* payload, unsigned) {
  uint16_t matrix[4][8][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    std::memcpy(matrix[lane / 8][lane % 8], static_cast<MatrixLane*>(payload[lane])->row, 16);
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const MatrixLane& me = *static_cast<MatrixLane*>(payload[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const uint16_t low = me.transposed ? matrix[i][pair][group] : matrix[i][group][pair];
      const uint16_t high = me.transposed ? matrix[i][pair + 1][group] : matrix[i][group][pair + 1];
      me.registers[i] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}

// ---- mma: d += a b. Sums are fp32 in order of k, rounded to nearest as the PTX manual would let one think; or, where
// the options ask for it, as the hardware makes them (fused_sum.h).

struct MmaLane {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

void add_to_nearest(float (&d)[kRows][kColumns], const float (&a)[kRows][kDepth], const float (&b)[kColumns][kDepth]) {
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      for (int k = 0; k < kDepth; ++k) d[row][column] += a[row][k] * b[column][k];
    }
  }
}

void add_truncating(float (&d)[kRows][kColumns], const float (&a)[kRows][kDepth], const float (&b)[kColumns][kDepth]) {
  int exponents_a[kRows][kDepth], exponents_b[kColumns][kDepth];
  for (int k = 0; k < kDepth; ++k) {
    for (int row = 0; row < kRows; ++row) exponents_a[row][k] = exponent_of(a[row][k], kLeastExponent);
    for (int column = 0; column < kColumns; ++column) {
      exponents_b[column][k] = exponent_of(b[column][k], kLeastExponent);
    }
  }
  constexpr int kHalf = kDepth / 2;
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      for (int k = 0; k < kDepth; k += kHalf) {
        d[row][column] =
            fused_sum<kHalf>(d[row][column], a[row] + k, exponents_a[row] + k, b[column] + k, exponents_b[column] + k);
      }
    }
  }
}

// b is transposed.
void multiply(void* const* payload, const float (&a)[kRows][kDepth], const float (&b)[kColumns][kDepth]) {
  float d[kRows][kColumns];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const float* mine = static_cast<MmaLane*>(payload[lane])->d;
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) d[group + i / 2 * 8][pair + i % 2] = mine[i];
  }
  if (options().truncating_tensor_cores) {
    add_truncating(d, a, b);
  } else {
    add_to_nearest(d, a, b);
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    float* mine = static_cast<MmaLane*>(payload[lane])->d;
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) mine[i] = d[group + i / 2 * 8][pair + i % 2];
  }
}

void exchange_mma_float16(void* const* payload, unsigned) {
  float a[kRows][kDepth], b[kColumns][kDepth];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const MmaLane& me = *static_cast<MmaLane*>(payload[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      a[group + i % 2 * 8][pair + i / 2 * 8] = from_half(me.a[i] & 0xFFFFu);
      a[group + i % 2 * 8][pair + i / 2 * 8 + 1] = from_half(me.a[i] >> 16);
    }
    for (int i = 0; i < 2; ++i) {
      b[group][pair + i * 8] = from_half(me.b[i] & 0xFFFFu);
      b[group][pair + i * 8 + 1] = from_half(me.b[i] >> 16);
    }
  }
  multiply(payload, a, b);
}

const WarpOperation kLoadMatrices{"ldmatrix", true, true, false, exchange_load_matrices};
const WarpOperation kMmaFloat16{"mma.m16n8k16 f16", true, true, false, exchange_mma_float16};

}  // namespace

void load_matrices(uint32_t* registers, const void* row, bool transposed, Site site) {
  Block& block = Block::current();
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) block.fail("ldmatrix: a row is not aligned to 16 bytes", site);
  if (!block.shared().contains(row, 16)) block.fail("ldmatrix: a row is not in shared memory", site);
  watch_read(row, 16);
  MatrixLane lane{registers, row, transposed};
  block.warp_operation(kLoadMatrices, ~0u, &lane, site);
}

void multiply_accumulate(float* d, const uint32_t* a, const uint32_t* b, Site site) {
  MmaLane lane{d, a, b};
  Block::current().warp_operation(kMmaFloat16, ~0u, &lane, site);
}

}  // namespace simt
