// NT-Xent passes for one instruction set: rows in, blocks in rounds, rows out. Included through for_each_isa.h.

#include "ntxent_tile_body.h"

namespace {

inline int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// u [rows, dim] -> across [rows_padded / kPanel][dim][kPanel], times `scale`, padded with zero rows. The product is
// rounded once: a scale rounded to float would be off by the same factor in every logit.
template <class T>
void pack_across(const T* u, int64_t rows, int64_t dim, double scale, T* out, int64_t panel_begin, int64_t panel_end) {
  constexpr int P = kPanel<T>;
  constexpr int64_t kRun = 64;  // scaled in vectors, then scattered
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for (int64_t k = 0; k < dim; k += kRun) {
      const int64_t width = dim - k < kRun ? dim - k : kRun;
      T* block = out + (panel * dim + k) * P;
      for (int r = 0; r < P; ++r) {
        const int64_t row = panel * P + r;
        T scaled[kRun] = {};
        if (row < rows) {
          for (int64_t c = 0; c < width; ++c) scaled[c] = static_cast<T>(u[row * dim + k + c] * scale);
        }
        for (int64_t c = 0; c < width; ++c) block[c * P + r] = scaled[c];
      }
    }
  }
}

// u [rows, dim] -> along [dim_padded / kPanel][rows_padded][kPanel], padded with zeros.
template <class T>
void pack_along(const T* u, int64_t rows, int64_t dim, int64_t rows_padded, T* out, int64_t begin, int64_t end) {
  constexpr int P = kPanel<T>;
  for (int64_t d = 0; d < dim; d += P) {
    const int64_t width = dim - d < P ? dim - d : P;
    for (int64_t row = begin; row < end; ++row) {
      T* to = out + d * rows_padded + row * P;
      const int64_t filled = row < rows ? width : 0;
      for (int64_t k = 0; k < filled; ++k) to[k] = u[row * dim + d + k];
      for (int64_t k = filled; k < P; ++k) to[k] = 0;
    }
  }
}

// The packed operand `across`, of `rows` rows of u.
template <class T>
class Across {
 public:
  Across(const T* u, int64_t rows, int64_t dim, double temperature, const Parallel& parallel)
      : padded_(round_up(rows, kPanel<T>)), panels_(padded_ * dim) {
    const double scale = std::sqrt(kLog2E / temperature);
    parallel(padded_ / kPanel<T>, 1,
             [&](int64_t begin, int64_t end) { pack_across(u, rows, dim, scale, panels_.data(), begin, end); });
  }
  const T* data() const { return panels_.data(); }
  int64_t padded() const { return padded_; }

 private:
  int64_t padded_;
  AlignedBuffer<T> panels_;
};

// Calls visit(rows, columns, both) on block pairs that together cover the matrix. Of a symmetric one only one of (I, J)
// and (J, I) is visited, with `both` set: the visitor then serves the rows I and, by symmetry, the rows J.
template <class Visit>
void for_each_block_pair(const Blocks& rows, const Blocks& columns, bool symmetric, const Parallel& parallel,
                         const Visit& visit) {
  if (symmetric) return SymmetricSchedule(rows).run(parallel, visit);
  parallel(rows.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < columns.count(); ++j) visit(rows[i], columns[j], false);
    }
  });
}

template <class T>
void forward_pass(const SimclrNtxentFwdArgs& args, const Parallel& parallel) {
  const T* u = static_cast<const T*>(args.u);
  T* loss = static_cast<T*>(args.loss);
  const int64_t rows = 2 * args.n, dim = args.u_columns;
  const double temperature = temperature_of<T>(args);
  const bool symmetric = rows == args.columns, constant_max = uses_constant_max(temperature);

  // 1. Pack u, scaled so that products are logits in base 2.
  const Across<T> columns(u, args.columns, dim, temperature, parallel);
  const Across<T> own(u + args.row_offset * dim, symmetric ? 0 : rows, dim, temperature, parallel);
  const int64_t rows_padded = round_up(rows, kPanel<T>);
  const Pairing<int64_t> pairing{args.n, rows, args.columns, args.row_offset};
  const Matrix<T> matrix{symmetric ? columns.data() : own.data(), columns.data(), pairing, dim};

  // 2. Block by block, sum_j 2^(s_ij - max_i) over the negatives of every row.
  AlignedBuffer<T> max(rows_padded);
  AlignedBuffer<double> sum(rows_padded);
  for (int64_t i = 0; i < rows_padded; ++i) {
    max[i] = constant_max ? 0 : -Simd<T>::kLargest;
    sum[i] = 0;
  }
  const RowSums<T> sums{max.data(), sum.data()};
  const int64_t block = block_rows(args.columns);
  for_each_block_pair(Blocks(rows_padded, block), Blocks(columns.padded(), block), symmetric, parallel,
                      [&](Block i, Block j, bool both) {
                        if (constant_max) {
                          add_sums_constant_max(matrix, i, j, both, sums.sum, sums.sum);
                        } else {
                          add_sums_online_max(matrix, i, j, both, sums, sums);
                        }
                      });

  // 3. Row by row: lse_neg_i = ln 2 (log2 sum_i + max_i), the positive's logit in double, and L_i.
  AlignedBuffer<double> losses(rows);
  parallel(rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* row = u + pairing.column_of(i) * dim;
      const double s_pos = dot(row, u + pairing.positive_of(i) * dim, dim) / temperature;
      const double lse_neg = std::log(sum[i]) + max[i] * kLn2;
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
  const T *dloss = static_cast<const T*>(args.dloss), *u = static_cast<const T*>(args.u);
  const RowStatistics<T, double> statistics{static_cast<const T*>(args.lse_neg), static_cast<const T*>(args.s_pos)};
  const int64_t rows = 2 * args.n, dim = args.d, dim_padded = round_up(dim, kPanel<T>);
  const double temperature = temperature_of<T>(args);
  const bool symmetric = rows == args.columns, constant_max = uses_constant_max(temperature);

  // 1. Pack u in both layouts: for the logits, and for the products of coefficients and rows.
  const Across<T> columns(u, args.columns, dim, temperature, parallel);
  const Across<T> own(u + args.row_offset * dim, symmetric ? 0 : rows, dim, temperature, parallel);
  const int64_t rows_padded = round_up(rows, kPanel<T>), columns_padded = columns.padded();
  const Pairing<int64_t> pairing{args.n, rows, args.columns, args.row_offset};
  const Matrix<T> matrix{symmetric ? columns.data() : own.data(), columns.data(), pairing, dim};
  AlignedBuffer<T> along(dim_padded * columns_padded);
  parallel(columns_padded, 64, [&](int64_t begin, int64_t end) {
    pack_along(u, args.columns, dim, columns_padded, along.data(), begin, end);
  });

  // 2. What each column contributes to coefficients. Weights are divided by the largest: w 2^-l cannot overflow.
  const auto upstream = [&](int64_t j) { return args.scale * dloss[args.reduce ? 0 : j]; };
  double largest = 0;
  for (int64_t j = 0; j < (args.reduce ? 1 : args.columns); ++j)
    largest = larger_or_nan(largest, std::fabs(upstream(j)));
  // The rows of the last block reach up to kPanel rows beyond the last column.
  AlignedBuffer<T> weight(columns_padded + kPanel<T>), lse(columns_padded + kPanel<T>);
  parallel(columns_padded + kPanel<T>, 256, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      weight[j] = lse[j] = 0;
      if (j >= args.columns) continue;
      const double w = largest == 0 ? 0 : upstream(j) / largest;
      const double l = kLog2E * statistics.lse(j);
      weight[j] = static_cast<T>(constant_max ? w * std::exp2(-l) : w);
      lse[j] = static_cast<T>(l);
    }
  });

  // 3. Block by block, the coefficients G of the negatives, and dU_I += G U_J (by symmetry dU_J += G^T U_I).
  AlignedBuffer<T> du(dim_padded * rows_padded);
  parallel(dim_padded * rows_padded, 65536,
           [&](int64_t begin, int64_t end) { std::memset(du.data() + begin, 0, (end - begin) * sizeof(T)); });
  const RowFactors<T> of_column{weight.data(), lse.data()};
  const RowFactors<T> of_row{weight.data() + args.row_offset, lse.data() + args.row_offset};
  const int64_t block = block_rows(args.columns);
  for_each_block_pair(Blocks(rows_padded, block), Blocks(columns_padded, block), symmetric, parallel,
                      [&](Block i, Block j, bool both) {
                        alignas(kCacheLine) T tile[kMaxBlock * kMaxBlock];
                        if (constant_max) {
                          store_coefficients<true>(matrix, i, j, of_row, of_column, tile);
                        } else {
                          store_coefficients<false>(matrix, i, j, of_row, of_column, tile);
                        }
                        add_product(tile, i, j, along.data(), columns_padded, du.data(), rows_padded, dim_padded);
                        if (both)
                          add_transposed_product(tile, i, j, along.data(), columns_padded, du.data(), dim_padded);
                      });

  // 4. Row by row: du_i = (largest dU_i - (w_i pull_i + w_p pull_p) u_p) / t, then the normalisation's Jacobian.
  AlignedBuffer<double> radial(rows);  // u_i . du_i
  parallel(rows, 64, [&](int64_t begin, int64_t end) {
    AlignedBuffer<T> row(dim);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t own_column = pairing.column_of(i), positive = pairing.positive_of(i);
      const T *own_u = u + own_column * dim, *positive_u = u + positive * dim;
      const auto pull = [&](int64_t j) { return upstream(j) * statistics.pull(j); };
      const T of_positive = static_cast<T>((pull(own_column) + pull(positive)) / temperature);
      const T of_negatives = static_cast<T>(largest / temperature);
      for (int64_t d = 0; d < dim; d += kPanel<T>) {
        const T* from = du.data() + d * rows_padded + i * kPanel<T>;
        for (int64_t k = d; k < dim && k < d + kPanel<T>; ++k) {
          row[k] = of_negatives * from[k - d] - of_positive * positive_u[k];
        }
      }
      radial[i] = dot(own_u, row.data(), dim);
      const T inv_norm = static_cast<const T*>(args.inv_norm)[i];
      const T along_u = inv_norm >= clamped_inv_norm<T>(args.eps) ? T(0) : static_cast<T>(radial[i]);
      Z* dz = static_cast<Z*>(args.dz[i >= args.n]) + (i % args.n) * dim;
      for (int64_t k = 0; k < dim; ++k) narrow(inv_norm * (row[k] - own_u[k] * along_u), dz[k]);
    }
  });

  // 5. dt = -1/(2t) sum_i u_i . du_i: every pair of rows meets twice in the sum, once in t dL/dt.
  if (args.dt == nullptr) return;
  double total = 0;
  for (int64_t i = 0; i < rows; ++i) total += radial[i];
  *static_cast<T*>(args.dt) = static_cast<T>(-total / (2 * temperature));
}

}  // namespace
