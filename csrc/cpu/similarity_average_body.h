// The columns' average under each row's softmax, in one pass over the blocks, for one instruction set: what attention
// makes of its values, and here the gradient of a row's log-sum-exp. Included by similarity_body.h.
//
// With s_ij = log2(e) x_i . y_j / t, m_i the largest of what row i has met, and columns in blocks J:
//
//   a_i   = sum_j 2^(s_ij - m_i) y_j        multiplied by 2^(old m_i - new m_i) where a block brings a larger one
//   sum_i = sum_j 2^(s_ij - m_i)            likewise
//   d lse_i / d x_i = a_i / (t sum_i)       lse_i = ln 2 (log2 sum_i + m_i)
//
// With the constant maximum m_i is 0.

#include "similarity_pass_body.h"

namespace {

// Writes 2^s of the block pair into `tile`, 0 where an entry is excluded, and adds it to the sums of the rows.
template <class T>
void store_exponentials_constant_max(const Matrix<T>& matrix, Block rows, Block columns, T* tile, double* row_sum) {
  constexpr int P = kPanel<T>;
  Vec<T> lanes[kMaxBlock] = {};
  for (int64_t j = columns.begin; j < columns.end; j += P) {
    for (int64_t i = rows.begin; i < rows.end; i += kRows, tile += kRows * P) {
      MicroTile<T> e = matrix.template logits<true>(i, j);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        e.v[r][0] = exp2_in_range<T>(e.v[r][0]);
        e.v[r][1] = exp2_in_range<T>(e.v[r][1]);
      }
      if (__builtin_expect(matrix.has_excluded(i, j), 0)) {
        MicroTile<T> patched = e;
        matrix.exclude(patched, i, j, 0);
        e = patched;
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) lanes[i - rows.begin + r] += e.v[r][0] + e.v[r][1];
      *reinterpret_cast<MicroTile<T>*>(tile) = e;
    }
  }
  for (int64_t i = rows.begin; i < rows.end; ++i) row_sum[i] += horizontal_sum<T>(lanes[i - rows.begin]);
}

// As store_exponentials_constant_max for logits of any size: 2^(s - max) with the largest that a row has met so far.
// What it has summed up to now is to be multiplied by shrink[i - rows.begin].
template <class T>
void store_exponentials_online_max(const Matrix<T>& matrix, Block rows, Block columns, T* tile,
                                   const ExpSums<T>& row_sums, T* shrink) {
  constexpr int P = kPanel<T>, L = Simd<T>::kLanes;
  store_logits(matrix, rows, columns, tile);
  const int64_t height = rows.end - rows.begin, panels = (columns.end - columns.begin) / P;
  for (int64_t i = 0; i < height; ++i) {
    const T old_max = row_sums.max[rows.begin + i];
    Vec<T> largest = Vec<T>{} + old_max, sum = {};
    for (int64_t p = 0; p < panels; ++p) {
      const T* s = tile + (p * height + i) * P;
      largest = max_or_nan<T>(max_or_nan<T>(largest, vec(s)), vec(s + L));
    }
    const T max = horizontal_max<T>(largest);
    for (int64_t p = 0; p < panels; ++p) {
      T* s = tile + (p * height + i) * P;
      vec(s) = exp2_flushed<T>(vec(s) - max);
      vec(s + L) = exp2_flushed<T>(vec(s + L) - max);
      sum += vec(s) + vec(s + L);
    }
    const double factor = exp2(static_cast<double>(old_max) - max);
    row_sums.sum[rows.begin + i] = row_sums.sum[rows.begin + i] * factor + horizontal_sum<T>(sum);
    row_sums.max[rows.begin + i] = max;
    shrink[i] = static_cast<T>(factor);
  }
}

// Multiplies the rows of one block by its factors, of which nearly all are 1 after the first few blocks of columns.
template <class T>
void shrink_rows(const RowGradients<T>& average, int64_t height, int64_t dim_padded, const T* shrink) {
  for (int64_t i = 0; i < height; ++i) {
    if (shrink[i] == 1) continue;
    for (int64_t d = 0; d < dim_padded; d += kPanel<T>) {
      T* entries = average.panels + d * average.rows + i * kPanel<T>;
      for (int k = 0; k < kPanel<T>; ++k) entries[k] *= shrink[i];
    }
  }
}

// a_i and sum_i of the rows of every block; finish(begin, end, a) is called once for every row.
template <class T, class Finish>
void average_columns(const Similarities<T>& x, const Parallel& all_threads, const SumBuffer<T>& sums,
                     const Finish& finish) {
  const Parallel parallel = all_threads.for_multiply_adds(2 * x.multiply_adds());
  const Across<T> columns(x.columns, x.pairing.columns, x.dim, x.operand_scale(), parallel);
  const UnitRows<T> y = x.unit_columns();
  const int64_t dim_padded = y.dim_padded();
  const Blocks rows(round_up(x.pairing.rows, kPanel<T>), x.row_block);
  const Blocks column_blocks(columns.padded(), x.column_block);
  const ExpSums<T> row_sums = sums.from(0);
  parallel.each(rows.count(), [&](int64_t i) {
    alignas(kCacheLine) T tile[kMaxBlock * kMaxBlock];
    T shrink[kMaxBlock];
    const AlignedBuffer<T> own(x.row_block * x.dim), a(x.row_block * dim_padded);
    const Block block = rows[i];
    const Matrix<T> matrix = matrix_of_block(x, block, columns.data(), own);
    const RowGradients<T> average{a.data(), block.begin, x.row_block};
    std::memset(a.data(), 0, x.row_block * dim_padded * sizeof(T));
    for (int64_t j = 0; j < column_blocks.count(); ++j) {
      if (x.constant_max) {
        store_exponentials_constant_max(matrix, block, column_blocks[j], tile, row_sums.sum);
      } else {
        store_exponentials_online_max(matrix, block, column_blocks[j], tile, row_sums, shrink);
        shrink_rows(average, block.end - block.begin, dim_padded, shrink);
      }
      add_product(tile, block, column_blocks[j], y, average.panels, average.first_row, average.rows);
    }
    finish(block.begin, std::min(block.end, x.pairing.rows), average);
  });
}

}  // namespace
