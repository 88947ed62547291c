// NT-Xent and the primitive without tensor cores: fp64 operands, and the backward of more than 1024 columns. Any D; not
// meant to be fast.
//
// One warp owns a row and takes 32 columns at a time. Lane k computes nothing alone: the warp forms 32 dot products,
// lane k keeps the k-th, and the exponentials of 32 columns are then taken at once.
#include <utility>

#include "ntxent_bwd.cuh"
#include "ntxent_fwd.cuh"

namespace simclr::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kLanes = 32;

// Lane k gets the product, over d columns, of row `row` and row first + k of the others; 0 from `count` on.
template <class S, class E>
__device__ S products(const UnitRows<E>& rows, int row, const UnitRows<E>& others, int first, int count, int64_t d) {
  const int lane = threadIdx.x % kLanes;
  S mine = 0;
  for (int k = 0; k < count; ++k) {
    S sum = 0;
    for (int64_t i = lane; i < d; i += kLanes) sum += rows.template at<S>(row, i) * others.template at<S>(first + k, i);
    sum = warp_sum(sum);
    if (lane == k) mine = sum;
  }
  return mine;
}

template <class S>
struct RowLogSum {
  using Partial = S;  // the log-sum-exp itself: there is one slot
  __device__ static S combine(S a, S b) { return log_add_exp(a, b); }
  __device__ static S log_sum(S lse, S, S) { return lse; }
};

template <class S>
struct FwdRowsTask {
  UnitRows<S> rows, columns;
  Pairing<int> pairing;
  Temperature<S> temperature;
  FwdRowsResult result;
  int64_t d;
};

template <class S>
__global__ void __launch_bounds__(kLanes* kWarps) ntxent_fwd_rows_kernel(const FwdRowsTask<S> task) {
  const int row = blockIdx.x * kWarps + threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  if (blockIdx.x == 0 && threadIdx.x == 0) *task.result.finished = 0;
  const bool transposed = task.result.transposed;  // "row" and "column" are then each other
  const int rows = transposed ? task.pairing.columns : task.pairing.rows;
  const int columns = transposed ? task.pairing.rows : task.pairing.columns;
  if (row >= rows) return;
  const S inverse_temperature = task.temperature.inverse();

  // 1. Every lane adds up exp(s_ij - max) over its own columns.
  S max = -INFINITY, sum = 0;
  for (int first = 0; first < columns; first += kLanes) {
    const int column = first + lane, count = min(kLanes, columns - first);
    const S s = products<S>(task.rows, row, task.columns, first, count, task.d) * inverse_temperature;
    if (!(transposed ? task.pairing.is_negative(column, row) : task.pairing.is_negative(row, column))) continue;
    const S larger = s > max ? s : max;
    sum = sum * exp(max - larger) + exp(s - larger);
    max = larger;
  }
  // 2. The lanes' sums to a common maximum, added: the log-sum-exp.
  __syncwarp();
  const S row_max = warp_max(max);
  sum = warp_sum(sum == S(0) ? S(0) : sum * exp(max - row_max));  // 0: this lane saw no column
  if (lane != 0) return;
  task.result.lse[row] = row_max + log(sum);
  if (task.result.max != nullptr) task.result.max[row] = std::isnan(sum) ? sum : row_max;  // which passed over NaN
}

template <class E, class S>
struct BwdRowsTask {
  UnitRows<E> rows, columns;
  Pairing<int> pairing;
  Temperature<S> temperature;
  Side<S> of_rows, of_columns;
  BwdPartials<S> partials;
  int64_t d;
  int du_columns;
};

template <class E, class S>
__global__ void __launch_bounds__(kLanes* kWarps) ntxent_bwd_rows_kernel(const BwdRowsTask<E, S> task) {
  const int row = blockIdx.x * kWarps + threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  if (blockIdx.x == 0 && threadIdx.x == 0) *task.partials.finished = 0;
  if (row >= task.pairing.rows) return;
  const S inverse_temperature = task.temperature.inverse();
  const S weight = task.of_rows.weight(row), lse = task.of_rows.lse(row);
  S* du = task.partials.du + static_cast<int64_t>(row) * task.du_columns;
  for (int64_t k = lane; k < task.du_columns; k += kLanes) du[k] = 0;

  S own_logits = 0;
  for (int first = 0; first < task.pairing.columns; first += kLanes) {
    const int column = first + lane, count = min(kLanes, task.pairing.columns - first);
    const S s = products<S>(task.rows, row, task.columns, first, count, task.d) * inverse_temperature;
    // 1. c_ij = w_i exp(s_ij - lse_i) + w_j exp(s_ij - lse_j), one column a lane.
    S coefficient = 0;
    if (task.pairing.is_negative(row, column)) {
      const S of_row = weight * exp(s - lse);
      coefficient = of_row + task.of_columns.weight(column) * exp(s - task.of_columns.lse(column));
      own_logits += of_row * s;
    }
    // 2. du_i += 1/t sum_j c_ij u_j, 32 columns of u at a time.
    for (int64_t block = 0; block < task.d; block += kLanes) {
      const int64_t i = block + lane;
      S sum = i < task.d ? du[i] : S(0);
      for (int k = 0; k < count; ++k) {
        const S c = __shfl_sync(0xffffffffu, coefficient, k);
        if (i < task.d) sum += c * inverse_temperature * task.columns.template at<S>(first + k, i);
      }
      if (i < task.d) du[i] = sum;
    }
  }
  own_logits = warp_sum(own_logits);
  if (lane == 0 && task.partials.own_logits != nullptr) task.partials.own_logits[row] = own_logits;
}

unsigned blocks(int64_t rows) { return static_cast<unsigned>(ceil_div(rows, kWarps)); }

template <class E, class S>
cudaError_t run_bwd(const BwdProblem& problem, const BwdPlan& plan, cudaStream_t stream) {
  const Product& product = problem.product;
  const BwdRowsTask<E, S> task{unit_rows<E>(product.rows, product.u_columns),
                               unit_rows<E>(product.columns, product.u_columns),
                               product.pairing,
                               product.temperature_of<S>(),
                               problem.rows.of<S>(),
                               problem.columns.of<S>(),
                               partials_of<S>(problem, plan),
                               problem.d,
                               plan.du_columns};
  return SIMCLR_LAUNCH((ntxent_bwd_rows_kernel<E, S>), blocks(product.pairing.rows), kLanes * kWarps, 0, stream, task);
}

}  // namespace

cudaError_t fwd_rows(const Product& product, const FwdRowsResult& result, cudaStream_t stream) {
  using S = double;
  UnitRows<S> rows = unit_rows<S>(product.rows, product.u_columns);
  UnitRows<S> columns = unit_rows<S>(product.columns, product.u_columns);
  if (result.transposed) std::swap(rows, columns);
  const FwdRowsTask<S> task{rows, columns, product.pairing, product.temperature_of<S>(), result, product.u_columns};
  return SIMCLR_LAUNCH(ntxent_fwd_rows_kernel<S>,
                       blocks(result.transposed ? product.pairing.columns : product.pairing.rows), kLanes * kWarps, 0,
                       stream, task);
}

cudaError_t ntxent_fwd_rows(const SimclrNtxentFwdArgs& args, const FwdPlan& plan, cudaStream_t stream) {
  const auto partials = partials_of<double>(plan, args.workspace);
  const cudaError_t error = fwd_rows(product_of(args), {partials.of_row, nullptr, partials.finished, false}, stream);
  return error != cudaSuccess ? error : fwd_finish<double, double, RowLogSum<double>>(args, plan, stream);
}

cudaError_t bwd_rows(const BwdProblem& problem, const BwdPlan& plan, cudaStream_t stream) {
  switch (problem.product.u_dtype) {
    case SIMCLR_HALF:
      return run_bwd<__half, float>(problem, plan, stream);
    case SIMCLR_FLOAT:
      return run_bwd<SplitHalf, float>(problem, plan, stream);
    default:
      return run_bwd<double, double>(problem, plan, stream);
  }
}

}  // namespace simclr::cuda
