// The backward of NT-Xent and of the primitive: its two launches, and the partial sums of du between them.
#pragma once

#include "ntxent_math.cuh"
#include "ntxent_plan.h"

namespace simclr::cuda {

// For every split: its part of the first sum of du (csrc/ntxent.h), 1/t and weights included, and of
// sum_j w_i exp(s_ij - lse_i) s_ij.
template <class S>
struct BwdPartials {
  S* du;               // [splits][rows][du_columns]
  S* own_logits;       // [splits][rows]; null where dt is not wanted
  unsigned* finished;  // the first launch must zero it
};

template <class S>
BwdPartials<S> partials_of(const BwdProblem& problem, const BwdPlan& plan) {
  unsigned char* workspace = static_cast<unsigned char*>(problem.workspace);
  return {reinterpret_cast<S*>(workspace + plan.du_at),
          problem.dt == nullptr ? nullptr : reinterpret_cast<S*>(workspace + plan.own_logits_at),
          reinterpret_cast<unsigned*>(workspace + plan.finished_at)};
}

// Fill the partials: on the tensor cores (fp16 and split operands, D <= 1024), and row by row (any).
cudaError_t bwd_tiles(const BwdProblem& problem, const BwdPlan& plan, cudaStream_t stream);
cudaError_t bwd_tiles_sm90(const BwdProblem& problem, const BwdPlan& plan, cudaStream_t stream);  // plan.uses_wgmma
// plan.uses_clusters.
cudaError_t bwd_tiles_wide_sm90(const BwdProblem& problem, const BwdPlan& plan, cudaStream_t stream);
cudaError_t bwd_rows(const BwdProblem& problem, const BwdPlan& plan, cudaStream_t stream);

// Both launches.
cudaError_t bwd(const BwdProblem& problem, cudaStream_t stream);

}  // namespace simclr::cuda
