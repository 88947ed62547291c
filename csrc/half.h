// float16 and bfloat16 as stored bits, and their conversions from and to float (round to nearest even, NaN kept).
#pragma once

#include <cstdint>
#include <cstring>

namespace simclr {

// Not every compiler has types, and vectors, of them.
struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline double widen(double x) { return x; }
inline float widen(float x) { return x; }
inline float widen(BFloat16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(Half x) {
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  // The exponent bias differs by 112; the multiplication also normalises what was denormal.
  const uint32_t finite = float_bits(bits_float(magnitude) * bits_float((127 + 112) << 23));
  const uint32_t special = magnitude >= (0x7c00u << 13) ? 0x7f800000u : 0u;
  return bits_float(finite | special | static_cast<uint32_t>(x.bits & 0x8000) << 16);
}

inline void narrow(double x, double& out) { out = x; }
inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, BFloat16& out) {
  const uint32_t bits = float_bits(x);
  out.bits = static_cast<uint16_t>(x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void narrow(float x, Half& out) {
  const uint32_t bits = float_bits(x), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;  // NaN
  } else if (magnitude >= 0x47800000) {
    half = 0x7c00;  // 65536 and more: infinity
  } else if (magnitude < 0x38800000) {
    // Below 2^-14 the result is denormal: adding 0.5 makes the float unit round at 2^-24.
    half = float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f);
  } else {
    half = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  }
  out.bits = static_cast<uint16_t>(half | sign);
}

}  // namespace simclr
