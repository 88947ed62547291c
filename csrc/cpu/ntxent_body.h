// NT-Xent's passes for one instruction set: the rule of a row around the passes over blocks. Included by ntxent.cpp
// through for_each_isa.h.

#include "similarity_pass_body.h"

namespace {

// u: the rows of all processes, of which the local ones start at row_offset.
template <class T, class Args>
Similarities<T> similarities_of(const Args& args, const T* u) {
  const int64_t rows = 2 * args.n, block = block_rows(args.columns), dim = args.u_columns;
  const double temperature = temperature_of<T>(args);
  return {u + args.row_offset * dim,
          u,
          {args.n, rows, args.columns, args.row_offset},
          dim,
          block,
          block,
          temperature,
          uses_constant_max(temperature),
          rows == args.columns};
}

template <class T>
void forward_pass(const SimclrNtxentFwdArgs& args, const Parallel& parallel) {
  const T* u = static_cast<const T*>(args.u);
  T* loss = static_cast<T*>(args.loss);
  const Similarities<T> x = similarities_of(args, u);
  const int64_t rows = x.pairing.rows;

  // 1. Block by block, sum_j 2^(s_ij - max_i) over the negatives of every row.
  const SumBuffer<T> sums(round_up(rows, kPanel<T>), x.constant_max);
  sum_exponentials<T>(x, parallel, sums, nullptr);

  // 2. Row by row: lse_neg_i = ln 2 (log2 sum_i + max_i), the positive's logit in double, and L_i.
  AlignedBuffer<double> losses(rows);
  parallel(rows, least_rows(x.dim), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double s_pos = dot(x.rows + i * x.dim, u + x.pairing.positive_of(i) * x.dim, x.dim) / x.temperature;
      const double lse_neg = sums.log_sum(i);
      static_cast<T*>(args.s_pos)[i] = static_cast<T>(s_pos);
      static_cast<T*>(args.lse_neg)[i] = static_cast<T>(lse_neg);
      losses[i] = row_loss(lse_neg, s_pos);
      if (!args.reduce) loss[i] = static_cast<T>(losses[i]);
    }
  });
  if (args.reduce) {
    double total = 0;
    for (int64_t i = 0; i < rows; ++i) total += losses[i];
    *loss = static_cast<T>(args.scale * total);
  }
}

template <class Z, class T>
void backward_pass(const SimclrNtxentBwdArgs& args, const Parallel& parallel) {
  const T one = 1, *u = static_cast<const T*>(args.u);
  const T* dloss = args.dloss == nullptr ? &one : static_cast<const T*>(args.dloss);
  const RowStatistics<T, double> statistics{static_cast<const T*>(args.lse_neg), static_cast<const T*>(args.s_pos)};
  const Similarities<T> x = similarities_of(args, u);
  const int64_t rows = x.pairing.rows, dim = x.dim;

  // 1. What each column contributes to coefficients. Weights are divided by the largest: w 2^-l cannot overflow.
  const auto upstream = [&](int64_t j) { return args.scale * dloss[args.reduce ? 0 : j]; };
  double largest = 0;
  for (int64_t j = 0; j < (args.reduce ? 1 : args.columns); ++j)
    largest = larger_or_nan(largest, std::fabs(upstream(j)));
  // The rows of the last block reach up to kPanel rows beyond the last column.
  const int64_t factors = round_up(args.columns, kPanel<T>) + kPanel<T>;
  FactorBuffer<T> factor(factors);
  parallel(factors, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const bool padding = j >= args.columns;
      factor.set(j, padding || largest == 0 ? 0 : upstream(j) / largest, padding ? 0 : kLog2E * statistics.lse(j),
                 x.constant_max);
    }
  });

  // 2. Block by block, the coefficients G of the negatives, and dU_I += G U_J (by symmetry dU_J += G^T U_I). Then row
  // by row du_i = (largest dU_i - (w_i pull_i + w_p pull_p) u_p) / t, and the normalisation's Jacobian.
  AlignedBuffer<double> radial(rows);  // u_i . du_i
  const auto finish = [&](int64_t begin, int64_t end, const RowGradients<T>& du) {
    AlignedBuffer<T> row(dim);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t own_column = x.pairing.column_of(i), positive = x.pairing.positive_of(i);
      const T *own_u = u + own_column * dim, *positive_u = u + positive * dim;
      const auto pull = [&](int64_t j) { return upstream(j) * statistics.pull(j); };
      const T of_positive = static_cast<T>((pull(own_column) + pull(positive)) / x.temperature);
      const T of_negatives = static_cast<T>(largest / x.temperature);
      for (int64_t d = 0; d < dim; d += kPanel<T>) {
        const T* from = du.entries(i, d);
        for (int64_t k = d; k < dim && k < d + kPanel<T>; ++k) {
          row[k] = of_negatives * from[k - d] - of_positive * positive_u[k];
        }
      }
      radial[i] = dot(own_u, row.data(), dim);
      write_gradient(own_u, row.data(), radial[i], static_cast<const T*>(args.inv_norm)[i], args.eps, dim,
                     static_cast<Z*>(args.dz[i >= args.n]) + (i % args.n) * dim);
    }
  };
  sum_gradients(x, factor.from(args.row_offset), factor.from(0), nullptr, parallel, finish);

  // 3. dt = -1/(2t) sum_i u_i . du_i: every pair of rows meets twice in the sum, once in t dL/dt.
  if (args.dt == nullptr) return;
  double total = 0;
  for (int64_t i = 0; i < rows; ++i) total += radial[i];
  *static_cast<T*>(args.dt) = static_cast<T>(-total / (2 * x.temperature));
}

}  // namespace
