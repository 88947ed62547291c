// Between the two steps of the NT-Xent forward: partial log-sum-exps per row, and the kernel that finishes them.
#pragma once

#include "ntxent_math.cuh"
#include "ntxent_plan.h"
#include "reduce.cuh"

namespace simclr::cuda {

template <class S>
struct FwdFinishTask {
  Pairing pairing;
  Temperature<S> temperature;
  const S* s_pos;  // [rows]
  S* lse_neg;      // [rows]
  S* loss;         // [] if reduce, else [rows]
  S scale;
  bool reduce;
  GridSum<S> sums;
};

// Adds each row's partials [slots][rows] in order; row losses, or their sum in the order of the blocks.
template <class S, class Statistics>
__global__ void __launch_bounds__(kFwdFinishThreads)
    ntxent_fwd_finish_kernel(const FwdFinishTask<S> task, const typename Statistics::Partial* partials, int slots) {
  const int row = blockIdx.x * kFwdFinishThreads + threadIdx.x, rows = task.pairing.rows;
  S loss = 0;
  if (row < rows) {
    typename Statistics::Partial all = partials[row];
    for (int slot = 1; slot < slots; ++slot) {
      all = Statistics::combine(all, partials[static_cast<int64_t>(slot) * rows + row]);
    }
    const S lse_neg = Statistics::log_sum(all, task.temperature.inverse());
    loss = softplus(lse_neg - task.s_pos[row]);
    task.lse_neg[row] = lse_neg;
    if (!task.reduce) task.loss[row] = loss;
  }
  S total;
  if (task.reduce && grid_sum(loss, task.sums, &total)) *task.loss = task.scale * total;
}

// Where the first step leaves what the second needs.
template <class Partial>
struct FwdPartials {
  Partial* of_slot;    // [slots][rows]
  unsigned* finished;  // the first step must zero it
};

template <class Partial>
FwdPartials<Partial> partials_of(const SimclrNtxentFwdArgs& args, const FwdPlan& plan) {
  unsigned char* workspace = static_cast<unsigned char*>(args.workspace);
  return {reinterpret_cast<Partial*>(workspace + plan.partials_at),
          reinterpret_cast<unsigned*>(workspace + plan.finished_at)};
}

template <class S, class Statistics>
cudaError_t fwd_finish(const SimclrNtxentFwdArgs& args, const FwdPlan& plan, cudaStream_t stream) {
  const auto partials = partials_of<typename Statistics::Partial>(args, plan);
  S* block_sums = reinterpret_cast<S*>(static_cast<unsigned char*>(args.workspace) + plan.block_sums_at);
  const FwdFinishTask<S> task{pairing_of(args),
                              temperature_of<S>(args),
                              static_cast<const S*>(args.s_pos),
                              static_cast<S*>(args.lse_neg),
                              static_cast<S*>(args.loss),
                              static_cast<S>(args.scale),
                              args.reduce != 0,
                              {block_sums, partials.finished}};
  return SIMCLR_LAUNCH((ntxent_fwd_finish_kernel<S, Statistics>), plan.finish_blocks, kFwdFinishThreads, 0, stream,
                       task, partials.of_slot, plan.slots);
}

// The forward of fp64 operands (ntxent_rows.cu).
cudaError_t fwd_rows(const SimclrNtxentFwdArgs& args, const FwdPlan& plan, cudaStream_t stream);

}  // namespace simclr::cuda
