// Rows of numbers on the CPU: their types, sums of products in double, sizes of blocks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../half.h"
#include "../ntxent.h"
#include "../ntxent_launch.h"

namespace simclr::cpu {

// Rows of a block: two operands of 128 rows, the tile between them and its products stay in a core's second-level
// cache for dim up to 256. A tile of 256 rows would take 256 KiB alone, half of that cache or all of it. Small problems
// get smaller blocks, so that there are enough for several threads. A multiple of every kPanel; it depends on the
// problem only, never on the number of threads.
constexpr int64_t kMaxBlock = 128;
inline int64_t block_rows(int64_t rows) { return rows >= 1024 ? 128 : rows >= 256 ? 64 : 32; }

// The rows of dim numbers that are worth a thread of their own where each number is touched a few times.
inline int64_t least_rows(int64_t dim) { return std::max<int64_t>(64, (int64_t{1} << 16) / std::max<int64_t>(dim, 1)); }

// T: the statistics' type.
template <class T, class Args>
double temperature_of(const Args& args) {
  return args.temperature_ptr != nullptr ? *static_cast<const T*>(args.temperature_ptr) : args.temperature;
}

inline double larger_or_nan(double a, double b) { return a > b || a != a ? a : b; }

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

// dz of a unit row u and its du, of which u_i . du_i is `radial`: through the normalisation's Jacobian.
template <class Z, class T>
void write_gradient(const T* u, const T* du, double radial, T inv_norm, double eps, int64_t dim, Z* dz) {
  const T along_u = inv_norm >= clamped_inv_norm<T>(eps) ? T(0) : static_cast<T>(radial);
  for (int64_t k = 0; k < dim; ++k) narrow(inv_norm * (du[k] - u[k] * along_u), dz[k]);
}

// Calls f(Z{}, T{}): Z the embeddings' element type, T that of rows and statistics.
template <class F>
void with_element_types(int z_dtype, const F& f) {
  switch (z_dtype) {
    case SIMCLR_HALF:
      return f(Half{}, float{});
    case SIMCLR_BFLOAT16:
      return f(BFloat16{}, float{});
    case SIMCLR_FLOAT:
      return f(float{}, float{});
    default:
      return f(double{}, double{});
  }
}

}  // namespace simclr::cpu
