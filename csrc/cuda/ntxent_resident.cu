// NT-Xent's loss and gradient in one launch, for small batches on the tensor cores: its CTAs are all on the device at
// once and wait for each other twice, instead of for launches.
//
// A CTA owns 16 rows, and its eight warps share out the columns, 16 at a time. The CTA's logits are computed once and
// stay in shared memory, each in the place where the lane that made it finds it again. M^2 D multiply-adds for them,
// M^2 D for du. Every warp's du covers all of D, and the warps' are added in order, as is everything else.
//
// The online maximum serves all temperatures: where a logit is kept, its row's maximum costs one more operation.
#ifdef __CUDACC__
#include <cooperative_groups.h>
#endif

#include "../ntxent_launch.h"
#include "ntxent_bwd_terms.cuh"
#include "ntxent_direct.cuh"
#include "ntxent_fwd.cuh"
#include "ntxent_normalize.cuh"
#include "ntxent_resident.cuh"
#include "ntxent_row_gradient.cuh"
#include "ntxent_statistics.cuh"

namespace simclr::cuda {
namespace {

constexpr int kRows = kResidentRows, kWarps = kResidentWarps, kThreads = 32 * kWarps;
static_assert(kRows * kLanesPerPair <= kThreads && kRows == 2 * kWarps, "rows are shared out among warps and lanes");

// T: dtype of z.
template <class T>
struct ResidentTask {
  using E = OperandOf<T>;
  const T* z[2];
  int64_t z_stride[2];
  int64_t d;
  unsigned char* u;  // [padded rows, row_bytes], whose parts are whole lines
  float *inv_norm, *lse_neg, *s_pos;
  float *loss, *dz, *dt;  // dt may be null
  float* losses;          // [blocks]: of each CTA's rows
  GridSum<float> dt_sums;
  Pairing<int> pairing;
  Temperature<float> temperature;
  float product_unit, operand_unit;
  Side<float> side;
  double eps;
  float clamped_inv_norm;
  ResidentPlan plan;

  __device__ const T* z_of(int row) const {
    return row < pairing.n ? z[0] + row * z_stride[0] : z[1] + (row - pairing.n) * z_stride[1];
  }
  __device__ UnitRow<T, float> unit_row_of(int row) const {
    if constexpr (kRoundsRows<T>) {
      return {z_of(row), inv_norm[row]};
    } else {
      return {unit_rows(), row};
    }
  }
  __device__ const unsigned char* u_of(int row) const { return u + static_cast<int64_t>(row) * plan.row_bytes; }
  __device__ UnitRows<E> unit_rows() const {
    return {reinterpret_cast<__half*>(u), int64_t{plan.lines} * (kResidentLine / kPartElementBytes)};
  }
};

// Where lane k finds its logits of a warp's p-th panel: two times four, as the mma left them.
__device__ float4* logits_of(unsigned char* shared, int panel) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  return reinterpret_cast<float4*>(shared) + (panel * kWarps + warp) * 64 + lane;
}

__device__ void load_logits(float (&x)[2][4], unsigned char* shared, int panel) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float4 four = logits_of(shared, panel)[32 * n];
    x[n][0] = four.x, x[n][1] = four.y, x[n][2] = four.z, x[n][3] = four.w;
  }
}

// Excludes all but the negatives.
__device__ void mask_panel(float (&x)[2][4], const Pairing<int>& pairing, int first_row, int first_column) {
  const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + 8 * (i / 2) + group, column = first_column + 8 * n + 2 * quad + i % 2;
      if (!pairing.is_negative(row, column)) x[n][i] = -INFINITY;
    }
  }
}

// The warp's panels: logits into shared memory, and their partial log-sum-exps of each of the 16 rows.
template <class Operand, class T>
__device__ void make_logits(const ResidentTask<T>& task, unsigned char* shared, OnlineMax::Partial* of_row) {
  const ResidentPlan& plan = task.plan;
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  const int first_row = blockIdx.x * kRows;
  DirectRows<Operand> rows;
  load_direct_rows<Operand>(rows, task.u_of(first_row), plan.row_bytes, plan.lines);
  const float scale = task.temperature.base_2_scale() * task.product_unit;

  float max[2] = {-INFINITY, -INFINITY};
#pragma unroll 1
  for (int panel = 0, column = warp * kResidentPanel; column < task.pairing.columns;
       ++panel, column += kWarps * kResidentPanel) {
    float x[2][4];
    multiply_direct<Operand>(x, rows, task.u_of(column), plan.row_bytes, plan.lines);
    if (task.pairing.needs_mask(first_row, kRows, column, kResidentPanel))
      mask_panel(x, task.pairing, first_row, column);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) max[i / 2] = fmaxf(max[i / 2], x[n][i]);
      logits_of(shared, panel)[32 * n] = make_float4(x[n][0], x[n][1], x[n][2], x[n][3]);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    for (int lanes = 1; lanes <= 2; lanes *= 2) max[h] = fmaxf(max[h], __shfl_xor_sync(0xffffffffu, max[h], lanes));
    max[h] *= scale;
  }

  float sum[2] = {};
  for (int panel = 0, column = warp * kResidentPanel; column < task.pairing.columns;
       ++panel, column += kWarps * kResidentPanel) {
    float x[2][4];
    load_logits(x, shared, panel);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i / 2] += ptx::exp2_approx(fmaf(x[n][i], scale, -OnlineMax::shift(max[i / 2])));
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    for (int lanes = 1; lanes <= 2; lanes *= 2) sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], lanes);
    if (quad == 0) of_row[8 * h + group] = {max[h], sum[h]};
  }
}

// du of the 16 rows by the warp's columns, in units of the terms.
template <class Operand, class T>
__device__ void make_gradient(const ResidentTask<T>& task, unsigned char* shared, const float* shifts, DirectSums& du) {
  const ResidentPlan& plan = task.plan;
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  const float scale = task.temperature.base_2_scale() * task.product_unit;
  const float row_shift[2] = {shifts[blockIdx.x * kRows + group], shifts[blockIdx.x * kRows + group + 8]};
#pragma unroll 1
  for (int panel = 0, column = warp * kResidentPanel; column < task.pairing.columns;
       ++panel, column += kWarps * kResidentPanel) {
    float x[2][4];
    load_logits(x, shared, panel);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float2 shift = *reinterpret_cast<const float2*>(shifts + column + 8 * n + 2 * quad);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float of_row = ptx::exp2_approx(fmaf(x[n][i], scale, -row_shift[i / 2]));
        x[n][i] = of_row + ptx::exp2_approx(fmaf(x[n][i], scale, -(i % 2 ? shift.y : shift.x)));
      }
    }
    accumulate_direct<Operand>(du, x, task.u_of(column), plan.row_bytes, plan.lines);
  }
}

// A multiprocessor has one of these CTAs. Left to itself, ptxas makes room for two, 128 registers a thread, and spills.
template <class T, class Operand>
__global__ void __launch_bounds__(kThreads, 1) ntxent_resident_kernel(const ResidentTask<T> task) {
  using W = typename Wide<OperandOf<T>>::type;
  extern __shared__ __align__(128) unsigned char shared[];  // logits, or partial sums of du; then the columns' shifts
  __shared__ OnlineMax::Partial of_row[kWarps][kRows];
  __shared__ W logit_of_pair[kRows];
  __shared__ TermScale term_scale;
  const ResidentPlan& plan = task.plan;
  float* shifts = reinterpret_cast<float*>(shared + plan.logits_bytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rows = task.pairing.rows, first_row = blockIdx.x * kRows;
  constexpr int kRowsOfWarp = kRows / kWarps;

  // 1. u_i = z_i / max(|z_i|, eps) of the CTA's rows, and zeros beyond the last.
  const UnitRows<OperandOf<T>> u = task.unit_rows();
#pragma unroll 1
  for (int row = first_row + kRowsOfWarp * warp; row < first_row + kRowsOfWarp * (warp + 1); ++row) {
    normalize_row(task.z_of(min(row, rows - 1)), row < rows ? task.d : 0, task.eps, task.clamped_inv_norm, u, row,
                  task.inv_norm + row);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *task.dt_sums.finished = 0;
  cooperative_groups::this_grid().sync();

  // 2. s_ij = u_i . u_j / t of all columns, and the warps' parts of sum_j exp(s_ij).
  make_logits<Operand>(task, shared, of_row[warp]);
  // 3. s_ip = u_i . u_p / t.
  const W inverse_temperature = task.temperature.template inverse<W>();
  if (threadIdx.x < kRows * kLanesPerPair) {
    const int own = threadIdx.x / kLanesPerPair, row = min(first_row + own, rows - 1);
    const W product = pair_product<W>(u, row, task.pairing.positive_of(row));
    if (threadIdx.x % kLanesPerPair == 0) logit_of_pair[own] = product * inverse_temperature;
  }
  __syncthreads();

  // 4. lse_neg_i and L_i, one lane a row.
  if (warp == 0) {
    float loss = 0;
    if (lane < kRows && first_row + lane < rows) {
      OnlineMax::Partial all = of_row[0][lane];
      for (int other = 1; other < kWarps; ++other) all = OnlineMax::combine(all, of_row[other][lane]);
      const W per_unit = inverse_temperature / static_cast<W>(task.temperature.base_2_scale());
      const W lse_neg = OnlineMax::log_sum(all, inverse_temperature, per_unit), s_pos = logit_of_pair[lane];
      loss = static_cast<float>(row_loss(lse_neg, s_pos));
      task.lse_neg[first_row + lane] = static_cast<float>(lse_neg);
      task.s_pos[first_row + lane] = static_cast<float>(s_pos);
    }
    loss = warp_sum(loss);
    if (lane == 0) task.losses[blockIdx.x] = loss;
  }
  cooperative_groups::this_grid().sync();

  // 5. loss = scale sum_i L_i.
  if (blockIdx.x == 0 && warp == 0) {
    float loss = 0;
    for (int block = lane; block < plan.blocks; block += 32) loss += task.losses[block];
    loss = warp_sum(loss);
    if (lane == 0) *task.loss = task.side.scale * loss;
  }
  // 6. What every row and column brings to the coefficients; padding brings nothing, as its logits are masked.
  find_term_scale(task.side, 0, task.side, rows, task.temperature.base_2_scale(),
                  task.temperature.inverse() * task.operand_unit, &term_scale);
  for (int column = threadIdx.x; column < plan.panels * kResidentPanel; column += kThreads)
    shifts[column] = column < rows ? term_of<true>(task.side, term_scale, column).shift : 0.0f;
  __syncthreads();

  // 7. du_i = sum_j (exp(s_ij - lse_i) + exp(s_ij - lse_j)) u_j: the warps' parts, which take the place of the logits.
  DirectSums du = {};
  make_gradient<Operand>(task, shared, shifts, du);
  __syncthreads();
  float* parts = reinterpret_cast<float*>(shared);
  store_direct(parts + warp * kRows * kResidentPitch, du, plan.lines, term_scale.weight * term_scale.of_result);
  __syncthreads();

  // 8. dz_i, and dt = -1/2t sum_i u_i . du_i: a pair's logit is part of this sum at both of its rows.
  float along = 0;  // the lane's part
#pragma unroll 1
  for (int own = kRowsOfWarp * warp; own < kRowsOfWarp * (warp + 1) && first_row + own < rows; ++own) {
    const int row = first_row + own, partner = task.pairing.positive_of(row);
    RowGradient<T, float> gradient = {};
    gradient.own = task.unit_row_of(row);
    gradient.positive = task.unit_row_of(partner);
    gradient.pull = (task.side.pull(row) + task.side.pull(partner)) * task.side.scale * task.temperature.inverse();
    gradient.inv_norm = task.inv_norm[row];
    gradient.clamped_inv_norm = task.clamped_inv_norm;
    gradient.parts = parts + own * kResidentPitch;
    gradient.next_part = kRows * kResidentPitch;
    gradient.count = kWarps;
    along += gradient.template finish<true>(task.d, task.dz + row * task.d);
  }
  float total;
  if (task.dt != nullptr && grid_sum(along, task.dt_sums, &total))
    *task.dt = -0.5f * task.temperature.inverse() * total;
}

template <class T, class Operand>
cudaError_t run(const SimclrNtxentFwdBwdArgs& args, const ResidentPlan& plan, cudaStream_t stream) {
  unsigned char* workspace = static_cast<unsigned char*>(args.workspace);
  const auto floats = [&](int64_t at) { return reinterpret_cast<float*>(workspace + at); };
  const int n = static_cast<int>(args.n);
  ResidentTask<T> task = {};
  for (int view = 0; view < 2; ++view) {
    task.z[view] = static_cast<const T*>(args.z[view]);
    task.z_stride[view] = args.z_stride[view];
  }
  task.d = args.d;
  task.u = workspace + plan.u_at;
  task.inv_norm = floats(plan.inv_norm_at);
  task.lse_neg = floats(plan.lse_neg_at);
  task.s_pos = floats(plan.s_pos_at);
  task.loss = static_cast<float*>(args.loss);
  task.dz = static_cast<float*>(args.dz);
  task.dt = static_cast<float*>(args.dt);
  task.losses = floats(plan.losses_at);
  task.dt_sums = {floats(plan.dt_sums_at), reinterpret_cast<unsigned*>(workspace + plan.finished_at)};
  task.pairing = {n, 2 * n, 2 * n, 0};
  task.temperature = {static_cast<const float*>(args.temperature_ptr), 1 / args.temperature};
  const float operand = operand_scale(operand_dtype(args.z_dtype));
  task.operand_unit = 1 / operand;
  task.product_unit = 1 / (operand * operand);
  task.side = {nullptr, static_cast<float>(args.scale), false, task.lse_neg, task.s_pos};
  task.eps = args.eps;
  task.clamped_inv_norm = clamped_inv_norm<float>(args.eps);
  task.plan = plan;
  return SIMCLR_LAUNCH_RESIDENT((ntxent_resident_kernel<T, Operand>), plan.blocks, kThreads, plan.shared_bytes, stream,
                                task);
}

}  // namespace

cudaError_t ntxent_resident(const SimclrNtxentFwdBwdArgs& args, const ResidentPlan& plan, cudaStream_t stream) {
  if (args.z_dtype == SIMCLR_HALF) return run<__half, Products<1>>(args, plan, stream);
  if (args.z_dtype == SIMCLR_BFLOAT16) return run<__nv_bfloat16, Products<1>>(args, plan, stream);
  return args.precision == SIMCLR_TF32 ? run<float, Products<1>>(args, plan, stream)
                                       : run<float, Products<3>>(args, plan, stream);
}

}  // namespace simclr::cuda
