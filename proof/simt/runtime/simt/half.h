// The fp16 and bf16 functions that the toolkit's headers give only to nvcc. Each rounds once, to nearest even; the
// hardware's own transcendentals may be off by an ulp of the half type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

namespace simt {
inline double widen(__half x) { return __half2float(x); }
inline double widen(__nv_bfloat16 x) { return __bfloat162float(x); }
inline void narrow(double x, __half& y) { y = __double2half(x); }
inline void narrow(double x, __nv_bfloat16& y) { y = __double2bfloat16(x); }
template <class T>
T narrowed(double x) {
  T y;
  narrow(x, y);
  return y;
}
}  // namespace simt

#define SIMT_HALF_FUNCTIONS(T, T2)                                                                               \
  inline T __hfma(T a, T b, T c) { return simt::narrowed<T>(simt::widen(a) * simt::widen(b) + simt::widen(c)); } \
  inline T2 __hfma2(T2 a, T2 b, T2 c) { return T2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); }               \
  inline T hexp(T a) { return simt::narrowed<T>(std::exp(simt::widen(a))); }                                     \
  inline T hexp2(T a) { return simt::narrowed<T>(std::exp2(simt::widen(a))); }                                   \
  inline T hlog(T a) { return simt::narrowed<T>(std::log(simt::widen(a))); }                                     \
  inline T hsqrt(T a) { return simt::narrowed<T>(std::sqrt(simt::widen(a))); }                                   \
  inline T hrsqrt(T a) { return simt::narrowed<T>(1.0 / std::sqrt(simt::widen(a))); }                            \
  inline T hrcp(T a) { return simt::narrowed<T>(1.0 / simt::widen(a)); }
SIMT_HALF_FUNCTIONS(__half, __half2)
SIMT_HALF_FUNCTIONS(__nv_bfloat16, __nv_bfloat162)
#undef SIMT_HALF_FUNCTIONS
