// NT-Xent on the CPU: the order in which blocks are visited, the rules for single rows, and the choice of instructions.
#include "ntxent.h"

#include <cmath>
#include <cstring>

#include "../half.h"
#include "../l2_normalize.h"
#include "aligned_buffer.h"
#include "block_schedule.h"

namespace simclr::cpu {
namespace {

// Rows of a block: two operands of 128 rows, the tile between them and its products stay in a core's second-level
// cache for dim up to 256. Small problems get smaller blocks, so that there are enough for several threads. A multiple
// of every kPanel; it depends on the problem only, never on the number of threads.
constexpr int64_t kMaxBlock = 128;
int64_t block_rows(int64_t columns) { return columns >= 1024 ? 128 : columns >= 256 ? 64 : 32; }

// Whether 2^s and sums of it stay within float range for |s| <= log2(e) / t: no maximum need be subtracted then.
bool is_bounded(double temperature) { return 2 / temperature <= 80; }

double softplus(double x) { return (x > 0 ? x : 0) + std::log1p(std::exp(-std::fabs(x))); }

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double log_add_exp(double a, double b) { return b + softplus(a - b); }

double larger_or_nan(double a, double b) { return a > b || a != a ? a : b; }

// Summed in eight parts that the compiler keeps in one vector.
template <class A, class B>
double dot(const A* a, const B* b, int64_t n) {
  double part[8] = {};
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) {
    for (int lane = 0; lane < 8; ++lane) part[lane] += double(widen(a[k + lane])) * double(widen(b[k + lane]));
  }
  for (; k < n; ++k) part[0] += double(widen(a[k])) * double(widen(b[k]));
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

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

template <class Z, class T>
void ntxent_normalize(const NtxentNormalize<Z, T>& args, const Parallel& parallel) {
  parallel(2 * args.n, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int view = i >= args.n;
      const Z* z = args.z[view] + (i - view * args.n) * args.row_stride[view];
      T* u = args.u + i * args.dim;
      double first = 1, scale = inverse_norm<double>(dot(z, z, args.dim), args.eps);
      if (scale == 0) {  // squares of float64 entries overflow from 1e154 on: the largest entry is divided out first
        first = 1 / largest_magnitude(z, args.dim);
        scale = 1 / std::sqrt(dot_scaled(z, first, args.dim));
      }
      args.inv_norm[i] = static_cast<T>(first * scale);
      // A NaN that the input brings along may hold bits that exp2_in_range would take for an exponent.
      const bool nan = scale != scale;
      for (int64_t k = 0; k < args.dim; ++k) u[k] = nan ? T(NAN) : static_cast<T>(widen(z[k]) * first * scale);
    }
  });
}

template <class T>
void ntxent_forward(const NtxentForward<T>& args, const Parallel& parallel) {
  SIMCLR_DISPATCH(forward_pass<T>)(args, parallel);
}

template <class Z, class T>
void ntxent_backward(const NtxentBackward<Z, T>& args, const Parallel& parallel) {
  const auto pass = SIMCLR_DISPATCH(backward_pass<Z, T>);
  pass(args, parallel);
}

#define SIMCLR_INSTANTIATE(Z, T)                                                 \
  template void ntxent_normalize(const NtxentNormalize<Z, T>&, const Parallel&); \
  template void ntxent_backward(const NtxentBackward<Z, T>&, const Parallel&);
SIMCLR_INSTANTIATE(float, float)
SIMCLR_INSTANTIATE(double, double)
SIMCLR_INSTANTIATE(Half, float)
SIMCLR_INSTANTIATE(BFloat16, float)
#undef SIMCLR_INSTANTIATE
template void ntxent_forward(const NtxentForward<float>&, const Parallel&);
template void ntxent_forward(const NtxentForward<double>&, const Parallel&);

}  // namespace simclr::cpu
