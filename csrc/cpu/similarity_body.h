// The primitive's passes for one instruction set: the ends of rows and columns around the passes over blocks. Included
// by similarity.cpp through for_each_isa.h.

#include "similarity_average_body.h"

namespace {

// As on a GPU, a temperature that comes by pointer says nothing of the logits' range: rows that are taken as they are may
// be longer than 1 (simclr_fast/ops/ntxent/similarity.py).
template <class T, class Args>
Similarities<T> similarities_of(const Args& args) {
  const double temperature = temperature_of<T>(args);
  const bool same = args.rows == args.columns && args.row_count == args.column_count &&
                    (args.exclude == SIMCLR_EXCLUDE_NONE || args.row_offset == 0);
  return {static_cast<const T*>(args.rows),
          static_cast<const T*>(args.columns),
          pairs_left_in<int64_t>(args),
          args.u_columns,
          block_rows(args.row_count),
          block_rows(args.column_count),
          temperature,
          args.temperature_ptr == nullptr && uses_constant_max(temperature),
          same};
}

template <class T>
void forward_pass(const SimclrSimilarityFwdArgs& args, const Parallel& parallel) {
  T *lse = static_cast<T*>(args.lse), *max = static_cast<T*>(args.max), *column_lse = static_cast<T*>(args.column_lse);
  Similarities<T> x = similarities_of<T>(args);
  x.constant_max = x.constant_max && max == nullptr;
  const bool sums_columns = column_lse != nullptr && !x.symmetric;

  // 1. Block by block, sums of 2^(s_ij - max) of rows and of columns.
  const SumBuffer<T> sums(round_up(args.row_count, kPanel<T>), x.constant_max);
  const SumBuffer<T> column_sums(sums_columns ? round_up(args.column_count, kPanel<T>) : 0, x.constant_max);
  sum_exponentials<T>(x, parallel, sums, sums_columns ? &column_sums : nullptr);

  // 2. lse = ln 2 (log2 sum + max); -inf, as is the maximum, where nothing was added.
  parallel(args.row_count, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      lse[i] = static_cast<T>(sums.log_sum(i));
      if (max != nullptr) max[i] = static_cast<T>(sums.max(i));
      if (column_lse != nullptr && x.symmetric) column_lse[i] = lse[i];
    }
  });
  if (!sums_columns) return;
  parallel(args.column_count, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) column_lse[j] = static_cast<T>(column_sums.log_sum(j));
  });
}

// The log-sum-exps of rows whose columns want no gradient, and each one's gradient, which no upstream gradient can change
// but by a factor.
template <class T>
void forward_backward_pass(const SimclrSimilarityFwdBwdArgs& args, const Parallel& parallel) {
  T *lse = static_cast<T*>(args.lse), *max = static_cast<T*>(args.max), *dlse_dt = static_cast<T*>(args.dlse_dt);
  Similarities<T> x = similarities_of<T>(args);
  x.constant_max = x.constant_max && max == nullptr;
  x.symmetric = false;

  // 1. Block by block, sums of 2^(s_ij - max) and of their multiples of columns. 2. Row by row du_i, of a sum of nothing
  // 0, the normalisation's Jacobian, and dlse_i / dt = -1/t sum_j exp(s_ij - lse_i) s_ij = -1/t u_i . du_i.
  const SumBuffer<T> sums(round_up(args.row_count, kPanel<T>), x.constant_max);
  average_columns<T>(x, parallel, sums, [&](int64_t begin, int64_t end, const RowGradients<T>& average) {
    AlignedBuffer<T> row(x.dim);
    for (int64_t i = begin; i < end; ++i) {
      const double sum = sums.from(i).sum[0];
      const T factor = static_cast<T>(sum == 0 ? 0 : 1 / (sum * x.temperature));
      for (int64_t d = 0; d < x.dim; d += kPanel<T>) {
        const T* from = average.entries(i, d);
        for (int64_t k = d; k < x.dim && k < d + kPanel<T>; ++k) row[k] = factor * from[k - d];
      }
      const T* u = x.rows + i * x.dim;
      const double radial = dot(u, row.data(), x.dim);
      write_gradient(u, row.data(), radial, static_cast<const T*>(args.inv_norm)[i], args.eps, x.dim,
                     static_cast<T*>(args.dlse_dz) + i * x.dim);
      dlse_dt[i] = static_cast<T>(-radial / x.temperature);
      lse[i] = static_cast<T>(sums.log_sum(i));
      if (max != nullptr) max[i] = static_cast<T>(sums.max(i));
    }
  });
}

// The largest |w| of an array, NaN if there is one.
template <class T>
double largest_weight(const void* weights, int64_t count) {
  const T* w = static_cast<const T*>(weights);
  double largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = larger_or_nan(largest, std::fabs(double(w[i])));
  return largest;
}

// Factors of `count` rows or columns, with padding that weighs nothing.
template <class T>
void set_factors(const void* weights, const void* lse, int64_t count, double largest, bool constant_max,
                 FactorBuffer<T>& factors) {
  const T *w = static_cast<const T*>(weights), *l = static_cast<const T*>(lse);
  const int64_t padded = round_up(count, kPanel<T>);
  for (int64_t i = 0; i < padded; ++i) {
    const bool padding = i >= count;
    factors.set(i, padding || largest == 0 ? 0 : w[i] / largest, padding ? 0 : kLog2E * l[i], constant_max);
  }
}

template <class Z, class T>
void backward_pass(const SimclrSimilarityBwdArgs& args, const Parallel& parallel) {
  Similarities<T> x = similarities_of<T>(args);
  x.symmetric = x.symmetric && args.drows == args.dcolumns && args.lse == args.column_lse;
  const int64_t rows = args.row_count, columns = args.column_count, dim = x.dim;

  // 1. What rows and columns contribute to coefficients. Weights are divided by the largest: w 2^-l cannot overflow.
  const double largest = larger_or_nan(largest_weight<T>(args.drows, rows), largest_weight<T>(args.dcolumns, columns));
  FactorBuffer<T> of_row(round_up(rows, kPanel<T>)), of_column(round_up(columns, kPanel<T>));
  set_factors(args.drows, args.lse, rows, largest, x.constant_max, of_row);
  set_factors(args.dcolumns, args.column_lse, columns, largest, x.constant_max, of_column);
  const bool needs_moments = args.dt != nullptr && !x.symmetric;
  const AlignedBuffer<double> moments(needs_moments ? rows : 0), radial(rows);
  for (int64_t i = 0; needs_moments && i < rows; ++i) moments[i] = 0;

  // 2. Block by block, the coefficients G and dU_I += G Y_J. Then row by row du_i = largest dU_i / t, and the
  // normalisation's Jacobian.
  const auto finish = [&](int64_t begin, int64_t end, const RowGradients<T>& du) {
    AlignedBuffer<T> row(dim);
    const T factor = static_cast<T>(largest / x.temperature);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t d = 0; d < dim; d += kPanel<T>) {
        const T* from = du.entries(i, d);
        for (int64_t k = d; k < dim && k < d + kPanel<T>; ++k) row[k] = factor * from[k - d];
      }
      radial[i] = dot(x.rows + i * dim, row.data(), dim);  // u_i . du_i
      write_gradient(x.rows + i * dim, row.data(), radial[i], static_cast<const T*>(args.inv_norm)[i], args.eps, dim,
                     static_cast<Z*>(args.dz) + i * dim);
    }
  };
  sum_gradients(x, of_row.from(0), of_column.from(0), needs_moments ? moments.data() : nullptr, parallel, finish);

  // 3. dt = -1/t sum_i w_i sum_j exp(s_ij - lse_i) s_ij. Where rows are columns, every pair meets twice in the sum over
  // u_i . du_i = sum_j G_ij s_ij, once in t dt.
  if (args.dt == nullptr) return;
  double total = 0;
  for (int64_t i = 0; i < rows; ++i) total += needs_moments ? moments[i] * largest * kLn2 : radial[i] / 2;
  *static_cast<T*>(args.dt) = static_cast<T>(-total / x.temperature);
}

}  // namespace
