// Similarities of one block of rows and one of columns, for one instruction set; included by similarity_pass_body.h.
//
// A micro-tile is kRows rows by kPanel columns of S = (log2 e / t) X Y^T, X the rows and Y the columns; its
// accumulators stay in registers. Operands are packed so that the inner loop reads kPanel contiguous values of one
// factor and broadcasts kRows of the other:
//   across  [rows / kPanel][dim][kPanel]     panels of rows, transposed: both factors of S (each has sqrt(log2 e / t))
//   along   [rows of a block][kPanel]        kPanel entries of each row: right factor of G Y and G^T X. Packed for one use,
//                                            in the first-level cache: of all rows it would be a second copy of them
//   tile    [columns / kPanel][rows][kPanel] S or G on a pair of blocks: left factor of both products
//   dU      [dim / kPanel][rows][kPanel]

#include "simd_body.h"

namespace {

constexpr int kRows = kVectorBytes == 64 ? 8 : 4;  // 2 kRows accumulators out of 32 registers (AVX-512) or 16

// Two vectors: with kRows of 4 that is 8 accumulators, enough to keep two multiply-add units with a latency of 4 cycles
// busy. Three would not divide the powers of two that blocks are.
template <class T>
constexpr int kPanel = 2 * Simd<T>::kLanes;

template <class T>
using Vec = typename Simd<T>::V;

template <class T>
inline Vec<T>& vec(T* p) {
  return *reinterpret_cast<Vec<T>*>(p);
}

template <class T>
inline const Vec<T>& vec(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}

template <class T>
struct __attribute__((may_alias)) MicroTile {
  Vec<T> v[kRows][2];
};

// acc[r] += sum over k of a[k * kStep + r * kStride] b[k], b being [steps][kPanel].
template <int kStep, int kStride, class T>
__attribute__((always_inline)) inline void multiply_add(MicroTile<T>& acc, const T* a, const T* b, int64_t steps) {
  for (int64_t k = 0; k < steps; ++k, a += kStep, b += kPanel<T>) {
    const Vec<T> b0 = vec(b), b1 = vec(b + Simd<T>::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      acc.v[r][0] += a[r * kStride] * b0;
      acc.v[r][1] += a[r * kStride] * b1;
    }
  }
}

template <class T>
inline T horizontal_max(Vec<T> v) {
  T m = v[0];
  for (int lane = 1; lane < Simd<T>::kLanes; ++lane) m = v[lane] > m || v[lane] != v[lane] ? v[lane] : m;
  return m;
}

template <class T>
inline double horizontal_sum(Vec<T> v) {
  double sum = 0;
  for (int lane = 0; lane < Simd<T>::kLanes; ++lane) sum += v[lane];
  return sum;
}

// a where a >= b or a is NaN; NaN in either argument wins.
template <class T>
inline Vec<T> max_or_nan(Vec<T> a, Vec<T> b) {
  const Vec<T> larger = a > b ? a : b;  // b where a is NaN
  return a == a ? larger : a;
}

// The packed operands of S.
template <class T>
struct Matrix {
  const T* row_panels;  // across, of the rows from `first_row` on, a multiple of kPanel
  int64_t first_row;
  const T* columns;  // across, of all columns
  Pairing<int64_t> pairing;
  int64_t dim;

  bool has_excluded(int64_t row, int64_t column) const { return pairing.needs_mask(row, kRows, column, kPanel<T>); }

  __attribute__((noinline)) void exclude(MicroTile<T>& tile, int64_t row, int64_t column, T value) const {
    T* entry = reinterpret_cast<T*>(tile.v);
    for (int64_t i = row; i < row + kRows; ++i) {
      for (int64_t j = column; j < column + kPanel<T>; ++j, ++entry) {
        if (!pairing.is_negative(i, j)) *entry = value;
      }
    }
  }

  // S of the micro-tile. Rounding errors of a running sum grow with its length, so it is summed in parts: of 32 products
  // or more where logits, and so the errors, may be large, else of 256. With 512, equal rows of that length would be off
  // by 7e-6 of the loss.
  template <bool kConstantMax>
  __attribute__((always_inline)) inline MicroTile<T> logits(int64_t row, int64_t column) const {
    constexpr int P = kPanel<T>;
    constexpr int64_t kPart = kConstantMax ? 256 : 32;
    const int64_t local = row - first_row;
    const T* a = row_panels + (local / P) * P * dim + local % P;
    const T* b = columns + column * dim;
    if (!kConstantMax || __builtin_expect(dim > kPart, 0)) return sum_in_parts(a, b, kPart);
    MicroTile<T> s = {};
    multiply_add<P, 1>(s, a, b, dim);
    return s;
  }

  // Parts of about as many products as there are parts, but of at least so many. Inline, it would make the sum that takes
  // one part a fifth slower.
  __attribute__((noinline)) MicroTile<T> sum_in_parts(const T* a, const T* b, int64_t products) const {
    constexpr int P = kPanel<T>;
    while (products * products < dim) products *= 2;
    MicroTile<T> s = {};
    for (int64_t k = 0; k < dim; k += products) {
      MicroTile<T> part = {};
      multiply_add<P, 1>(part, a + k * P, b + k * P, dim - k < products ? dim - k : products);
      for (int r = 0; r < kRows; ++r) {
        s.v[r][0] += part.v[r][0];
        s.v[r][1] += part.v[r][1];
      }
    }
    return s;
  }
};

// sum 2^(s_ij - max) over what a row, or a column, has met so far. With the constant maximum it stays 0.
template <class T>
struct ExpSums {
  T* max;
  double* sum;
};

// Adds 2^s of the block pair to the sums of the rows and, where there are such, to those of the columns. With the
// constant maximum 0, no 2^s and no sum of M of them leaves the range of T.
template <class T>
void add_sums_constant_max(const Matrix<T>& matrix, Block rows, Block columns, double* row_sum, double* column_sum) {
  constexpr int P = kPanel<T>, L = Simd<T>::kLanes;
  Vec<T> row_lanes[kMaxBlock] = {};
  for (int64_t j = columns.begin; j < columns.end; j += P) {
    Vec<T> column_lanes[2] = {};
    for (int64_t i = rows.begin; i < rows.end; i += kRows) {
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
      for (int r = 0; r < kRows; ++r) {
        row_lanes[i - rows.begin + r] += e.v[r][0] + e.v[r][1];
        column_lanes[0] += e.v[r][0];
        column_lanes[1] += e.v[r][1];
      }
    }
    if (column_sum != nullptr) {
      for (int c = 0; c < P; ++c) column_sum[j + c] += column_lanes[c / L][c % L];
    }
  }
  for (int64_t i = rows.begin; i < rows.end; ++i) row_sum[i] += horizontal_sum<T>(row_lanes[i - rows.begin]);
}

// Writes S of the block pair into `tile`, -inf where an entry is excluded.
template <class T>
void store_logits(const Matrix<T>& matrix, Block rows, Block columns, T* tile) {
  for (int64_t j = columns.begin; j < columns.end; j += kPanel<T>) {
    for (int64_t i = rows.begin; i < rows.end; i += kRows, tile += kRows * kPanel<T>) {
      MicroTile<T> s = matrix.template logits<false>(i, j);
      if (__builtin_expect(matrix.has_excluded(i, j), 0)) matrix.exclude(s, i, j, -__builtin_huge_val());
      *reinterpret_cast<MicroTile<T>*>(tile) = s;
    }
  }
}

// (max, sum) += (max_more, sum_more), both meaning sum 2^max.
template <class T>
void merge(T& max, double& sum, T max_more, double sum_more) {
  if (max_more <= max) {
    sum += sum_more * exp2(static_cast<double>(max_more) - max);
  } else {  // also where max_more is NaN
    sum = sum * exp2(static_cast<double>(max) - max_more) + sum_more;
    max = max_more;
  }
}

// As add_sums_constant_max for logits of any size: every row and every column of the tile has its own maximum.
template <class T>
void add_sums_online_max(const Matrix<T>& matrix, Block rows, Block columns, const ExpSums<T>& row_sums,
                         const ExpSums<T>& column_sums) {
  constexpr int P = kPanel<T>, L = Simd<T>::kLanes;
  alignas(kCacheLine) T tile[kMaxBlock * kMaxBlock];
  store_logits(matrix, rows, columns, tile);
  const int64_t height = rows.end - rows.begin, panels = (columns.end - columns.begin) / P;
  const Vec<T> lowest = Vec<T>{} - Simd<T>::kLargest;
  for (int64_t i = 0; i < height; ++i) {
    Vec<T> max = lowest, sum = {};
    for (int64_t p = 0; p < panels; ++p) {
      const T* s = tile + (p * height + i) * P;
      max = max_or_nan<T>(max_or_nan<T>(max, vec(s)), vec(s + L));
    }
    const T row_max = horizontal_max<T>(max);
    for (int64_t p = 0; p < panels; ++p) {
      const T* s = tile + (p * height + i) * P;
      sum += exp2_flushed<T>(vec(s) - row_max) + exp2_flushed<T>(vec(s + L) - row_max);
    }
    merge(row_sums.max[rows.begin + i], row_sums.sum[rows.begin + i], row_max, horizontal_sum<T>(sum));
  }
  if (column_sums.sum == nullptr) return;
  for (int64_t p = 0; p < panels; ++p) {
    for (int half = 0; half < 2; ++half) {
      const T* s = tile + p * height * P + half * L;
      Vec<T> max = lowest, sum = {};
      for (int64_t i = 0; i < height; ++i) max = max_or_nan<T>(max, vec(s + i * P));
      for (int64_t i = 0; i < height; ++i) sum += exp2_flushed<T>(vec(s + i * P) - max);
      const int64_t j = columns.begin + p * P + half * L;
      for (int lane = 0; lane < L; ++lane) {
        merge(column_sums.max[j + lane], column_sums.sum[j + lane], max[lane], static_cast<double>(sum[lane]));
      }
    }
  }
}

// What the gradient needs to know of a row, or of a column: its weight w (scaled so that the largest is 1) and l = log2
// of its sum of 2^s. With the constant maximum w 2^-l is stored in `weight`, and l is not used.
template <class T>
struct Factors {
  const T* weight;
  const T* lse;
};

// G_ij = w_i 2^(s_ij - l_i) + w'_j 2^(s_ij - l'_j) on the block pair, 0 where an entry is excluded. With kMoments, adds
// the lanes of sum_j 2^(s_ij - l_i) s_ij to moments[i - rows.begin] (constant maximum: without the 2^-l_i).
template <bool kConstantMax, bool kMoments, class T>
void store_coefficients(const Matrix<T>& matrix, Block rows, Block columns, const Factors<T>& of_row,
                        const Factors<T>& of_column, T* tile, [[maybe_unused]] Vec<T>* moments) {
  constexpr int P = kPanel<T>, L = Simd<T>::kLanes;
  for (int64_t j = columns.begin; j < columns.end; j += P) {
    const Vec<T> wj[2] = {vec(of_column.weight + j), vec(of_column.weight + j + L)};
    const Vec<T> lj[2] = {vec(of_column.lse + j), vec(of_column.lse + j + L)};
    for (int64_t i = rows.begin; i < rows.end; i += kRows, tile += kRows * P) {
      MicroTile<T> g = matrix.template logits<kConstantMax>(i, j);
      [[maybe_unused]] MicroTile<T> moment;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const T wi = of_row.weight[i + r], li = of_row.lse[i + r];
        for (int h = 0; h < 2; ++h) {
          const Vec<T> s = g.v[r][h], e = kConstantMax ? exp2_in_range<T>(s) : exp2_flushed<T>(s - li);
          if (kMoments) moment.v[r][h] = e * s;
          if (kConstantMax) {
            g.v[r][h] = e * (wi + wj[h]);
          } else {
            g.v[r][h] = wi * e + wj[h] * exp2_flushed<T>(s - lj[h]);
          }
        }
      }
      *reinterpret_cast<MicroTile<T>*>(tile) = g;
      const bool has_excluded = __builtin_expect(matrix.has_excluded(i, j), 0);
      if (has_excluded) matrix.exclude(*reinterpret_cast<MicroTile<T>*>(tile), i, j, 0);
      if (kMoments) {
        if (has_excluded) matrix.exclude(moment, i, j, 0);
        for (int r = 0; r < kRows; ++r) moments[i - rows.begin + r] += moment.v[r][0] + moment.v[r][1];
      }
    }
  }
}

// `count` unit rows, of `dim` numbers each.
template <class T>
struct UnitRows {
  const T* u;
  int64_t count, dim;

  int64_t dim_padded() const { return (dim + kPanel<T> - 1) / kPanel<T> * kPanel<T>; }

  // Writes entries [d, d + kPanel) of the block's rows, and zeros for those beyond the last row or column.
  void pack_along(Block rows, int64_t d, T* along) const {
    constexpr int P = kPanel<T>;
    const int64_t width = dim - d < P ? dim - d : P;
    for (int64_t row = rows.begin; row < rows.end; ++row, along += P) {
      const int64_t filled = row < count ? width : 0;
      if (filled == P) {
        for (int k = 0; k < P; ++k) along[k] = u[row * dim + d + k];
      } else {
        for (int k = 0; k < P; ++k) along[k] = k < filled ? u[row * dim + d + k] : 0;
      }
    }
  }
};

// dU of the rows += G Y; dU has `du_rows` rows, of which the first is `first_row`.
template <class T>
void add_product(const T* tile, Block rows, Block columns, const UnitRows<T>& y, T* du, int64_t first_row,
                 int64_t du_rows) {
  constexpr int P = kPanel<T>;
  const int64_t height = rows.end - rows.begin, width = columns.end - columns.begin;
  alignas(kCacheLine) T along[kMaxBlock * P];
  for (int64_t d = 0; d < y.dim_padded(); d += P) {
    y.pack_along(columns, d, along);
    for (int64_t i = 0; i < height; i += kRows) {
      MicroTile<T>& out = *reinterpret_cast<MicroTile<T>*>(du + d * du_rows + (rows.begin - first_row + i) * P);
      MicroTile<T> acc = out;
      for (int64_t j = 0; j < width; j += P) multiply_add<1, P>(acc, tile + j * height + i * P, along + j * P, P);
      out = acc;
    }
  }
}

// dU of the columns += G^T X, where rows and columns are of one matrix, whose dU has `du_rows` rows.
template <class T>
void add_transposed_product(const T* tile, Block rows, Block columns, const UnitRows<T>& x, T* du, int64_t du_rows) {
  constexpr int P = kPanel<T>;
  const int64_t height = rows.end - rows.begin, width = columns.end - columns.begin;
  alignas(kCacheLine) T along[kMaxBlock * P];
  for (int64_t d = 0; d < x.dim_padded(); d += P) {
    x.pack_along(rows, d, along);
    for (int64_t j = 0; j < width; j += kRows) {
      MicroTile<T>& out = *reinterpret_cast<MicroTile<T>*>(du + d * du_rows + (columns.begin + j) * P);
      MicroTile<T> acc = out;
      multiply_add<P, 1>(acc, tile + (j / P) * P * height + j % P, along, height);
      out = acc;
    }
  }
}

}  // namespace
