// The CPU kernels' 2^x and half conversions behind C functions, for test_exp2.py to call.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../../../csrc/half.h"

#define SIMCLR_ISA_BODY "exp2_probe_body.h"
#include "../../../csrc/cpu/for_each_isa.h"

using namespace simclr;

extern "C" {

void exp2_float(const float* x, float* y, int64_t n, int flushed) { SIMCLR_DISPATCH(apply<float>)(x, y, n, flushed); }
void exp2_double(const double* x, double* y, int64_t n, int flushed) {
  SIMCLR_DISPATCH(apply<double>)(x, y, n, flushed);
}

void widen_half(const Half* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = widen(x[i]);
}
void widen_bfloat16(const BFloat16* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = widen(x[i]);
}
void narrow_half(const float* x, Half* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) narrow(x[i], y[i]);
}
void narrow_bfloat16(const float* x, BFloat16* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) narrow(x[i], y[i]);
}
}
