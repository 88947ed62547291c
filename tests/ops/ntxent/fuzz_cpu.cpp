// Drives the CPU NT-Xent with random sizes, strides, types and rows, good and garbage, for a build under sanitizers.
// Every operand and every result has its own allocation of exactly its size: what is read or written beside it is
// reported. Where the rows are ordinary numbers the loss is compared with the formula, written out in double.
#include "fuzz.h"

namespace {

// Row losses of the process whose rows start at `row_offset`, in double, from the rows u [columns, dim].
template <class T>
double loss_of(T* u, int64_t n, int64_t columns, int64_t row_offset, int64_t dim, double temperature) {
  double total = 0;
  for (int64_t i = 0; i < 2 * n; ++i) {
    const int64_t own = row_offset + i, positive = row_offset + (i + n) % (2 * n);
    double sum = 0, s_pos = 0;
    for (int64_t j = 0; j < columns; ++j) {
      double s = 0;
      for (int64_t k = 0; k < dim; ++k) s += static_cast<double>(u[own * dim + k]) * u[j * dim + k];
      if (j == positive) s_pos = s / temperature;
      if (j != own) sum += std::exp(s / temperature);
    }
    total += std::log(sum) - s_pos;
  }
  return total;
}

template <class Z, class T>
void one_case() {
  const bool garbage = below(3) == 0;
  const int64_t n = 1 + below(below(2) ? 5 : 150), dim = 1 + below(below(2) ? 20 : 140), world = 1 + below(3);
  const int64_t rank = below(world), columns = 2 * n * world, row_offset = 2 * n * rank;
  const double temperature = below(2) ? 0.5 : 0.01, eps = 1e-8;

  Array<T> u(columns * dim), lse_neg(columns), s_pos(columns), inv_norm(2 * n);
  for (int64_t process = world - 1; process >= 0; --process) {
    const int64_t stride[2] = {dim + below(3), dim + below(3)};
    Array<Z> z0((n - 1) * stride[0] + dim), z1((n - 1) * stride[1] + dim);
    for (int view = 0; view < 2; ++view) {
      Z* z = view ? z1.data() : z0.data();
      for (int64_t k = 0; k < (n - 1) * stride[view] + dim; ++k) narrow(static_cast<T>(any_number(garbage)), z[k]);
    }
    SimclrNtxentNormalizeArgs args{};
    args.z[0] = z0.data();
    args.z[1] = z1.data();
    args.z_stride[0] = stride[0];
    args.z_stride[1] = stride[1];
    args.u = u.data() + 2 * n * process * dim;
    args.inv_norm = inv_norm.data();
    args.n[0] = args.n[1] = n;
    args.d = args.u_columns = dim;
    args.eps = eps;
    args.z_dtype = kDtype<Z>;
    cpu::ntxent_normalize(args, kSerial);
  }

  Array<T> row_losses(2 * n), total(1);
  for (int64_t process = 0; process < world; ++process) {
    const int64_t first = 2 * n * process;
    for (int reduce = 0; reduce < (process == rank ? 2 : 1); ++reduce) {
      SimclrNtxentFwdArgs args{};
      args.u = u.data();
      args.u_dtype = kDtype<T>;
      args.loss = reduce ? total.data() : row_losses.data();
      args.lse_neg = lse_neg.data() + first;
      args.s_pos = s_pos.data() + first;
      args.n = n;
      args.columns = columns;
      args.row_offset = first;
      args.u_columns = dim;
      args.temperature = temperature;
      args.scale = 1;
      args.reduce = reduce;
      cpu::ntxent_fwd(args, kSerial);
    }
  }
  const double expected = loss_of(u.data(), n, columns, row_offset, dim, temperature);
  if (!garbage && !(std::fabs(total[0] - expected) <= 1e-4 * (1 + std::fabs(expected)))) {
    std::fprintf(stderr, "wrong loss %g for %g\n", static_cast<double>(total[0]), expected);
    std::exit(1);
  }

  for (int reduce = 0; reduce < 2; ++reduce) {
    Array<T> dloss(reduce ? 1 : columns), dt(1);
    for (int64_t k = 0; k < (reduce ? 1 : columns); ++k) dloss[k] = static_cast<T>(any_number(garbage));
    Array<Z> dz0(n * dim), dz1(n * dim);
    SimclrNtxentBwdArgs args{};
    args.dloss = dloss.data();
    args.u = u.data();
    args.inv_norm = inv_norm.data();
    args.lse_neg = lse_neg.data();
    args.s_pos = s_pos.data();
    args.dz[0] = dz0.data();
    args.dz[1] = dz1.data();
    args.dt = dt.data();
    args.n = n;
    args.d = args.u_columns = dim;
    args.columns = columns;
    args.row_offset = row_offset;
    args.temperature = temperature;
    args.scale = 1;
    args.eps = eps;
    args.reduce = reduce;
    args.z_dtype = kDtype<Z>;
    cpu::ntxent_bwd(args, kSerial);
  }
}

}  // namespace

int main(int, char** argv) {
  return run_cases(argv, one_case<float, float>, one_case<double, double>, one_case<Half, float>,
                   one_case<BFloat16, float>);
}
