// How a tensor core adds the products of one mma, as far as it has been measured: on the A100, the coarsest since
// sm_80.
//
// The k products of an element of the result are taken in two halves, one after the other. The products of a half and
// the accumulator are exact; all are aligned to the largest exponent among them and cut off, toward zero, behind
// kFractionBits bits; their sum is exact, and cut off to fp32. The H100 takes all k at once and keeps one bit more.
// Sources: Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores" (PeerJ CS, 2021); Khattak,
// Mikaitis, "Accurate models of NVIDIA tensor cores" (arXiv 2512.07004); Xie et al., "MMA-Sim" (arXiv 2511.10909).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace simt {

constexpr int kFractionBits = 24;
constexpr int kNoExponent = -(1 << 20);  // of a zero
constexpr int kNotFinite = 1 << 20;      // as an exponent

inline double power_of_two(int exponent) {  // in the range of normal doubles
  const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// floor(log2 |x|), but not below `least`, the exponent of the smallest normal number of x's type.
inline int exponent_of(float x, int least) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const int field = bits >> 23 & 255;
  return x == 0 ? kNoExponent : field == 255 ? kNotFinite : std::max(field - 127, least);
}

inline float toward_zero(double x) {
  const float nearest = static_cast<float>(x);
  return std::isfinite(nearest) && std::fabs(nearest) > std::fabs(x) ? std::nextafterf(nearest, 0.0f) : nearest;
}

// d + the sum of a[k] * b[k], where exponents_* are those of a and b.
template <int kCount>
float fused_sum(float d, const float* a, const int* exponents_a, const float* b, const int* exponents_b) {
  constexpr int kLeast = -126;
  int largest = exponent_of(d, kLeast);
  for (int k = 0; k < kCount; ++k) largest = std::max(largest, exponents_a[k] + exponents_b[k]);
  if (largest < kNoExponent / 2) return d;  // only zeros
  if (largest > kNotFinite / 2) {
    for (int k = 0; k < kCount; ++k) d += a[k] * b[k];
    return d;
  }
  const double unit = power_of_two(kFractionBits - largest);
  int32_t sum = static_cast<int32_t>(d * unit);
  for (int k = 0; k < kCount; ++k) sum += static_cast<int32_t>(static_cast<double>(a[k]) * b[k] * unit);
  return toward_zero(sum * power_of_two(largest - kFractionBits));
}

}  // namespace simt
