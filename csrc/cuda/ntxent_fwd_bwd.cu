// Loss and gradient at once, for a scalar loss of one process: in one launch where that fits (ntxent_resident.cu), else
// by the launches of the three steps, one after the other.
#include <algorithm>

#include "../ntxent_launch.h"
#include "ntxent_bwd.cuh"
#include "ntxent_plan.h"
#include "ntxent_resident.cuh"

namespace simclr::cuda {
namespace {

// The arguments of the three steps, and where what they hand on lies in the workspace; forward and backward use the same
// part for scratch.
struct Steps {
  SimclrNtxentNormalizeArgs normalize;
  SimclrNtxentFwdArgs fwd;
  SimclrNtxentBwdArgs bwd;
  int64_t bytes;
};

Steps steps_of(const SimclrNtxentFwdBwdArgs& args) {
  const int u_dtype = operand_dtype(args.z_dtype);
  const int64_t rows = 2 * args.n, u_columns = operand_columns(args.d, u_dtype);
  const int64_t statistic = args.z_dtype == SIMCLR_DOUBLE ? sizeof(double) : sizeof(float);
  Steps steps = {};
  const auto take = [&](int64_t bytes) {
    unsigned char* part = static_cast<unsigned char*>(args.workspace) + steps.bytes;
    steps.bytes += round_up(bytes, 16);
    return part;
  };
  void *u = take(rows * u_columns * element_bytes(u_dtype)), *inv_norm = take(rows * statistic);
  void *lse_neg = take(rows * statistic), *s_pos = take(rows * statistic), *scratch = take(0);
  for (int view = 0; view < 2; ++view) {
    steps.normalize.z[view] = steps.bwd.z[view] = args.z[view];
    steps.normalize.z_stride[view] = steps.bwd.z_stride[view] = args.z_stride[view];
    steps.normalize.n[view] = args.n;
    steps.bwd.dz[view] = static_cast<unsigned char*>(args.dz) + view * args.n * args.d * statistic;
  }
  steps.normalize.u = u;
  steps.normalize.inv_norm = inv_norm;
  steps.fwd.loss = args.loss;
  steps.fwd.lse_neg = lse_neg;
  steps.fwd.s_pos = s_pos;
  steps.fwd.u_dtype = u_dtype;
  steps.bwd.inv_norm = inv_norm;
  steps.bwd.lse_neg = lse_neg;
  steps.bwd.s_pos = s_pos;
  steps.bwd.dt = args.dt;
  steps.normalize.d = steps.bwd.d = args.d;
  steps.normalize.eps = steps.bwd.eps = args.eps;
  steps.normalize.z_dtype = steps.bwd.z_dtype = args.z_dtype;
  steps.normalize.u_columns = u_columns;
  const auto fill = [&](auto* step) {
    step->u = u;
    step->workspace = scratch;
    step->temperature_ptr = args.temperature_ptr;
    step->temperature = args.temperature;
    step->n = args.n;
    step->columns = rows;
    step->u_columns = u_columns;
    step->scale = args.scale;
    step->reduce = 1;
    step->precision = args.precision;
    step->device = args.device;
  };
  fill(&steps.fwd);
  fill(&steps.bwd);
  steps.bytes += std::max(plan_fwd(steps.fwd).bytes, plan_bwd(problem_of(steps.bwd)).bytes);
  return steps;
}

cudaError_t run(const Steps& steps, cudaStream_t stream) {
  int error = simclr_ntxent_normalize(&steps.normalize, stream);
  if (error == cudaSuccess) error = simclr_ntxent_fwd(&steps.fwd, stream);
  if (error != cudaSuccess) return static_cast<cudaError_t>(error);
  BwdProblem problem = problem_of(steps.bwd);
  problem.dz_dtype = problem.z_dtype == SIMCLR_DOUBLE ? SIMCLR_DOUBLE : SIMCLR_FLOAT;
  return bwd(problem, stream);
}

}  // namespace
}  // namespace simclr::cuda

extern "C" int simclr_ntxent_fwd_bwd(const SimclrNtxentFwdBwdArgs* args, void* stream_pointer) {
  using namespace simclr::cuda;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  if (args->n <= 0 || 2 * args->n >= kMaxColumns || args->d <= 0) return cudaErrorInvalidValue;
  const ResidentPlan plan = plan_resident(*args);
  return plan.fits ? ntxent_resident(*args, plan, stream) : run(steps_of(*args), stream);
}

extern "C" int64_t simclr_ntxent_fwd_bwd_workspace_bytes(const SimclrNtxentFwdBwdArgs* args) {
  using namespace simclr::cuda;
  const ResidentPlan plan = plan_resident(*args);
  return plan.fits ? plan.bytes : steps_of(*args).bytes;
}
