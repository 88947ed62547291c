// NT-Xent on the CPU: normalisation of rows, and the choice of instructions for the passes over blocks.
#include "../ntxent.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../half.h"
#include "../ntxent_launch.h"
#include "aligned_buffer.h"
#include "block_schedule.h"
#include "rows.h"

namespace simclr::cpu {
namespace {

template <class Z>
double largest_magnitude(const Z* z, int64_t n) {
  double largest = 0;
  for (int64_t k = 0; k < n; ++k) largest = larger_or_nan(std::fabs(double(widen(z[k]))), largest);
  return largest;
}

// The sum of the squares of z times `scale`.
template <class Z>
double dot_scaled(const Z* z, double scale, int64_t n) {
  double sum = 0;
  for (int64_t k = 0; k < n; ++k) sum += (widen(z[k]) * scale) * (widen(z[k]) * scale);
  return sum;
}

}  // namespace
}  // namespace simclr::cpu

#define SIMCLR_ISA_BODY "ntxent_body.h"
#include "for_each_isa.h"

namespace simclr::cpu {
namespace {

template <class Z, class T>
void normalize_rows(const SimclrNtxentNormalizeArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int view = i >= args.n[0];
    const Z* z = static_cast<const Z*>(args.z[view]) + (i - view * args.n[0]) * args.z_stride[view];
    T* u = static_cast<T*>(args.u) + i * args.u_columns;
    const double norm = std::sqrt(dot(z, z, args.d));
    double first = 1, scale = norm <= args.eps ? 1 / args.eps : 1 / norm;  // a NaN norm is not clamped
    if (scale == 0) {  // squares of float64 entries overflow from 1e154 on: the largest entry is divided out first
      first = 1 / largest_magnitude(z, args.d);
      scale = 1 / std::sqrt(dot_scaled(z, first, args.d));
    }
    static_cast<T*>(args.inv_norm)[i] = static_cast<T>(first * scale);
    // A NaN that the input brings along may hold bits that exp2_in_range would take for an exponent.
    const bool nan = scale != scale;
    for (int64_t k = 0; k < args.d; ++k) u[k] = nan ? T(NAN) : static_cast<T>(widen(z[k]) * first * scale);
  }
}

}  // namespace

void ntxent_normalize(const SimclrNtxentNormalizeArgs& args, const Parallel& parallel) {
  with_element_types(args.z_dtype, [&](auto z, auto t) {
    parallel(args.n[0] + args.n[1], least_rows(args.d),
             [&](int64_t begin, int64_t end) { normalize_rows<decltype(z), decltype(t)>(args, begin, end); });
  });
}

void ntxent_fwd(const SimclrNtxentFwdArgs& args, const Parallel& parallel) {
  with_element_types(args.u_dtype, [&](auto, auto t) { SIMCLR_DISPATCH(forward_pass<decltype(t)>)(args, parallel); });
}

void ntxent_bwd(const SimclrNtxentBwdArgs& args, const Parallel& parallel) {
  with_element_types(args.z_dtype, [&](auto z, auto t) {
    const auto pass = SIMCLR_DISPATCH(backward_pass<decltype(z), decltype(t)>);
    pass(args, parallel);
  });
}

}  // namespace simclr::cpu
