// The backward from outside, and its end: `bwd` orders the launches, the last of which makes dz and dt of du.
//
//   du_i = (sum of its partials, in order) - (w_i pull_i + w_p pull_p) / t u_p
//
// and from it dz_i and dt as in csrc/ntxent.h. The positive's term is added here, in full precision: between aligned
// pairs it nearly cancels the other terms. The primitive has no positives, and one view. One warp owns a row
// (ntxent_row_gradient.cuh). Where the operand u is rounded to fp16, u_i and u_p come from the raw z instead.
#include <type_traits>

#include "../ntxent_launch.h"
#include "ntxent_bwd.cuh"
#include "ntxent_row_gradient.cuh"
#include "reduce.cuh"

namespace simclr::cuda {
namespace {

constexpr int kThreads = 32 * kBwdFinishWarps;

// T: dtype of z, O: of dz, S: of everything else.
template <class T, class O, class S>
struct BwdFinishTask {
  const T* z[2];
  int64_t z_stride[2];
  UnitRows<OperandOf<T>> u;  // [columns]
  O* dz[2];                  // [view_rows, d] each
  const S* inv_norm;         // [rows]
  Side<S> side;              // of the columns, where there are positives
  Pairing<int> pairing;
  S* dt;  // [] or null
  Temperature<S> temperature;
  BwdPartials<S> partials;
  GridSum<S> sums;
  int64_t d, du_columns;
  int splits;
  S clamped_inv_norm;

  __device__ UnitRow<T, S> row_of(int row) const {
    if constexpr (kRoundsRows<T>) {
      return {row < pairing.n ? z[0] + row * z_stride[0] : z[1] + (row - pairing.n) * z_stride[1], inv_norm[row]};
    } else {
      return {u, pairing.column_of(row)};
    }
  }
  __device__ S pull_of(int column) const {
    return side.weight(column) * row_pull(side.lse_or_lse_neg[column], side.s_pos[column]);
  }
};

template <class T, class O, class S, bool kPositives>
__global__ void __launch_bounds__(kThreads) ntxent_bwd_finish_kernel(const BwdFinishTask<T, O, S> task) {
  const int row = blockIdx.x * kBwdFinishWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int n = task.pairing.n, rows = task.pairing.rows;
  const S inverse_temperature = task.temperature.inverse();
  S row_logits = 0;  // this row's share of -t dt
  if (row < rows) {
    const int view = kPositives && row >= n, partner = view ? row - n : row + n;
    const int own = task.pairing.column_of(row), positive = task.pairing.positive_of(row);
    const S own_pull = kPositives ? task.pull_of(own) : S(0);
    const S pull = kPositives ? (own_pull + task.pull_of(positive)) * inverse_temperature : S(0);
    RowGradient<T, S> gradient = {};
    gradient.own = task.row_of(row);
    if constexpr (kPositives) gradient.positive = task.row_of(partner);
    gradient.pull = pull;
    gradient.inv_norm = task.inv_norm[row];
    gradient.clamped_inv_norm = task.clamped_inv_norm;
    gradient.parts = task.partials.du + static_cast<int64_t>(row) * task.du_columns;
    gradient.next_part = static_cast<int64_t>(rows) * task.du_columns;
    gradient.count = task.splits;
    // 1. dz_i.
    gradient.template finish<kPositives>(task.d, (view ? task.dz[1] : task.dz[0]) + (row - view * n) * task.d);
    // 2. w_i [ sum_j exp(s_ij - lse_i) s_ij - pull_i s_ip ]
    if (lane == 0 && task.dt != nullptr) {
      for (int split = 0; split < task.splits; ++split) {
        row_logits += task.partials.own_logits[static_cast<int64_t>(split) * rows + row];
      }
      if constexpr (kPositives) row_logits -= own_pull * task.side.s_pos[own];
    }
  }
  // 3. dt = -1/t times the sum of that over all rows.
  S total;
  if (task.dt != nullptr && grid_sum(row_logits, task.sums, &total)) *task.dt = -inverse_temperature * total;
}

template <class T, class O, class S>
cudaError_t finish(const BwdProblem& problem, const BwdPlan& plan, cudaStream_t stream) {
  BwdFinishTask<T, O, S> task = {};
  for (int view = 0; view < 2; ++view) {
    task.z[view] = static_cast<const T*>(problem.z[view]);
    task.z_stride[view] = problem.z_stride[view];
    task.dz[view] = static_cast<O*>(problem.dz[view]);
  }
  task.inv_norm = static_cast<const S*>(problem.inv_norm);
  task.side = problem.columns.of<S>();
  task.dt = static_cast<S*>(problem.dt);
  // The primitive's rows are a view by themselves, and their operands are the rows.
  const Pairing<int>& pairing = problem.product.pairing;
  const bool positives = problem.columns.s_pos != nullptr;
  task.pairing = positives ? pairing : Pairing<int>{pairing.rows, pairing.rows, pairing.rows, 0};
  task.u =
      unit_rows<OperandOf<T>>(positives ? problem.product.columns : problem.product.rows, problem.product.u_columns);
  task.temperature = problem.product.temperature_of<S>();
  task.partials = partials_of<S>(problem, plan);
  task.sums.of_block = reinterpret_cast<S*>(static_cast<unsigned char*>(problem.workspace) + plan.block_sums_at);
  task.sums.finished = task.partials.finished;
  task.d = problem.d;
  task.du_columns = plan.du_columns;
  task.splits = plan.splits;
  task.clamped_inv_norm = clamped_inv_norm<S>(problem.eps);
  if (positives)
    return SIMCLR_LAUNCH((ntxent_bwd_finish_kernel<T, O, S, true>), plan.finish_blocks, kThreads, 0, stream, task);
  if constexpr (std::is_same_v<O, T>) {
    return SIMCLR_LAUNCH((ntxent_bwd_finish_kernel<T, O, S, false>), plan.finish_blocks, kThreads, 0, stream, task);
  } else {
    return cudaErrorInvalidValue;
  }
}

template <class T>
cudaError_t finish_half(const BwdProblem& problem, const BwdPlan& plan, cudaStream_t stream) {
  return problem.dz_dtype == SIMCLR_FLOAT ? finish<T, float, float>(problem, plan, stream)
                                          : finish<T, T, float>(problem, plan, stream);
}

}  // namespace

cudaError_t bwd(const BwdProblem& problem, cudaStream_t stream) {
  const BwdPlan plan = plan_bwd(problem);
  const cudaError_t error = plan.uses_tiles ? bwd_tiles(problem, plan, stream) : bwd_rows(problem, plan, stream);
  if (error != cudaSuccess) return error;
  switch (problem.z_dtype) {
    case SIMCLR_HALF:
      return finish_half<__half>(problem, plan, stream);
    case SIMCLR_BFLOAT16:
      return finish_half<__nv_bfloat16>(problem, plan, stream);
    case SIMCLR_FLOAT:
      return finish<float, float, float>(problem, plan, stream);
    default:
      return finish<double, double, double>(problem, plan, stream);
  }
}

}  // namespace simclr::cuda

extern "C" int simclr_ntxent_bwd(const SimclrNtxentBwdArgs* args, void* stream) {
  using namespace simclr::cuda;
  if (!has_valid_shape(*args) || args->d <= 0 || args->u_columns < args->d) return cudaErrorInvalidValue;
  return bwd(problem_of(*args), static_cast<cudaStream_t>(stream));
}

extern "C" int64_t simclr_ntxent_bwd_workspace_bytes(const SimclrNtxentBwdArgs* args) {
  using namespace simclr::cuda;
  return plan_bwd(problem_of(*args)).bytes;
}
