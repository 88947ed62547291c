// NT-Xent without tensor cores: fp64 operands, and the backward of more than 1024 columns. Any D; not meant to be fast.
//
// One warp owns a row and takes 32 columns at a time. Lane k computes nothing alone: the warp forms 32 dot products,
// lane k keeps the k-th, and the exponentials of 32 columns are then taken at once.
#include "ntxent_bwd.cuh"
#include "ntxent_fwd.cuh"

namespace simclr::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kLanes = 32;

// u in memory, as numbers of type S.
template <class E, class S>
struct Rows {
  const E* data;
  int64_t pitch, d;

  __device__ S at(int row, int64_t k) const { return static_cast<S>(data[row * pitch + k]); }

  // Lane k gets the product of row `row` and row first + k; 0 from `count` on.
  __device__ S products(int row, int first, int count) const {
    const int lane = threadIdx.x % kLanes;
    S mine = 0;
    for (int k = 0; k < count; ++k) {
      S sum = 0;
      for (int64_t i = lane; i < d; i += kLanes) sum += at(row, i) * at(first + k, i);
      sum = warp_sum(sum);
      if (lane == k) mine = sum;
    }
    return mine;
  }
};

template <class S>
struct RowLogSum {
  using Partial = S;  // the log-sum-exp itself: there is one slot
  __device__ static S combine(S a, S b) { return log_add_exp(a, b); }
  __device__ static S log_sum(S lse, S, S) { return lse; }
};

template <class S>
struct FwdRowsTask {
  Rows<S, S> u;
  Pairing<int> pairing;
  Temperature<S> temperature;
  FwdPartials<S> partials;
};

template <class S>
__global__ void __launch_bounds__(kLanes* kWarps) ntxent_fwd_rows_kernel(const FwdRowsTask<S> task) {
  const int row = blockIdx.x * kWarps + threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  if (blockIdx.x == 0 && threadIdx.x == 0) *task.partials.finished = 0;
  if (row >= task.pairing.rows) return;
  const int own = task.pairing.column_of(row);
  const S inverse_temperature = task.temperature.inverse();

  // 1. Every lane adds up exp(s_ij - max) over its own columns.
  S max = -INFINITY, sum = 0;
  for (int first = 0; first < task.pairing.columns; first += kLanes) {
    const int column = first + lane, count = min(kLanes, task.pairing.columns - first);
    const S s = task.u.products(own, first, count) * inverse_temperature;
    if (!task.pairing.is_negative(row, column)) continue;
    const S larger = s > max ? s : max;
    sum = sum * exp(max - larger) + exp(s - larger);
    max = larger;
  }
  // 2. The lanes' sums to a common maximum, added: lse_neg_i.
  __syncwarp();
  const S row_max = warp_max(max);
  sum = warp_sum(sum == S(0) ? S(0) : sum * exp(max - row_max));  // 0: this lane saw no column
  if (lane == 0) task.partials.of_slot[row] = row_max + log(sum);
}

template <class E, class S>
struct BwdRowsTask {
  Rows<E, S> u;
  Pairing<int> pairing;
  Temperature<S> temperature;
  LossWeights<S> weights;
  RowStatistics<S> statistics;
  BwdPartials<S> partials;
  int du_columns;
};

template <class E, class S>
__global__ void __launch_bounds__(kLanes* kWarps) ntxent_bwd_rows_kernel(const BwdRowsTask<E, S> task) {
  const int row = blockIdx.x * kWarps + threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  if (blockIdx.x == 0 && threadIdx.x == 0) *task.partials.finished = 0;
  if (row >= task.pairing.rows) return;
  const int own = task.pairing.column_of(row);
  const S inverse_temperature = task.temperature.inverse(), weight = task.weights(own);
  const S lse = task.statistics.lse(own);
  S* du = task.partials.du + static_cast<int64_t>(row) * task.du_columns;
  for (int64_t k = lane; k < task.u.d; k += kLanes) du[k] = 0;

  S own_logits = 0;
  for (int first = 0; first < task.pairing.columns; first += kLanes) {
    const int column = first + lane, count = min(kLanes, task.pairing.columns - first);
    const S s = task.u.products(own, first, count) * inverse_temperature;
    // 1. c_ij = w_i exp(s_ij - lse_i) + w_j exp(s_ij - lse_j), one column a lane.
    S coefficient = 0;
    if (task.pairing.is_negative(row, column)) {
      const S of_row = weight * exp(s - lse);
      coefficient = of_row + task.weights(column) * exp(s - task.statistics.lse(column));
      own_logits += of_row * s;
    }
    // 2. du_i += 1/t sum_j c_ij u_j, 32 columns of u at a time.
    for (int64_t block = 0; block < task.u.d; block += kLanes) {
      const int64_t i = block + lane;
      S sum = i < task.u.d ? du[i] : S(0);
      for (int k = 0; k < count; ++k) {
        const S c = __shfl_sync(0xffffffffu, coefficient, k);
        if (i < task.u.d) sum += c * inverse_temperature * task.u.at(first + k, i);
      }
      if (i < task.u.d) du[i] = sum;
    }
  }
  own_logits = warp_sum(own_logits);
  if (lane == 0 && task.partials.own_logits != nullptr) task.partials.own_logits[row] = own_logits;
}

unsigned blocks(int64_t rows) { return static_cast<unsigned>(ceil_div(rows, kWarps)); }

template <class E, class S>
cudaError_t run_bwd(const SimclrNtxentBwdArgs& args, const BwdPlan& plan, cudaStream_t stream) {
  const BwdRowsTask<E, S> task{{static_cast<const E*>(args.u), args.u_columns, args.d},
                               pairing_of(args),
                               temperature_of<S>(args),
                               weights_of<S>(args),
                               statistics_of<S>(args),
                               partials_of<S>(args, plan),
                               plan.du_columns};
  return SIMCLR_LAUNCH((ntxent_bwd_rows_kernel<E, S>), blocks(2 * args.n), kLanes * kWarps, 0, stream, task);
}

}  // namespace

cudaError_t fwd_rows(const SimclrNtxentFwdArgs& args, const FwdPlan& plan, cudaStream_t stream) {
  using S = double;
  const FwdRowsTask<S> task{{static_cast<const S*>(args.u), args.u_columns, args.u_columns},
                            pairing_of(args),
                            temperature_of<S>(args),
                            partials_of<S>(args, plan)};
  const cudaError_t error =
      SIMCLR_LAUNCH(ntxent_fwd_rows_kernel<S>, blocks(2 * args.n), kLanes * kWarps, 0, stream, task);
  return error != cudaSuccess ? error : fwd_finish<S, S, RowLogSum<S>>(args, plan, stream);
}

cudaError_t bwd_rows(const SimclrNtxentBwdArgs& args, const BwdPlan& plan, cudaStream_t stream) {
  switch (operand_dtype(args.z_dtype)) {
    case SIMCLR_HALF:
      return run_bwd<__half, float>(args, plan, stream);
    case SIMCLR_FLOAT:
      return run_bwd<float, float>(args, plan, stream);
    default:
      return run_bwd<double, double>(args, plan, stream);
  }
}

}  // namespace simclr::cuda
