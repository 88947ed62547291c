// The backward of NT-Xent and of the primitive on Hopper's wgmma for wide rows: du = (coefficients of S) u.
//
// A cluster of CTAs owns 128 rows and walks over tiles of 64 columns; a CTA owns 256 of the D columns of u and du, of
// split operands 128: its slice. Each of its two warpgroups computes its slice's share of S for 64 rows, exchanges
// shares with the same warpgroup of the other CTAs through their shared memory, takes the exponentials, and multiplies
// the coefficients, from registers, with the same slice of the tile: du accumulates in registers.
//
//   S  = sum over slices of U_I U_J^T   both operands from shared memory, K-major
//   du += C U_J, per slice              C from registers: the accumulators of S packed in pairs are its A operand
//
// So every element of a tile is read from L2 once per 128 rows, half as often as by a CTA that holds the whole du of 64
// rows, and neither product is computed twice; the price is exponentials once per slice, and 16 KiB of logits per 64
// rows and tile. At M = 8192, D = 512 that is 0.54 GB from L2 and 2 M^2 D multiply-adds. Coefficients in chunks in
// global memory, multiplied in 128 x 256 tiles by a launch of their own, would take 1.7 GB and 16 launches.
//
// S of the next tile and du of this one are handed to the tensor cores together; the next tile's exchange and
// exponentials lie beside the second product and the other warpgroup's. Split operands (float32 views) make three
// products of each, the small ones first; a slice's share of S and a tile's of du are summed from zero. Terms, partials
// and the second launch are the mma.sync kernel's (ntxent_bwd.cu).
#ifdef SIMCLR_SM90A
#include "ntxent_bwd_wide_sm90.cuh"
#include "ntxent_plan.h"

namespace simclr::cuda {
namespace {

// Brings the tiles of one stage, and the terms of their columns, by one warp: so a tile is announced as soon as it is
// there, and none waits for the place of the next.
template <bool kOnline, class Shape>
__device__ void produce(const Sm90Task& task, const TermScale& scale, const WideShared<Shape>& shared, int byte,
                        int stage, int tile_begin, int tile_end) {
  const int lane = threadIdx.x % 32;
  for (int tile = tile_begin + stage, phase = 0; tile < tile_end; tile += Shape::kStages, phase ^= 1) {
    mbarrier::wait(shared.empty + stage, phase ^ 1);
    copy_slice<Shape, kWideTile, 32>(shared.stages + stage * kWideStageBytes, task.columns, byte, tile * kWideTile,
                                     lane);
    ptx::cp_async_commit();
    for (int i = lane; i < kWideTile; i += 32) {
      const int column = tile * kWideTile + i, at = stage * kWideTile + i;
      const Term term = column < task.pairing.columns ? term_of<kOnline>(task.of_columns, scale, column) : Term{0, 0};
      shared.weights[at] = term.weight;
      if (kOnline) shared.shifts[at] = term.shift;
    }
    ptx::cp_async_wait_group<0>();
    wgmma::fence_proxy_async();
    mbarrier::arrive(shared.full + stage);
  }
}

// Hands the slice's share of S = (the warpgroup's rows) (a tile)^T to the tensor cores, from zero: lo hi, hi lo, hi hi,
// or one product. Rows and tile are given by descriptors.
template <class Shape>
__device__ __forceinline__ void multiply_rows(WideLogits& s, uint64_t rows, uint64_t tile) {
#pragma unroll
  for (int product = 0; product < Shape::kProducts; ++product) {
    const int row_part = Shape::kProducts == 3 && product == 0 ? 1 : 0, tile_part = product == 1 ? 1 : 0;
#pragma unroll
    for (int step = 0; step < Shape::kSlice / 16; ++step) {
      const int panel = step / (kSm90Panel / 16), in_panel = step % (kSm90Panel / 16) * kStepBytes;
      const int a = (row_part * Shape::kPartPanels + panel) * kSm90BlockRows * kSm90PanelRowBytes + in_panel;
      const int b = (tile_part * Shape::kPartPanels + panel) * kWideTile * kSm90PanelRowBytes + in_panel;
      wgmma::multiply_shared<kWideTile>(s, behind(rows, a), behind(tile, b), product + step > 0);
    }
  }
}

// Hands C (the slice of a tile) to the tensor cores: added to du, or, of three products, from zero.
template <class Shape>
__device__ __forceinline__ void multiply_coefficients(typename Shape::Gradient& du,
                                                      const typename Shape::Coefficients& c, uint64_t tile) {
#pragma unroll
  for (int product = 0; product < Shape::kProducts; ++product) {
    const int part = Shape::kProducts == 3 && product == 0 ? 1 : 0, tile_part = product == 1 ? 1 : 0;
#pragma unroll
    for (int step = 0; step < kWideTile / 16; ++step) {
      const int b = (tile_part * Shape::kPartPanels * kWideTile + 16 * step) * kSm90PanelRowBytes;
      wgmma::multiply_registers<Shape::kSlice>(du, c[part][step], behind(tile, b),
                                               Shape::kProducts == 1 || product + step > 0);
    }
  }
}

// du of the CTA's slice. Tensor cores cut off what does not fit when they add; so three products of a tile are summed
// from zero, apart, and added with rounding.
template <class Shape, int kProducts = Shape::kProducts>
struct Accumulator {
  typename Shape::Gradient du = {};
  __device__ void start(const typename Shape::Coefficients& c, uint64_t tile) {
    multiply_coefficients<Shape>(du, c, tile);
  }
  __device__ void finish() { wgmma::hold(du); }
};
template <class Shape>
struct Accumulator<Shape, 3> {
  typename Shape::Gradient du = {}, part;
  __device__ void start(const typename Shape::Coefficients& c, uint64_t tile) {
    multiply_coefficients<Shape>(part, c, tile);
  }
  __device__ void finish() {
    wgmma::hold(part);
#pragma unroll
    for (int n = 0; n < Shape::kSlice / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) du[n][i] += part[n][i];
    }
  }
};

// What a consumer warp knows of its rows.
struct WarpRows {
  int first;  // of its 16 rows
  Term terms[2];
  float scale;  // products to base-2 logits
};

// S of a tile, summed over the slices, to coefficients.
template <bool kOnline, class Shape>
__device__ __forceinline__ void weigh(WideLogits& s, const Sm90Task& task, const WideShared<Shape>& shared,
                                      const WarpRows& rows, int tile, int stage, float (&own)[2]) {
  const int column = tile * kWideTile;
  if (task.pairing.needs_mask(rows.first, 16, column, kWideTile)) exclude_pairs(s, task.pairing, rows.first, column);
  const float* weights = shared.weights + stage * kWideTile;
  const float* shifts = shared.shifts + stage * kWideTile;
  make_coefficients<kOnline>(s, rows.scale, rows.terms, weights, shifts, own);
}

template <bool kOnline, class Shape>
__device__ void consume(const Sm90Task& task, const TermScale& term_scale, const WideShared<Shape>& shared,
                        const WarpRows& rows, int row_group, int slice, int tile_begin, int tile_end) {
  const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int slice_columns =
      min(task.du_columns - slice * Shape::kSlice, Shape::kSlice);  // those that exist, or less than 1
  const uint32_t first_stage = ptx::shared_address(shared.stages);
  const uint64_t own_rows =
      wgmma::rows_descriptor(ptx::shared_address(shared.rows) + row_group * kWarpgroupRows * kSm90PanelRowBytes);
  const uint64_t as_columns = wgmma::rows_descriptor(first_stage);
  const uint64_t as_rows = wgmma::columns_descriptor(first_stage, kWideTile * kSm90PanelRowBytes);
  WideExchange<Shape> exchange(shared, row_group, slice);
  Accumulator<Shape> sum;
  WideLogits s;
  typename Shape::Coefficients c;
  float own[2] = {};

  StageOf<Shape::kStages> here, next;
  for (int tile = tile_begin; tile < tile_end; ++tile, here = next, next.next()) {
    // 2. This slice's share of x_ij = u_i . u_j, and 4. of the tile before, du_i += sum_j c_ij u_j.
    mbarrier::wait(shared.full + next.stage, next.phase);
    wgmma::fence();
    multiply_rows<Shape>(s, own_rows, behind(as_columns, next.stage * kWideStageBytes));
    wgmma::commit();
    if (tile > tile_begin) {
      wgmma::fence();
      sum.start(c, behind(as_rows, here.stage * kWideStageBytes));
      wgmma::commit();
      wgmma::wait<1>();
    } else {
      wgmma::wait<0>();
    }
    wgmma::hold(s);
    const auto finish_before = [&] {
      wgmma::wait<0>();
      if (tile > tile_begin) {
        sum.finish();
        __syncwarp();
        if (lane == 0) mbarrier::arrive(shared.empty + here.stage);
      }
    };
    // 3. x_ij, summed over the slices, -> w_i exp(s_ij - lse_i) + w_j exp(s_ij - lse_j), 0 where j is no negative of i.
    // With three products the registers of the second one, which must be over for that, are needed here.
    exchange.send(s, 0);
    if constexpr (Shape::kProducts == 3) finish_before();
    exchange.add_received(s, 0);
#pragma unroll
    for (int round = 1; round < Shape::kRounds; ++round) {
      exchange.send(s, round);
      exchange.add_received(s, round);
    }
    exchange.parity ^= 1;
    weigh<kOnline>(s, task, shared, rows, tile, next.stage, own);
    if constexpr (Shape::kProducts == 1) finish_before();
    pack_coefficients(c, s);
  }
  wgmma::fence();
  sum.start(c, behind(as_rows, here.stage * kWideStageBytes));
  wgmma::commit();
  wgmma::wait<0>();
  sum.finish();

  // 5. The partial du of this split, 1/t and the unit included, and its part of dt.
  const float unit = term_scale.of_result;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = rows.first + 8 * h + group;
    const int64_t at = static_cast<int64_t>(blockIdx.y) * task.pairing.rows + row;
    float own_logits = own[h] * (kOnline ? 1.0f : rows.terms[h].weight);
    own_logits += __shfl_xor_sync(0xffffffffu, own_logits, 1);
    own_logits += __shfl_xor_sync(0xffffffffu, own_logits, 2);
    if (row >= task.pairing.rows) continue;
    if (slice == 0 && quad == 0 && task.partials.own_logits != nullptr)
      task.partials.own_logits[at] = own_logits * unit * task.operand_unit;
    float* out = task.partials.du + at * task.du_columns + slice * Shape::kSlice + 2 * quad;
#pragma unroll
    for (int n = 0; n < Shape::kSlice / 8; ++n) {
      if (8 * n + 2 * quad >= slice_columns) continue;
      *reinterpret_cast<float2*>(out + 8 * n) = make_float2(sum.du[n][2 * h] * unit, sum.du[n][2 * h + 1] * unit);
    }
  }
}

template <bool kOnline, class Shape>
__global__ void SIMCLR_CLUSTER(1 << Shape::kRounds) __launch_bounds__(kSm90Threads, 1)
    ntxent_bwd_wide_sm90_kernel(const Sm90Task task) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kCluster = 1 << Shape::kRounds;
  extern __shared__ __align__(wgmma::kPanelAlignment) unsigned char shared_memory[];
  __shared__ uint64_t barriers[WideShared<Shape>::kBarriers];
  __shared__ TermScale term_scale;
  const WideShared<Shape> shared(shared_memory, barriers);
  const int warp = wgmma::uniform(static_cast<int>(threadIdx.x) / 32);
  const int slice = blockIdx.x % kCluster, block_row = blockIdx.x / kCluster * kSm90BlockRows;
  const int slice_byte = slice * Shape::kSlice * static_cast<int>(sizeof(__half));
  const int tile_begin = blockIdx.y * task.split_tiles, tile_end = min(tile_begin + task.split_tiles, task.tiles);

  // 1. The slice of the cluster's rows of u, the barriers, and the unit of coefficients.
  if (threadIdx.x == 0) {
    if (blockIdx.x == 0 && blockIdx.y == 0) *task.partials.finished = 0;
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      mbarrier::initialise(shared.full + stage, 32);
      mbarrier::initialise(shared.empty + stage, kSm90Consumers / 32);
    }
    for (int i = 0; i < WideShared<Shape>::kExchanges; ++i) {
      mbarrier::initialise(shared.received + i, 1);
      mbarrier::initialise(shared.taken + i, kWarpgroupThreads / 32);
    }
    cluster::fence_init();
  }
  if (threadIdx.x < kSm90Consumers) {
    copy_slice<Shape, kSm90BlockRows, kSm90Consumers>(shared.rows, task.rows, slice_byte, block_row, threadIdx.x);
    ptx::cp_async_commit();
  }
  const float constant_max = task.temperature.base_2_scale();
  find_term_scale(task.of_rows, task.searched_rows, task.of_columns, task.pairing.columns, constant_max,
                  task.temperature.inverse() * task.operand_unit, &term_scale);
  ptx::cp_async_wait_group<0>();
  wgmma::fence_proxy_async();
  cluster::sync();

  if (warp >= kSm90Consumers / 32) {
    give_registers_back<kSm90ProducerRegisters>();
    const int stage = warp - kSm90Consumers / 32;
    if (stage < Shape::kStages) produce<kOnline>(task, term_scale, shared, slice_byte, stage, tile_begin, tile_end);
  } else {
    take_registers<kSm90ConsumerRegisters>();
    WarpRows rows;
    rows.first = block_row + 16 * warp;
    rows.scale = constant_max * task.product_unit;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = rows.first + 8 * h + threadIdx.x % 32 / 4;
      rows.terms[h] = row < task.pairing.rows ? term_of<kOnline>(task.of_rows, term_scale, row) : Term{0, constant_max};
    }
    consume<kOnline>(task, term_scale, shared, rows, warp / 4, slice, tile_begin, tile_end);
  }
  cluster::sync();  // what others send to a CTA, and count there, must find it
#endif
}

template <class Shape>
cudaError_t run(const BwdProblem& problem, const BwdPlan& plan, cudaStream_t stream) {
  const Sm90Task task = Sm90Task::of(problem, plan);
  const dim3 grid(plan.row_blocks << Shape::kRounds, plan.splits);
  return problem.product.uses_constant_max() ? SIMCLR_LAUNCH((ntxent_bwd_wide_sm90_kernel<false, Shape>), grid,
                                                             kSm90Threads, plan.shared_bytes, stream, task)
                                             : SIMCLR_LAUNCH((ntxent_bwd_wide_sm90_kernel<true, Shape>), grid,
                                                             kSm90Threads, plan.shared_bytes, stream, task);
}

}  // namespace

cudaError_t bwd_tiles_wide_sm90(const BwdProblem& problem, const BwdPlan& plan, cudaStream_t stream) {
  const int products = problem.product.products(), rounds = wide_rounds(problem.d, products);
  if (products == 1) {
    return rounds == 1 ? run<WideShape<1, 1>>(problem, plan, stream) : run<WideShape<1, 2>>(problem, plan, stream);
  }
  if (rounds == 1) return run<WideShape<3, 1>>(problem, plan, stream);
  return rounds == 2 ? run<WideShape<3, 2>>(problem, plan, stream) : run<WideShape<3, 3>>(problem, plan, stream);
}

}  // namespace simclr::cuda
#endif
