// Log-sum-exps of similarities (csrc/similarity_launch.h) on CUDA: the launches of NT-Xent, with rows and columns
// apart.
//
// Forward: the tiles of ntxent_fwd.cu, whose column sums go to slots of their own unless rows are columns, then the
// kernel here, which adds up the slots. Backward: both launches of NT-Xent without positives. fp64, and the backward of
// D > 1024, go row by row; for the columns' log-sum-exps of fp64 the rows' launch runs once more, transposed.
#include <type_traits>

#include "../similarity_launch.h"
#include "ntxent_bwd.cuh"
#include "ntxent_fwd.cuh"
#include "ntxent_statistics.cuh"

namespace simclr::cuda {
namespace {

constexpr int kThreads = 256;  // one a row, which share nothing: any multiple of 32 would do

template <class Args>
bool is_valid(const Args& args) {
  const bool sizes = args.row_count > 0 && args.row_count < kMaxColumns && args.column_count > 0 &&
                     args.column_count < kMaxColumns && args.u_columns > 0;
  if (!sizes || args.exclude == SIMCLR_EXCLUDE_NONE) return sizes;
  if (args.row_offset < 0 || args.row_offset + args.row_count >= kMaxColumns) return false;
  if (args.exclude == SIMCLR_EXCLUDE_SELF) return true;
  return args.exclude == SIMCLR_EXCLUDE_PAIR && args.row_count % 2 == 0;
}

template <class Args>
Product product_of(const Args& args, int u_dtype) {
  return {args.rows, args.columns,  pairs_left_in<int>(args), args.u_columns, args.temperature_ptr, args.temperature,
          u_dtype,   args.precision};
}

FwdPlan plan_fwd(const SimclrSimilarityFwdArgs& args) {
  FwdPlan plan = cut_fwd(product_of(args, args.u_dtype), args.device, args.column_lse != nullptr, args.max != nullptr);
  if (args.u_dtype == SIMCLR_DOUBLE) plan.bytes = 0;  // row by row: there are no partials
  const int64_t results = args.row_count + (args.column_lse == nullptr ? 0 : args.column_count);
  plan.finish_blocks = static_cast<int>(ceil_div(results, kThreads));
  plan.finished_at = plan.bytes;
  plan.bytes = plan.finished_at + 16;
  return plan;
}

BwdProblem problem_of(const SimclrSimilarityBwdArgs& args) {
  BwdProblem problem = problem_of_rows(args);
  problem.product = product_of(args, operand_dtype(args.z_dtype));
  problem.rows = {args.drows, args.lse, nullptr, 1.0, true};
  problem.columns = {args.dcolumns, args.column_lse, nullptr, 1.0, true};
  problem.rows_are_columns = args.drows == args.dcolumns && args.row_count == args.column_count;
  problem.z[0] = args.z;
  problem.z_stride[0] = args.z_stride;
  problem.dz[0] = args.dz;
  return problem;
}

// What the forward's second launch makes of one side's partials.
template <class Partial>
struct FinishSide {
  const Partial* partials;  // [slots][count]
  float* lse;               // [count]
  float* max;               // [count] or null
  int slots, count;
};

template <class Partial>
struct FinishTask {
  FinishSide<Partial> rows, columns;
  Temperature<float> temperature;
};

// W: the type in which the base-2 statistics become natural ones, as in NT-Xent's finish.
template <class W, class Statistics>
__device__ void finish_one(const FinishSide<typename Statistics::Partial>& side, int64_t i,
                           const Temperature<float>& temperature) {
  auto all = side.partials[i];
  for (int slot = 1; slot < side.slots; ++slot)
    all = Statistics::combine(all, side.partials[static_cast<int64_t>(slot) * side.count + i]);
  const W inverse_temperature = temperature.template inverse<W>();
  const W per_unit = inverse_temperature / static_cast<W>(temperature.base_2_scale());
  side.lse[i] = static_cast<float>(Statistics::log_sum(all, inverse_temperature, per_unit));
  if constexpr (std::is_same_v<Statistics, OnlineMax>) {  // which plans take that want it
    if (side.max != nullptr) side.max[i] = static_cast<float>(Statistics::max(all, per_unit));
  }
}

// One thread a row, then one a column.
template <class W, class Statistics>
__global__ void __launch_bounds__(kThreads)
    similarity_fwd_finish_kernel(const FinishTask<typename Statistics::Partial> task) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, column = i - task.rows.count;
  if (column < 0) {
    finish_one<W, Statistics>(task.rows, i, task.temperature);
  } else if (column < task.columns.count) {
    finish_one<W, Statistics>(task.columns, column, task.temperature);
  }
}

template <class W, class Statistics>
cudaError_t finish(const SimclrSimilarityFwdArgs& args, const Product& product, const FwdPlan& plan,
                   cudaStream_t stream) {
  const auto partials = partials_of<typename Statistics::Partial>(plan, args.workspace);
  FinishTask<typename Statistics::Partial> task = {};
  task.rows = {partials.of_row, static_cast<float*>(args.lse), static_cast<float*>(args.max), plan.slots,
               product.pairing.rows};
  if (args.column_lse != nullptr) {
    task.columns = {partials.of_column, static_cast<float*>(args.column_lse), nullptr, plan.row_bands,
                    product.pairing.columns};
  }
  task.temperature = product.temperature_of<float>();
  return SIMCLR_LAUNCH((similarity_fwd_finish_kernel<W, Statistics>), plan.finish_blocks, kThreads, 0, stream, task);
}

template <class W>
cudaError_t finish(const SimclrSimilarityFwdArgs& args, const Product& product, const FwdPlan& plan,
                   cudaStream_t stream) {
  return plan.online_max ? finish<W, OnlineMax>(args, product, plan, stream)
                         : finish<W, ConstantMax>(args, product, plan, stream);
}

cudaError_t fwd_of_doubles(const SimclrSimilarityFwdArgs& args, const Product& product, const FwdPlan& plan,
                           cudaStream_t stream) {
  unsigned* finished = partials_of<double>(plan, args.workspace).finished;
  FwdRowsResult result{static_cast<double*>(args.lse), static_cast<double*>(args.max), finished, false};
  const cudaError_t error = fwd_rows(product, result, stream);
  if (error != cudaSuccess || args.column_lse == nullptr) return error;
  return fwd_rows(product, {static_cast<double*>(args.column_lse), nullptr, finished, true}, stream);
}

}  // namespace
}  // namespace simclr::cuda

extern "C" int simclr_similarity_fwd(const SimclrSimilarityFwdArgs* args, void* stream_pointer) {
  using namespace simclr::cuda;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  if (!is_valid(*args)) return cudaErrorInvalidValue;
  const Product product = product_of(*args, args->u_dtype);
  const FwdPlan plan = plan_fwd(*args);
  if (args->u_dtype == SIMCLR_DOUBLE) return fwd_of_doubles(*args, product, plan, stream);
  const cudaError_t error = fwd_tiles(product, plan, args->workspace, stream);
  if (error != cudaSuccess) return error;
  return args->u_dtype == SIMCLR_HALF ? finish<Wide<__half>::type>(*args, product, plan, stream)
                                      : finish<Wide<SplitHalf>::type>(*args, product, plan, stream);
}

extern "C" int simclr_similarity_bwd(const SimclrSimilarityBwdArgs* args, void* stream) {
  using namespace simclr::cuda;
  if (!is_valid(*args) || args->d <= 0 || args->u_columns < args->d) return cudaErrorInvalidValue;
  return bwd(problem_of(*args), static_cast<cudaStream_t>(stream));
}

extern "C" int64_t simclr_similarity_fwd_workspace_bytes(const SimclrSimilarityFwdArgs* args) {
  using namespace simclr::cuda;
  return plan_fwd(*args).bytes;
}

extern "C" int64_t simclr_similarity_bwd_workspace_bytes(const SimclrSimilarityBwdArgs* args) {
  using namespace simclr::cuda;
  return plan_bwd(problem_of(*args)).bytes;
}
