// Passes over the blocks of a matrix of similarities, for one instruction set: sums of exponentials, and the gradient.
// NT-Xent and the primitive share them; included by ntxent_body.h and similarity_body.h.

#include "similarity_tile_body.h"

namespace {

// Rows that meet columns, and which of their pairs count.
template <class T>
struct Similarities {
  const T *rows, *columns;  // [pairing.rows, dim], [pairing.columns, dim]
  Pairing<int64_t> pairing;
  int64_t dim, row_block, column_block;
  double temperature;
  bool constant_max;
  bool symmetric;  // the columns are the rows, and so are their weights: one product serves both

  UnitRows<T> unit_columns() const { return {columns, pairing.columns, dim}; }
  double operand_scale() const { return std::sqrt(kLog2E / temperature); }
  // Of the logits; the gradient adds one product of this size, or two where one product of logits serves both sides.
  double multiply_adds() const {
    return (symmetric ? 0.5 : 1.0) * static_cast<double>(pairing.rows) * static_cast<double>(pairing.columns) * dim;
  }
  double multiply_adds_of_gradient() const { return (symmetric ? 3 : 2) * multiply_adds(); }
};

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

// The packed operand `across`, of `rows` rows of u.
template <class T>
class Across {
 public:
  Across(const T* u, int64_t rows, int64_t dim, double scale, const Parallel& parallel)
      : padded_(round_up(rows, kPanel<T>)), panels_(padded_ * dim) {
    parallel(padded_ / kPanel<T>, (least_rows(dim) + kPanel<T> - 1) / kPanel<T>,
             [&](int64_t begin, int64_t end) { pack_across(u, rows, dim, scale, panels_.data(), begin, end); });
  }
  const T* data() const { return panels_.data(); }
  int64_t padded() const { return padded_; }

 private:
  int64_t padded_;
  AlignedBuffer<T> panels_;
};

// The operands of one block of rows, packed into `own`, and of all columns.
template <class T>
Matrix<T> matrix_of_block(const Similarities<T>& x, Block rows, const T* columns, const AlignedBuffer<T>& own) {
  const int64_t panels = (rows.end - rows.begin) / kPanel<T>;
  pack_across(x.rows + rows.begin * x.dim, x.pairing.rows - rows.begin, x.dim, x.operand_scale(), own.data(), 0,
              panels);
  return {own.data(), rows.begin, columns, x.pairing, x.dim};
}

// ExpSums of `size` rows or columns, of nothing yet.
template <class T>
class SumBuffer {
 public:
  SumBuffer(int64_t size, bool constant_max) : max_(size), sum_(size) {
    for (int64_t i = 0; i < size; ++i) {
      max_[i] = constant_max ? 0 : -Simd<T>::kLargest;
      sum_[i] = 0;
    }
  }
  ExpSums<T> from(int64_t first) const { return {max_.data() + first, sum_.data() + first}; }
  double log_sum(int64_t i) const { return std::log(sum_[i]) + max_[i] * kLn2; }
  double max(int64_t i) const { return sum_[i] == 0 ? -HUGE_VAL : max_[i] * kLn2; }

 private:
  AlignedBuffer<T> max_;
  AlignedBuffer<double> sum_;
};

template <class T>
void add_sums(const Similarities<T>& x, const Matrix<T>& matrix, Block rows, Block columns, const ExpSums<T>& row_sums,
              const ExpSums<T>& column_sums) {
  if (x.constant_max) {
    add_sums_constant_max(matrix, rows, columns, row_sums.sum, column_sums.sum);
  } else {
    add_sums_online_max(matrix, rows, columns, row_sums, column_sums);
  }
}

// All columns of the row blocks [first, last).
template <class T>
void add_sums_of_blocks(const Similarities<T>& x, const Across<T>& columns, const Blocks& rows, int64_t first,
                        int64_t last, const ExpSums<T>& row_sums, const ExpSums<T>& column_sums) {
  const Blocks column_blocks(columns.padded(), x.column_block);
  const AlignedBuffer<T> own(x.row_block * x.dim);
  for (int64_t i = first; i < last; ++i) {
    const Matrix<T> matrix = matrix_of_block(x, rows[i], columns.data(), own);
    for (int64_t j = 0; j < column_blocks.count(); ++j) {
      add_sums(x, matrix, rows[i], column_blocks[j], row_sums, column_sums);
    }
  }
}

// Adds 2^s to the sums of all rows, which are padded to kPanel, and of all columns, if there are such.
template <class T>
void sum_exponentials(const Similarities<T>& x, const Parallel& all_threads, const SumBuffer<T>& row_sums,
                      const SumBuffer<T>* column_sums) {
  const Parallel parallel = all_threads.for_multiply_adds(x.multiply_adds());
  const Across<T> columns(x.columns, x.pairing.columns, x.dim, x.operand_scale(), parallel);
  const Blocks rows(round_up(x.pairing.rows, kPanel<T>), x.row_block);
  if (x.symmetric) {
    const Matrix<T> matrix{columns.data(), 0, columns.data(), x.pairing, x.dim};
    SymmetricSchedule(rows).run(parallel, [&](const Visit& visit) {
      visit.each_pair([&](Block i, Block j) {
        add_sums(x, matrix, i, j, row_sums.from(0), i.begin == j.begin ? ExpSums<T>{} : row_sums.from(0));
      });
    });
    return;
  }
  if (column_sums == nullptr) {
    parallel.each(rows.count(),
                  [&](int64_t i) { add_sums_of_blocks(x, columns, rows, i, i + 1, row_sums.from(0), ExpSums<T>{}); });
    return;
  }
  // Rows in strips, each with its own sums of the columns: in one order for any number of threads, without waiting for
  // another. So many threads can work; each strip takes 12 bytes a column (16 for double), in all less than the packed
  // columns from a dim of 96 on.
  constexpr int64_t kStrips = 32;
  const int64_t strips = std::min(kStrips, rows.count()), padded = columns.padded();
  const SumBuffer<T> of_strips(strips * padded, x.constant_max);
  parallel.each(strips, [&](int64_t strip) {
    const int64_t first = strip * rows.count() / strips, last = (strip + 1) * rows.count() / strips;
    add_sums_of_blocks(x, columns, rows, first, last, row_sums.from(0), of_strips.from(strip * padded));
  });
  parallel(padded, 256, [&](int64_t begin, int64_t end) {
    const ExpSums<T> total = column_sums->from(0);
    for (int64_t strip = 0; strip < strips; ++strip) {
      const ExpSums<T> part = of_strips.from(strip * padded);
      for (int64_t j = begin; j < end; ++j) {
        if (x.constant_max) {
          total.sum[j] += part.sum[j];
        } else {
          merge(total.max[j], total.sum[j], part.max[j], part.sum[j]);
        }
      }
    }
  });
}

// Factors of `size` rows or columns, all set by their owner.
template <class T>
class FactorBuffer {
 public:
  explicit FactorBuffer(int64_t size) : weight_(size), lse_(size) {}
  // w: the weight over the largest of all weights. l = -inf, of a sum of nothing, weighs nothing.
  void set(int64_t i, double w, double l, bool constant_max) {
    const bool empty = l == -HUGE_VAL;
    weight_[i] = static_cast<T>(empty ? 0 : constant_max ? w * std::exp2(-l) : w);
    lse_[i] = static_cast<T>(empty ? 0 : l);
  }
  Factors<T> from(int64_t first) const { return {weight_.data() + first, lse_.data() + first}; }

 private:
  AlignedBuffer<T> weight_, lse_;
};

// dU of the rows from `first_row` on.
template <class T>
struct RowGradients {
  T* panels;
  int64_t first_row, rows;

  // Entries [d, d + kPanel) of a row, d a multiple of kPanel.
  const T* entries(int64_t row, int64_t d) const { return panels + d * rows + (row - first_row) * kPanel<T>; }
};

// What the gradient's passes read beside the packed rows.
template <class T>
struct GradientTask {
  Factors<T> of_row, of_column;
  UnitRows<T> columns;
  double* moments;  // [rows]: sum_j w_i 2^(s_ij - l_i) s_ij is added; or null
};

template <class T>
void add_gradient(const Similarities<T>& x, const GradientTask<T>& task, const Matrix<T>& matrix, Block rows,
                  Block columns, bool both, const RowGradients<T>& du) {
  alignas(kCacheLine) T tile[kMaxBlock * kMaxBlock];
  if (task.moments == nullptr) {
    const auto store = x.constant_max ? &store_coefficients<true, false, T> : &store_coefficients<false, false, T>;
    store(matrix, rows, columns, task.of_row, task.of_column, tile, nullptr);
  } else {
    Vec<T> lanes[kMaxBlock] = {};
    const auto store = x.constant_max ? &store_coefficients<true, true, T> : &store_coefficients<false, true, T>;
    store(matrix, rows, columns, task.of_row, task.of_column, tile, lanes);
    for (int64_t i = rows.begin; i < rows.end && i < x.pairing.rows; ++i) {
      task.moments[i] += task.of_row.weight[i] * horizontal_sum<T>(lanes[i - rows.begin]);
    }
  }
  add_product(tile, rows, columns, task.columns, du.panels, du.first_row, du.rows);
  if (both) add_transposed_product(tile, rows, columns, task.columns, du.panels, du.rows);
}

// All columns of a block of rows, and the end of these.
template <class T, class Finish>
void gradient_of_block(const Similarities<T>& x, const GradientTask<T>& task, const Across<T>& columns, Block rows,
                       const Finish& finish) {
  const Blocks column_blocks(columns.padded(), x.column_block);
  const AlignedBuffer<T> own(x.row_block * x.dim), du(x.row_block * task.columns.dim_padded());
  const Matrix<T> matrix = matrix_of_block(x, rows, columns.data(), own);
  const RowGradients<T> gradients{du.data(), rows.begin, x.row_block};
  std::memset(du.data(), 0, x.row_block * task.columns.dim_padded() * sizeof(T));
  for (int64_t j = 0; j < column_blocks.count(); ++j) {
    add_gradient(x, task, matrix, rows, column_blocks[j], false, gradients);
  }
  finish(rows.begin, std::min(rows.end, x.pairing.rows), gradients);
}

// dU_I = sum over J of G Y_J for the rows of every block I; finish(begin, end, dU) is called once for every row.
template <class T, class Finish>
void sum_gradients(const Similarities<T>& x, const Factors<T>& of_row, const Factors<T>& of_column, double* moments,
                   const Parallel& all_threads, const Finish& finish) {
  const Parallel parallel = all_threads.for_multiply_adds(x.multiply_adds_of_gradient());
  const Across<T> columns(x.columns, x.pairing.columns, x.dim, x.operand_scale(), parallel);
  const GradientTask<T> task{of_row, of_column, x.unit_columns(), moments};
  const int64_t rows_padded = round_up(x.pairing.rows, kPanel<T>), dim_padded = task.columns.dim_padded();
  const Blocks rows(rows_padded, x.row_block);
  if (!x.symmetric) {
    parallel.each(rows.count(), [&](int64_t i) { gradient_of_block(x, task, columns, rows[i], finish); });
    return;
  }
  const AlignedBuffer<T> du(dim_padded * rows_padded);
  parallel(dim_padded * rows_padded, 65536,
           [&](int64_t begin, int64_t end) { std::memset(du.data() + begin, 0, (end - begin) * sizeof(T)); });
  const RowGradients<T> gradients{du.data(), 0, rows_padded};
  const Matrix<T> matrix{columns.data(), 0, columns.data(), x.pairing, x.dim};
  SymmetricSchedule(rows).run(parallel, [&](const Visit& visit) {
    visit.each_pair([&](Block i, Block j) { add_gradient(x, task, matrix, i, j, i.begin != j.begin, gradients); });
  });
  parallel(x.pairing.rows, least_rows(x.dim), [&](int64_t begin, int64_t end) { finish(begin, end, gradients); });
}

}  // namespace
