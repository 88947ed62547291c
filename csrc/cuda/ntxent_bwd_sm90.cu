// The backward of NT-Xent and of the primitive on Hopper's wgmma: du = (coefficients of S) u, D up to 256.
//
// A CTA owns 128 rows, 64 for each of two warpgroups, and walks over tiles of columns that a third one brings into shared
// memory ahead of them. A tile serves both products, as columns of S and as the depth of the second:
//
//   S  = U_I U_J^T   both operands from shared memory, K-major
//   du += C U_J      C, the coefficients of S, from registers: the accumulators of S packed in pairs are its A operand;
//                    U_J is the same tile, MN-major
//
// S of the next tile and du of this one are handed to the tensor cores together; the exponentials of the next tile are
// then taken beside the second product. The two warpgroups hand over in turn, so that one's exponentials, packing and
// waiting lie beside the other's products.
//
// Split operands (float32 views) make three products of each, the small ones first, and a tile's share of du is summed
// from zero and then added with rounding: tensor cores cut off what does not fit when they add.
//
// Terms, masks and partials are those of ntxent_bwd.cu, and so is the second launch. The shape of the walk is that of
// FlashAttention 3's forward (Shah et al. 2024, "intra-warpgroup overlap" and "pingpong"), with keys and values the same.
#ifdef SIMCLR_SM90A
#include "ntxent_bwd_sm90.cuh"
#include "ntxent_bwd_sm90_tiles.cuh"
#include "ntxent_plan.h"

namespace simclr::cuda {
namespace {

// Hands S = (the warpgroup's rows) (a tile)^T to the tensor cores: from zero, small products first.
template <class Shape>
__device__ __forceinline__ void multiply_rows(typename Shape::Logits& s, uint64_t rows, uint64_t tile) {
#pragma unroll
  for (int product = 0; product < Shape::kProducts; ++product) {
    const int row_part = Shape::kProducts == 3 && product == 0 ? 1 : 0, tile_part = product == 1 ? 1 : 0;
#pragma unroll
    for (int panel = 0; panel < Shape::kPanels; ++panel) {
#pragma unroll
      for (int step = 0; step < kSm90Panel / 16; ++step) {
        const int a = (row_part * Shape::kPanels + panel) * Shape::kRowPanelBytes + step * kStepBytes;
        const int b = (tile_part * Shape::kPanels + panel) * Shape::kTilePanelBytes + step * kStepBytes;
        wgmma::multiply_shared<Shape::kTile>(s, behind(rows, a), behind(tile, b), product + panel + step > 0);
      }
    }
  }
}

// Hands du (+)= C (a tile) to the tensor cores; three products from zero, small ones first.
template <class Shape>
__device__ __forceinline__ void multiply_coefficients(typename Shape::Gradient& du,
                                                      const typename Shape::Coefficients& c, uint64_t tile) {
#pragma unroll
  for (int product = 0; product < Shape::kProducts; ++product) {
    const int part = Shape::kProducts == 3 && product == 0 ? 1 : 0, tile_part = product == 1 ? 1 : 0;
#pragma unroll
    for (int step = 0; step < Shape::kTile / 16; ++step) {
      const int b = tile_part * Shape::kPanels * Shape::kTilePanelBytes + 16 * step * kSm90PanelRowBytes;
      wgmma::multiply_registers<Shape::kDepth>(du, c[part][step], behind(tile, b),
                                               Shape::kProducts == 1 || product + step > 0);
    }
  }
}

// du += C (a tile). One product accumulates in du; three are summed from zero, and added with rounding.
template <class Shape, int kProducts = Shape::kProducts>
struct Accumulate {
  __device__ void start(typename Shape::Gradient& du, const typename Shape::Coefficients& c, uint64_t tile) {
    multiply_coefficients<Shape>(du, c, tile);
  }
  __device__ void finish(typename Shape::Gradient& du) { wgmma::hold(du); }
};
template <class Shape>
struct Accumulate<Shape, 3> {
  typename Shape::Gradient part;
  __device__ void start(typename Shape::Gradient&, const typename Shape::Coefficients& c, uint64_t tile) {
    multiply_coefficients<Shape>(part, c, tile);
  }
  __device__ void finish(typename Shape::Gradient& du) {
    wgmma::hold(part);
#pragma unroll
    for (int n = 0; n < Shape::kDepth / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) du[n][i] += part[n][i];
    }
  }
};

// What a consumer thread knows of its rows.
struct ThreadRows {
  Term terms[2];
  float scale;  // products to base-2 logits
};

// The first of a consumer warp's 16 rows.
[[maybe_unused]] __device__ __forceinline__ int warp_row() {
  return block_index() * kSm90BlockRows + thread_index() / 32 * 16;
}

// S of a tile, complete, to coefficients.
template <bool kOnline, class Shape>
__device__ __forceinline__ void weigh(typename Shape::Logits& s, const Sm90Task& task, const Sm90Shared<Shape>& shared,
                                      const ThreadRows& rows, int tile, int stage, float (&own)[2]) {
  const int row = warp_row(), column = tile * Shape::kTile;
  if (task.pairing.needs_mask(row, 16, column, Shape::kTile)) exclude_pairs(s, task.pairing, row, column);
  make_coefficients<kOnline>(s, rows.scale, rows.terms, shared.weights + stage * Shape::kTile,
                             shared.shifts + stage * Shape::kTile, own);
}

// A consumer warpgroup's part: its rows' walk.
template <bool kOnline, class Shape>
__device__ void consume(const Sm90Task& task, const TermScale& term_scale, const Sm90Shared<Shape>& shared,
                        const ThreadRows& rows, uint32_t own_rows, int tile_begin, int tile_end) {
  const uint32_t stages = ptx::shared_address(shared.stages);
  const auto address_of = [=](int stage) { return wgmma::uniform(stages + stage * Shape::kStageBytes); };
  const auto as_columns_of_s = [=](int stage) { return wgmma::rows_descriptor(address_of(stage)); };
  const auto as_depth = [=](int stage) { return wgmma::columns_descriptor(address_of(stage), Shape::kTilePanelBytes); };
  typename Shape::Gradient du = {};
  typename Shape::Logits s;
  typename Shape::Coefficients c;
  Accumulate<Shape> accumulate;
  float own[2] = {};

  // 3., 4. The first tile's coefficients.
  StageOf<Shape::kStages> here;
  mbarrier::wait(shared.full, 0);
  wgmma::fence();
  multiply_rows<Shape>(s, wgmma::rows_descriptor(wgmma::uniform(own_rows)), as_columns_of_s(0));
  wgmma::commit();
  wgmma::wait<0>();
  wgmma::hold(s);
  weigh<kOnline, Shape>(s, task, shared, rows, tile_begin, 0, own);
  pack_coefficients(c, s);

  // Barriers 1 and 2: the turns of the two warpgroups. The first one's first turn comes from the second.
  if (thread_index() >= wgmma::kThreads) named_barrier_arrive(1, kSm90Consumers);
  for (int tile = tile_begin; tile + 1 < tile_end; ++tile) {
    StageOf<Shape::kStages> next = here;
    next.next();
    mbarrier::wait(shared.full + next.stage, next.phase);
    ptx::named_barrier_sync(1 + thread_index() / wgmma::kThreads, kSm90Consumers);
    // 3. x_ij = u_i . u_j of the next tile,
    wgmma::fence();
    // In every round anew: else the compiler holds a descriptor for every step, and spills.
    multiply_rows<Shape>(s, wgmma::rows_descriptor(wgmma::uniform(own_rows)), as_columns_of_s(next.stage));
    wgmma::commit();
    // 5. and du_i += sum_j c_ij u_j of this one.
    accumulate.start(du, c, as_depth(here.stage));
    wgmma::commit();
    named_barrier_arrive(2 - thread_index() / wgmma::kThreads, kSm90Consumers);
    // 4. x_ij -> w_i exp(s_ij - lse_i) + w_j exp(s_ij - lse_j), 0 where j is no negative of i, of the next tile.
    wgmma::wait<1>();
    wgmma::hold(s);
    weigh<kOnline, Shape>(s, task, shared, rows, tile + 1, next.stage, own);
    wgmma::wait<0>();
    accumulate.finish(du);
    __syncwarp();  // all lanes have read the terms
    if (thread_index() % 32 == 0) mbarrier::arrive(shared.empty + here.stage);
    pack_coefficients(c, s);
    here = next;
  }
  if (thread_index() < wgmma::kThreads) ptx::named_barrier_sync(1, kSm90Consumers);  // the turn that is left over
  wgmma::fence();
  accumulate.start(du, c, as_depth(here.stage));
  wgmma::commit();
  wgmma::wait<0>();
  accumulate.finish(du);

  // 6. The partial du of this split, 1/t and the units included, and its part of dt, whose products have two operands.
  const int lane = thread_index() % 32, group = lane / 4, quad = lane % 4, first_row = warp_row();
  const float unit = term_scale.of_result, own_unit = unit * task.operand_unit;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first_row + 8 * h + group;
    const int64_t at = static_cast<int64_t>(blockIdx.y) * task.pairing.rows + row;
    float own_logits = own[h] * (kOnline ? 1.0f : rows.terms[h].weight);
    own_logits += __shfl_xor_sync(0xffffffffu, own_logits, 1);
    own_logits += __shfl_xor_sync(0xffffffffu, own_logits, 2);
    if (row >= task.pairing.rows) continue;
    if (quad == 0 && task.partials.own_logits != nullptr) task.partials.own_logits[at] = own_logits * own_unit;
#pragma unroll
    for (int n = 0; n < Shape::kDepth / 8; ++n) {
      const int column = 8 * n + 2 * quad;
      if (column >= task.du_columns) continue;
      float* out = task.partials.du + at * task.du_columns + column;
      *reinterpret_cast<float2*>(out) = make_float2(du[n][2 * h] * unit, du[n][2 * h + 1] * unit);
    }
  }
}

template <class Shape, bool kOnline>
__global__ void __launch_bounds__(kSm90Threads, 1) ntxent_bwd_sm90_kernel(const Sm90Task task) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  __shared__ TermScale term_scale;
  const Sm90Shared<Shape> shared(shared_memory);
  const int warp = wgmma::uniform(static_cast<int>(threadIdx.x) / 32);
  const bool produces = warp >= kSm90Consumers / 32;
  const int tile_begin = blockIdx.y * task.split_tiles, tile_end = min(tile_begin + task.split_tiles, task.tiles);

  // 1. The barriers, the CTA's rows of u, and the unit of coefficients; the first tiles are on their way.
  if (threadIdx.x == 0) {
    if (ptx::shared_address(shared.rows) % wgmma::kPanelAlignment != 0) __trap();
    if (blockIdx.x == 0 && blockIdx.y == 0) *task.partials.finished = 0;
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      mbarrier::initialise(shared.full + stage, kSm90Producers);
      mbarrier::initialise(shared.empty + stage, kSm90Consumers / 32);
    }
  }
  Producer<kOnline, Shape> producer(task, shared, tile_begin, tile_end);
  if (produces) {
    producer.start();
  } else {
    copy_panels<Shape, kSm90BlockRows, kSm90Consumers>(shared.rows, task.rows, blockIdx.x * kSm90BlockRows,
                                                       threadIdx.x);
    ptx::cp_async_commit();
  }
  const float constant_max = task.temperature.base_2_scale();
  find_term_scale(task.of_rows, task.searched_rows, task.of_columns, task.pairing.columns, constant_max,
                  task.temperature.inverse() * task.operand_unit, &term_scale);
  if (!produces) {
    ptx::cp_async_wait_group<0>();
    wgmma::fence_proxy_async();
  }
  __syncthreads();

  // 2. The tiles.
  if (produces) {
    give_registers_back<kSm90ProducerRegisters>();
    producer.run(term_scale);
    return;
  }
  take_registers<kSm90ConsumerRegisters>();
  ThreadRows rows;
  rows.scale = constant_max * task.product_unit;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = warp_row() + 8 * h + threadIdx.x % 32 / 4;
    rows.terms[h] =
        row < task.pairing.rows ? term_of<kOnline>(task.of_rows, term_scale, row) : Term{0, term_scale.constant_max};
  }
  const uint32_t own_rows = ptx::shared_address(shared.rows) + warp / 4 * kWarpgroupRows * kSm90PanelRowBytes;
  consume<kOnline, Shape>(task, term_scale, shared, rows, own_rows, tile_begin, tile_end);
#endif
}

template <class Shape>
cudaError_t run(const BwdProblem& problem, const BwdPlan& plan, cudaStream_t stream) {
  const Sm90Task task = Sm90Task::of(problem, plan);
  const dim3 grid(plan.row_blocks, plan.splits);
  return problem.product.uses_constant_max() ? SIMCLR_LAUNCH((ntxent_bwd_sm90_kernel<Shape, false>), grid, kSm90Threads,
                                                             plan.shared_bytes, stream, task)
                                             : SIMCLR_LAUNCH((ntxent_bwd_sm90_kernel<Shape, true>), grid, kSm90Threads,
                                                             plan.shared_bytes, stream, task);
}

}  // namespace

cudaError_t bwd_tiles_sm90(const BwdProblem& problem, const BwdPlan& plan, cudaStream_t stream) {
  const int panels = sm90_panels(problem.d);
  if (problem.product.products() == 3) {
    return panels == 1 ? run<Sm90Shape<1, 3>>(problem, plan, stream) : run<Sm90Shape<2, 3>>(problem, plan, stream);
  }
  return panels == 1   ? run<Sm90Shape<1, 1>>(problem, plan, stream)
         : panels == 2 ? run<Sm90Shape<2, 1>>(problem, plan, stream)
                       : run<Sm90Shape<4, 1>>(problem, plan, stream);
}

}  // namespace simclr::cuda
#endif
