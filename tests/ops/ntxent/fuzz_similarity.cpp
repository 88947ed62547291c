// Drives the primitive on the CPU with random sizes, types, exclusions and rows, good and garbage, for a build under
// sanitizers. Every operand and every result has its own allocation of exactly its size. Where the rows are ordinary
// numbers the log-sum-exps are compared with the formula, written out in double.
#include <vector>

#include "fuzz.h"

namespace {

struct Sizes {
  int64_t n, m, dim, row_offset;
  int exclude;
  double temperature;

  bool left_out(int64_t i, int64_t j) const {
    if (exclude == SIMCLR_EXCLUDE_NONE) return false;
    const bool partner = exclude == SIMCLR_EXCLUDE_PAIR && j == row_offset + (i + n / 2) % n;
    return partner || j == row_offset + i;
  }
};

// log sum exp(s_ij) over the columns of row i, or with `of_column` over the rows of column i.
template <class T>
double log_sum(const Sizes& x, T* rows, T* columns, int64_t index, bool of_column) {
  double sum = 0;
  for (int64_t other = 0; other < (of_column ? x.n : x.m); ++other) {
    const int64_t i = of_column ? other : index, j = of_column ? index : other;
    double s = 0;
    for (int64_t k = 0; k < x.dim; ++k) s += static_cast<double>(rows[i * x.dim + k]) * columns[j * x.dim + k];
    if (!x.left_out(i, j)) sum += std::exp(s / x.temperature);
  }
  return std::log(sum);
}

void check(const char* what, double actual, double expected) {
  if (actual == expected || std::fabs(actual - expected) <= 1e-4 * (1 + std::fabs(expected))) return;
  std::fprintf(stderr, "wrong %s: %g for %g\n", what, actual, expected);
  std::exit(1);
}

// Of rows alone: the log-sum-exps and their derivatives, these too by the formula.
template <class T>
void check_rows_alone(const Sizes& x, bool garbage, T* rows, T* columns) {
  const bool need_max = below(2);
  Array<T> inv_norm(x.n), lse(x.n), maxima(need_max ? x.n : 0), dlse_dz(x.n * x.dim), dlse_dt(x.n);
  for (int64_t i = 0; i < x.n; ++i) inv_norm[i] = static_cast<T>(1 + below(2));
  SimclrSimilarityFwdBwdArgs args{};
  args.rows = rows;
  args.columns = columns;
  args.inv_norm = inv_norm.data();
  args.lse = lse.data();
  args.max = need_max ? maxima.data() : nullptr;
  args.dlse_dz = dlse_dz.data();
  args.dlse_dt = dlse_dt.data();
  args.row_count = x.n;
  args.column_count = x.m;
  args.row_offset = x.row_offset;
  args.u_columns = x.dim;
  args.temperature = x.temperature;
  args.eps = 1;  // every norm counts as clamped: dz = inv_norm du
  args.exclude = x.exclude;
  args.u_dtype = kDtype<T>;
  cpu::similarity_fwd_bwd(args, kSerial);
  std::vector<double> du(x.dim);
  for (int64_t i = 0; !garbage && i < x.n; ++i) {
    const double exact = log_sum(x, rows, columns, i, false);
    check("lse of rows alone", lse[i], exact);
    double dt = 0;
    for (double& entry : du) entry = 0;
    for (int64_t j = 0; j < x.m; ++j) {
      if (x.left_out(i, j)) continue;
      double s = 0;
      for (int64_t k = 0; k < x.dim; ++k) s += static_cast<double>(rows[i * x.dim + k]) * columns[j * x.dim + k];
      const double p = std::exp(s / x.temperature - exact) / x.temperature;
      for (int64_t k = 0; k < x.dim; ++k) du[k] += p * columns[j * x.dim + k];
      dt -= p * s / x.temperature;
    }
    check("dlse_dt", dlse_dt[i] * x.temperature * x.temperature, dt * x.temperature * x.temperature);
    for (int64_t k = 0; k < x.dim; ++k) {
      check("dlse_dz", dlse_dz[i * x.dim + k] * x.temperature, inv_norm[i] * du[k] * x.temperature);
    }
  }
}

template <class Z, class T>
void one_case() {
  const bool garbage = below(3) == 0, same = below(3) == 0, both = below(2), max = below(3) == 0;
  Sizes x{};
  x.exclude = static_cast<int>(below(3));
  x.n = (1 + below(below(2) ? 5 : 150)) * (x.exclude == SIMCLR_EXCLUDE_PAIR ? 2 : 1);
  x.m = same ? x.n : x.n * below(2) + below(below(2) ? 5 : 150);
  x.dim = 1 + below(below(2) ? 20 : 140);
  x.row_offset = same ? 0 : below(x.n);
  x.temperature = below(2) ? 0.5 : 0.01;
  Array<T> rows(x.n * x.dim), other(same ? 0 : x.m * x.dim);
  T* columns = same ? rows.data() : other.data();
  const double unit_length = 1 / std::sqrt(static_cast<double>(x.dim));
  for (int64_t k = 0; k < x.n * x.dim; ++k) rows[k] = static_cast<T>(any_number(garbage) * unit_length);
  for (int64_t k = 0; k < x.m * x.dim; ++k) columns[k] = static_cast<T>(any_number(garbage) * unit_length);

  check_rows_alone(x, garbage, rows.data(), columns);
  Array<T> lse(x.n), maxima(max ? x.n : 0), column_lse(x.m);
  SimclrSimilarityFwdArgs forward{};
  forward.rows = rows.data();
  forward.columns = columns;
  forward.lse = lse.data();
  forward.max = max ? maxima.data() : nullptr;
  forward.column_lse = both ? column_lse.data() : nullptr;
  forward.row_count = x.n;
  forward.column_count = x.m;
  forward.row_offset = x.row_offset;
  forward.u_columns = x.dim;
  forward.temperature = x.temperature;
  forward.exclude = x.exclude;
  forward.u_dtype = kDtype<T>;
  cpu::similarity_fwd(forward, kSerial);
  for (int64_t i = 0; !garbage && i < x.n; ++i) check("lse", lse[i], log_sum(x, rows.data(), columns, i, false));
  for (int64_t j = 0; !garbage && both && j < x.m; ++j) {
    check("column_lse", column_lse[j], log_sum(x, rows.data(), columns, j, true));
  }
  for (int64_t j = 0; !both && j < x.m; ++j) column_lse[j] = static_cast<T>(INFINITY);

  Array<T> drows(x.n), dcolumns(x.m), inv_norm(x.n), dt(1);
  for (int64_t i = 0; i < x.n; ++i) drows[i] = static_cast<T>(any_number(garbage));
  for (int64_t j = 0; j < x.m; ++j) dcolumns[j] = static_cast<T>(both ? any_number(garbage) : 0);
  for (int64_t i = 0; i < x.n; ++i) inv_norm[i] = static_cast<T>(1 + below(2));
  Array<Z> dz(x.n * x.dim);
  const bool symmetric = same && below(2);
  SimclrSimilarityBwdArgs backward{};
  backward.drows = drows.data();
  backward.dcolumns = symmetric ? drows.data() : dcolumns.data();
  backward.rows = rows.data();
  backward.inv_norm = inv_norm.data();
  backward.columns = columns;
  backward.lse = lse.data();
  backward.column_lse = symmetric ? lse.data() : column_lse.data();
  backward.dz = dz.data();
  backward.dt = below(2) ? dt.data() : nullptr;
  backward.d = backward.u_columns = x.dim;
  backward.row_count = x.n;
  backward.column_count = x.m;
  backward.row_offset = x.row_offset;
  backward.temperature = x.temperature;
  backward.eps = 1;
  backward.exclude = x.exclude;
  backward.z_dtype = kDtype<Z>;
  cpu::similarity_bwd(backward, kSerial);
  for (int64_t k = 0; !garbage && k < x.n * x.dim; ++k) {
    if (!(std::fabs(static_cast<double>(widen(dz[k]))) <= 1e6)) {
      std::fprintf(stderr, "wrong gradient %g\n", static_cast<double>(widen(dz[k])));
      std::exit(1);
    }
  }
}

}  // namespace

int main(int, char** argv) {
  return run_cases(argv, one_case<float, float>, one_case<double, double>, one_case<Half, float>,
                   one_case<BFloat16, float>);
}
