// What NT-Xent and the primitive of csrc/similarity_launch.h ask of the same kernels: rows and columns apart.
//
// NT-Xent's rows are some of its columns, and a column is left out of a row's sums where it is the row itself or its
// positive. The primitive's rows and columns are any; its exclusions are pairings, too: with "self" a row is its own
// positive (n = 0), with "none" all of its columns lie left of the first.
#pragma once

#include <cstdint>

#include "../ntxent_launch.h"
#include "ntxent_math.cuh"

namespace simclr::cuda {

constexpr int kMaxColumns = 1 << 30;  // sums of two row or column numbers must fit in int

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t bytes, int64_t unit) { return ceil_div(bytes, unit) * unit; }
inline int64_t element_bytes(int dtype) { return dtype == SIMCLR_DOUBLE ? 8 : dtype == SIMCLR_FLOAT ? 4 : 2; }

// Float32 views have split operands: a row of u is hi[u_columns], then lo[u_columns], both fp16, with
// hi = fp16(2^8 u) and lo = fp16(2^8 u - hi). Together they hold 22 bits of every entry above 2^-11; without the factor
// lo would be subnormal, and lose bits, below 2^-3. 2^9 would gain one bit below 2^-11; from 2^16 on hi overflows.
constexpr int kSplitScaleLog2 = 8;
constexpr float kSplitScale = 1 << kSplitScaleLog2;
constexpr int kPartElementBytes = 2;  // fp16, which is all that the tensor cores multiply

// Parts of a row of u, each of u_columns elements.
constexpr int operand_parts(int u_dtype) { return u_dtype == SIMCLR_FLOAT ? 2 : 1; }
// What an element of a part is in units of the row's entry.
constexpr float operand_scale(int u_dtype) { return u_dtype == SIMCLR_FLOAT ? kSplitScale : 1.0f; }

// Whether this build has kernels for Hopper alone (wgmma.cuh), and the device is one.
inline bool has_sm90_kernels([[maybe_unused]] const SimclrDevice& device) {
#ifdef SIMCLR_SM90A
  return device.capability == 90;
#else
  return false;
#endif
}

inline int operand_dtype(int z_dtype) { return z_dtype == SIMCLR_BFLOAT16 ? SIMCLR_HALF : z_dtype; }

// Columns of u: d rounded up, so that each part of a row is whole 16-byte chunks.
inline int64_t operand_columns(int64_t d, int u_dtype) {
  return round_up(d, 16 * operand_parts(u_dtype) / element_bytes(u_dtype));
}

// Rows of u in global memory, as they are copied into tiles: `pitch` bytes from row to row, of which each part takes
// part_bytes, all multiples of 16.
struct RowMatrix {
  const unsigned char* data;
  int64_t pitch;
  int rows;
  int64_t part_bytes;
};

// The logits s_ij = rows_i . columns_j / t, where the pairing counts j as a negative of i.
struct Product {
  const void* rows;     // [pairing.rows, parts, u_columns], of u_dtype
  const void* columns;  // [pairing.columns, parts, u_columns]
  Pairing<int> pairing;
  int64_t u_columns;
  const void* temperature_ptr;
  double temperature;
  int u_dtype, precision;

  // Whether s_ij = s_ji, and j is left out of row i where i is of row j.
  bool symmetric() const { return rows == columns && pairing.rows == pairing.columns && pairing.row_offset <= 0; }
  // A temperature that only the device knows may be any.
  bool uses_constant_max() const { return temperature_ptr == nullptr && simclr::uses_constant_max(temperature); }
  int64_t row_bytes() const { return u_columns * element_bytes(u_dtype); }

  int64_t part_bytes() const { return row_bytes() / operand_parts(u_dtype); }
  RowMatrix matrix_of_rows() const { return matrix(rows, pairing.rows); }
  RowMatrix matrix_of_columns() const { return matrix(columns, pairing.columns); }
  RowMatrix matrix(const void* data, int count) const {
    return {static_cast<const unsigned char*>(data), row_bytes(), count, part_bytes()};
  }

  // Tensor-core products of operands that make one product: lo hi + hi lo + hi hi, in this order, or hi hi alone.
  int products() const { return u_dtype == SIMCLR_FLOAT && precision == SIMCLR_IEEE ? 3 : 1; }
  // The parts that these multiply.
  int multiplied_parts() const { return products() == 3 ? 2 : 1; }
  // What brings sums of products to u.u: 2^-16 for split operands.
  float product_unit() const { return 1 / (operand_scale(u_dtype) * operand_scale(u_dtype)); }
  // What brings sums of coefficients times elements of a part to du: 2^-8 for split operands.
  float operand_unit() const { return 1 / operand_scale(u_dtype); }

  template <class T>
  Temperature<T> temperature_of() const {
    return {static_cast<const T*>(temperature_ptr), 1 / temperature};
  }
};

// A side of the logits in the backward, as Side<S> with S known at run time only.
struct SideArrays {
  const void *upstream, *lse, *s_pos;
  double scale;
  bool per_row;

  template <class S>
  Side<S> of() const {
    return {static_cast<const S*>(upstream), static_cast<S>(scale), per_row, static_cast<const S*>(lse),
            static_cast<const S*>(s_pos)};
  }
};

struct BwdProblem {
  Product product;
  SideArrays rows, columns;
  bool rows_are_columns;  // the rows' side is a part of the columns' side
  const void* z[2];       // of the views; the primitive has one
  int64_t z_stride[2];
  void* dz[2];
  int64_t d;
  const void* inv_norm;
  void* dt;
  void* workspace;
  double eps;
  int z_dtype, dz_dtype;  // dz is of z's type or, where it is float32 beside half z, of the statistics'
  SimclrDevice device;
};

// What NT-Xent and the primitive give by the same names.
template <class Args>
BwdProblem problem_of_rows(const Args& args) {
  BwdProblem problem = {};
  problem.d = args.d;
  problem.inv_norm = args.inv_norm;
  problem.dt = args.dt;
  problem.workspace = args.workspace;
  problem.eps = args.eps;
  problem.z_dtype = problem.dz_dtype = args.z_dtype;
  problem.device = args.device;
  return problem;
}

template <class Args>
bool has_valid_shape(const Args& args) {
  return args.n > 0 && args.columns < kMaxColumns && args.row_offset >= 0 &&
         args.row_offset + 2 * args.n <= args.columns && args.u_columns > 0;
}

template <class Args>
Product ntxent_product(const Args& args, int u_dtype) {
  const int n = static_cast<int>(args.n), columns = static_cast<int>(args.columns);
  const int64_t skipped = args.row_offset * args.u_columns * element_bytes(u_dtype);
  return {static_cast<const unsigned char*>(args.u) + skipped,
          args.u,
          {n, 2 * n, columns, static_cast<int>(args.row_offset)},
          args.u_columns,
          args.temperature_ptr,
          args.temperature,
          u_dtype,
          args.precision};
}

inline Product product_of(const SimclrNtxentFwdArgs& args) { return ntxent_product(args, args.u_dtype); }

inline BwdProblem problem_of(const SimclrNtxentBwdArgs& args) {
  const int64_t statistic = args.z_dtype == SIMCLR_DOUBLE ? sizeof(double) : sizeof(float);
  const auto of_rows = [&](const void* array) {
    return static_cast<const unsigned char*>(array) + args.row_offset * statistic;
  };
  const bool per_row = args.reduce == 0;
  BwdProblem problem = problem_of_rows(args);
  problem.product = ntxent_product(args, operand_dtype(args.z_dtype));
  problem.columns = {args.dloss, args.lse_neg, args.s_pos, args.scale, per_row};
  problem.rows = {per_row ? of_rows(args.dloss) : args.dloss, of_rows(args.lse_neg), of_rows(args.s_pos), args.scale,
                  per_row};
  problem.rows_are_columns = true;
  for (int view = 0; view < 2; ++view) {
    problem.z[view] = args.z[view];
    problem.z_stride[view] = args.z_stride[view];
    problem.dz[view] = args.dz[view];
  }
  return problem;
}

}  // namespace simclr::cuda
