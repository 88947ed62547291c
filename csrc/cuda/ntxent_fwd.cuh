// Between the two launches of the NT-Xent forward: partial log-sum-exps per row, and the kernel that finishes them.
#pragma once

#include "ntxent_math.cuh"
#include "ntxent_plan.h"
#include "ntxent_unit_rows.cuh"
#include "reduce.cuh"

namespace simclr::cuda {

// The type that a row's product with its positive is summed in, and the loss made in: float64, but for fp16 operands,
// whose products are exact in float32. Where pairs are aligned, the loss is as sensitive to this one logit, rounded, as
// to all others together: an error of x in it is a relative error of x in the loss.
template <class E>
struct Wide {
  using type = double;
};
template <>
struct Wide<__half> {
  using type = float;
};

// E: of u, S: dtype of the statistics.
template <class E, class S>
struct FwdFinishTask {
  UnitRows<E> u;  // [columns]
  Pairing<int> pairing;
  Temperature<S> temperature;
  S* s_pos;    // [rows]
  S* lse_neg;  // [rows]
  S* loss;     // [] if reduce, else [rows]
  S scale;
  bool reduce;
  GridSum<S> sums;
};

// The product of two rows of u, over kLanesPerPair neighbouring lanes; every one of them gets it.
template <class W, class E>
__device__ W pair_product(const UnitRows<E>& u, int64_t a, int64_t b) {
  constexpr int kPerChunk = UnitRows<E>::kPerChunk;
  W sum = 0;
  for (int64_t k = threadIdx.x % kLanesPerPair * kPerChunk; k < u.columns; k += kLanesPerPair * kPerChunk) {
    W x[kPerChunk], y[kPerChunk];
    u.load_chunk(x, a, k);
    u.load_chunk(y, b, k);
#pragma unroll
    for (int i = 0; i < kPerChunk; ++i) sum += x[i] * y[i];
  }
  for (int lanes = kLanesPerPair / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  return sum * (UnitRows<E>::kChunkUnit * UnitRows<E>::kChunkUnit);
}

// A block finishes kFwdFinishPairs samples, both rows of each; partials are [slots][rows]. All sums have a fixed order.
template <class E, class S, class Statistics>
__global__ void __launch_bounds__(kFwdFinishThreads)
    ntxent_fwd_finish_kernel(const FwdFinishTask<E, S> task, const typename Statistics::Partial* partials, int slots) {
  using W = typename Wide<E>::type;
  __shared__ W of_pair[kFwdFinishPairs];
  const int n = task.pairing.n, rows = task.pairing.rows, first = blockIdx.x * kFwdFinishPairs;
  const W inverse_temperature = task.temperature.template inverse<W>();
  // 1. s_ip = u_i . u_p / t of every sample: one number for both of its rows.
  const int pair = threadIdx.x / kLanesPerPair;
  const int own = task.pairing.column_of(min(first + pair, n - 1));
  const W product = pair_product<W>(task.u, own, own + int64_t{n});
  if (threadIdx.x % kLanesPerPair == 0) of_pair[pair] = product * inverse_temperature;
  __syncthreads();

  // 2. lse_neg_i from the partials of all slots, then L_i; one thread a row.
  const int sample = first + threadIdx.x % kFwdFinishPairs, view = threadIdx.x / kFwdFinishPairs;
  S loss = 0;
  if (view < 2 && sample < n) {
    const int row = view * n + sample;
    typename Statistics::Partial all = partials[row];
    for (int slot = 1; slot < slots; ++slot) {
      all = Statistics::combine(all, partials[static_cast<int64_t>(slot) * rows + row]);
    }
    const W per_unit = inverse_temperature / static_cast<W>(task.temperature.base_2_scale());
    const W lse_neg = Statistics::log_sum(all, inverse_temperature, per_unit);
    const W s_pos = of_pair[threadIdx.x % kFwdFinishPairs];
    loss = static_cast<S>(row_loss(lse_neg, s_pos));
    task.s_pos[row] = static_cast<S>(s_pos);
    task.lse_neg[row] = static_cast<S>(lse_neg);
    if (!task.reduce) task.loss[row] = loss;
  }
  // 3. loss = scale sum_i L_i, by the block that finishes last.
  S total;
  if (task.reduce && grid_sum(loss, task.sums, &total)) *task.loss = task.scale * total;
}

// Where the first launch leaves what the second needs.
template <class Partial>
struct FwdPartials {
  Partial* of_row;     // [slots][rows]
  Partial* of_column;  // [row bands][columns]; of_row where rows are columns; null where column sums are not wanted
  unsigned* finished;  // the first launch must zero it
};

template <class Partial>
FwdPartials<Partial> partials_of(const FwdPlan& plan, void* workspace) {
  unsigned char* base = static_cast<unsigned char*>(workspace);
  return {reinterpret_cast<Partial*>(base + plan.row_partials_at),
          plan.column_partials_at < 0 ? nullptr : reinterpret_cast<Partial*>(base + plan.column_partials_at),
          reinterpret_cast<unsigned*>(base + plan.finished_at)};
}

// Fills the partials of fp16 and split operands (ntxent_fwd.cu).
cudaError_t fwd_tiles(const Product& product, const FwdPlan& plan, void* workspace, cudaStream_t stream);
// The same on Hopper, where plan.sm90 is used (ntxent_fwd_sm90.cu).
cudaError_t fwd_tiles_sm90(const Product& product, const FwdPlan& plan, void* workspace, cudaStream_t stream);

template <class E, class S, class Statistics>
cudaError_t fwd_finish(const SimclrNtxentFwdArgs& args, const FwdPlan& plan, cudaStream_t stream) {
  const Product product = product_of(args);
  const auto partials = partials_of<typename Statistics::Partial>(plan, args.workspace);
  FwdFinishTask<E, S> task = {};
  task.u = unit_rows<E>(args.u, args.u_columns);
  task.pairing = product.pairing;
  task.temperature = product.temperature_of<S>();
  task.s_pos = static_cast<S*>(args.s_pos);
  task.lse_neg = static_cast<S*>(args.lse_neg);
  task.loss = static_cast<S*>(args.loss);
  task.scale = static_cast<S>(args.scale);
  task.reduce = args.reduce != 0;
  task.sums.of_block = reinterpret_cast<S*>(static_cast<unsigned char*>(args.workspace) + plan.block_sums_at);
  task.sums.finished = partials.finished;
  return SIMCLR_LAUNCH((ntxent_fwd_finish_kernel<E, S, Statistics>), plan.finish_blocks, kFwdFinishThreads, 0, stream,
                       task, partials.of_row, plan.slots);
}

// fp64 operands, row by row (ntxent_rows.cu): the log-sum-exps, and the maxima where max is not null, of all rows; or,
// transposed, of all columns. ntxent_fwd_rows is all of NT-Xent's forward.
struct FwdRowsResult {
  double *lse, *max;
  unsigned* finished;
  bool transposed;
};
cudaError_t fwd_rows(const Product& product, const FwdRowsResult& result, cudaStream_t stream);
cudaError_t ntxent_fwd_rows(const SimclrNtxentFwdArgs& args, const FwdPlan& plan, cudaStream_t stream);

}  // namespace simclr::cuda
