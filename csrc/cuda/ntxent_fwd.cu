// NT-Xent forward on the tensor cores: log-sum-exps of the rows of u u^T / t, whose logits never leave the registers.
//
// ntxent_fwd_kernel: one CTA takes a row band x column band of 128 x 128 tiles. The logits are symmetric: in a single
// process only tiles on and above the diagonal are computed, and a tile off the diagonal gives row sums to its rows and
// column sums to its columns (M^2 D / 2 multiply-adds). Every CTA writes its partials to slots of its own: band b of
// the rows gets one partial from each of the at most kMaxSlots bands, so partials take O(M) memory, and a CTA that has
// several tiles for one slot adds them up in a fixed order. ntxent_fwd_finish_kernel (ntxent_fwd.cuh) adds up each
// row's slots, and multiplies the rows of the pairs, which the tiles leave out.
#include "../ntxent_launch.h"
#include "ntxent_fwd.cuh"
#include "ntxent_statistics.cuh"
#include "ntxent_tiles.cuh"

namespace simclr::cuda {
namespace {

constexpr int kTile = kFwdTile;  // rows and columns of a tile
constexpr int kThreads = 128;    // 2 x 2 warps, each 64 x 64
constexpr int kDepthBytes = kFwdDepthBytes;
constexpr int kDepthSteps = kDepthBytes / kStepBytes;
constexpr int kStages = 2;
constexpr int kOperandBytes = kTile * kDepthBytes;
constexpr int kStageBytes = 2 * kOperandBytes;  // row tile and column tile

template <class Partial>
struct FwdTask {
  RowMatrix u;
  Pairing pairing;
  Temperature<float> temperature;
  FwdPartials<Partial> partials;
  FwdPlan plan;
};

// The tiles and depth slices of one CTA in the order they are computed.
struct TileWalk {
  int row_tile, row_end, column_begin, column_tile, column_end, depth, depths;
  bool symmetric;

  __device__ TileWalk(const FwdPlan& plan, int block) {
    int row_band, column_band;
    plan.bands_of(block, &row_band, &column_band);
    row_tile = row_band * plan.row_band_tiles;
    row_end = min(row_tile + plan.row_band_tiles, plan.row_tiles);
    column_begin = column_band * plan.column_band_tiles;
    column_end = min(column_begin + plan.column_band_tiles, plan.column_tiles);
    symmetric = plan.symmetric;
    depth = 0;
    depths = plan.depths;
    column_tile = first_column();
  }
  __device__ int first_column() const { return symmetric ? max(column_begin, row_tile) : column_begin; }
  __device__ bool done() const { return row_tile >= row_end; }
  __device__ bool last_depth() const { return depth == depths - 1; }
  __device__ void next() {
    if (++depth < depths) return;
    depth = 0;
    if (++column_tile < column_end) return;
    ++row_tile;
    column_tile = first_column();
  }
};

__device__ void copy_stage(unsigned char* stage, const RowMatrix& u, int row_offset, const TileWalk& walk) {
  if (!walk.done()) {
    const int64_t byte = static_cast<int64_t>(walk.depth) * kDepthBytes;
    copy_tile(stage, u, row_offset + walk.row_tile * kTile, kTile, byte, kDepthBytes, kThreads);
    copy_tile(stage + kOperandBytes, u, walk.column_tile * kTile, kTile, byte, kDepthBytes, kThreads);
  }
  ptx::cp_async_commit();
}

template <class Operand>
__device__ void multiply_stage(WarpTile& acc, const unsigned char* rows, const unsigned char* columns,
                               const LaneOffset& a_offset, const LaneOffset& b_offset) {
#pragma unroll
  for (int step = 0; step < kDepthSteps; ++step) {
    typename Operand::template Fragment<4> a[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      uint32_t raw[4];
      load_step(raw, rows + 16 * m * kDepthBytes, a_offset, step);
      a[m] = Operand::template fragment<4>(raw);
    }
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      uint32_t raw[4];
      load_step(raw, columns + 8 * n * kDepthBytes, b_offset, step);
      const auto b0 = Operand::template fragment<2>(raw), b1 = Operand::template fragment<2>(raw + 2);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        Operand::multiply_add(acc[m][n], a[m], b0);
        Operand::multiply_add(acc[m][n + 1], a[m], b1);
      }
    }
  }
}

// Excludes the diagonal, the positives and what lies outside the matrix.
__device__ void mask_tile(WarpTile& acc, const Pairing& pairing, int first_row, int first_column) {
  const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = first_row + 16 * m + 8 * (i / 2) + group, column = first_column + 8 * n + 2 * quad + i % 2;
        const int own = pairing.column_of(row), positive = pairing.positive_of(row);
        const bool inside = row < pairing.rows && column < pairing.columns;
        if (!inside || column == own || column == positive) acc[m][n][i] = -INFINITY;
      }
    }
  }
}

// Puts `value` into the slot's partial of a row, or adds it to what this CTA put there before.
template <class Statistics>
__device__ void accumulate(typename Statistics::Partial* slot, typename Statistics::Partial value, bool first) {
  *slot = first ? value : Statistics::combine(*slot, value);
}

template <class Operand, class Statistics>
__global__ void __launch_bounds__(kThreads) ntxent_fwd_kernel(const FwdTask<typename Statistics::Partial> task) {
  using Partial = typename Statistics::Partial;
  extern __shared__ __align__(128) unsigned char shared[];  // stages, then partials of the warps
  Partial* row_partials = reinterpret_cast<Partial*>(shared + kStages * kStageBytes);  // [2 warp columns][kTile]
  Partial* column_partials = row_partials + 2 * kTile;                                 // [2 warp rows][kTile]

  const int warp = threadIdx.x / 32;
  const int warp_row = warp / 2 * 64, warp_column = warp % 2 * 64;
  const float scale = static_cast<float>(kLog2E) * task.temperature.inverse();
  if (blockIdx.x == 0 && threadIdx.x == 0) *task.partials.finished = 0;

  TileWalk copied(task.plan, blockIdx.x), tile = copied;
  const TileWalk first = tile;
  for (int stage = 0; stage < kStages; ++stage) {
    copy_stage(shared + stage * kStageBytes, task.u, task.pairing.row_offset, copied);
    if (!copied.done()) copied.next();
  }

  const LaneOffset a = a_offset(kDepthBytes), b = b_offset(kDepthBytes);
  WarpTile acc = {};
  for (int stage = 0; !tile.done(); tile.next(), stage = (stage + 1) % kStages) {
    ptx::cp_async_wait_group<kStages - 1>();
    __syncthreads();
    const unsigned char* rows = shared + stage * kStageBytes + warp_row * kDepthBytes;
    const unsigned char* columns = shared + stage * kStageBytes + kOperandBytes + warp_column * kDepthBytes;
    multiply_stage<Operand>(acc, rows, columns, a, b);
    __syncthreads();  // every warp is done with the stage
    copy_stage(shared + stage * kStageBytes, task.u, task.pairing.row_offset, copied);
    if (!copied.done()) copied.next();
    if (!tile.last_depth()) continue;

    const int row = tile.row_tile * kTile, column = tile.column_tile * kTile;
    if (task.pairing.needs_mask(row, kTile, column, kTile)) {
      mask_tile(acc, task.pairing, row + warp_row, column + warp_column);
    }
    Statistics::reduce(acc, scale, scale, row_partials + warp % 2 * kTile + warp_row,
                       column_partials + warp / 2 * kTile + warp_column);
    __syncthreads();

    // The slots of one band of rows are numbered by the other band. In a CTA on the diagonal both are the same, and a
    // row tile meets its first partial as the column tile of the CTA's first row of tiles.
    const bool on_diagonal = task.plan.symmetric && first.row_tile / task.plan.row_band_tiles ==
                                                        first.column_begin / task.plan.column_band_tiles;
    const int row_slot = first.column_begin / task.plan.column_band_tiles;
    const int column_slot = first.row_tile / task.plan.row_band_tiles;
    const bool first_of_row =
        tile.column_tile == first.column_begin && (!on_diagonal || tile.row_tile == first.row_tile);
    const int r = row + threadIdx.x, c = column + threadIdx.x;
    if (r < task.pairing.rows) {
      accumulate<Statistics>(task.partials.of_slot + static_cast<int64_t>(row_slot) * task.pairing.rows + r,
                             Statistics::combine(row_partials[threadIdx.x], row_partials[kTile + threadIdx.x]),
                             first_of_row);
    }
    if (task.plan.symmetric && tile.row_tile != tile.column_tile && c < task.pairing.rows) {
      accumulate<Statistics>(task.partials.of_slot + static_cast<int64_t>(column_slot) * task.pairing.rows + c,
                             Statistics::combine(column_partials[threadIdx.x], column_partials[kTile + threadIdx.x]),
                             tile.row_tile == first.row_tile);
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[m][n][i] = 0;
      }
    }
  }
}

template <class Operand, class Statistics>
cudaError_t run(const SimclrNtxentFwdArgs& args, cudaStream_t stream) {
  using Partial = typename Statistics::Partial;
  const FwdPlan plan = plan_fwd(args);
  const Pairing pairing = pairing_of(args);
  const RowMatrix u{static_cast<const unsigned char*>(args.u),
                    args.u_columns * static_cast<int64_t>(sizeof(typename Operand::Element)), pairing.columns};
  const FwdTask<Partial> task{u, pairing, temperature_of<float>(args), partials_of<Partial>(args, plan), plan};
  const size_t shared_bytes = kStages * kStageBytes + 4 * kTile * sizeof(Partial);
  const cudaError_t error =
      SIMCLR_LAUNCH((ntxent_fwd_kernel<Operand, Statistics>), plan.blocks, kThreads, shared_bytes, stream, task);
  return error != cudaSuccess ? error : fwd_finish<typename Operand::Element, float, Statistics>(args, plan, stream);
}

template <class Operand>
cudaError_t run(const SimclrNtxentFwdArgs& args, cudaStream_t stream) {
  return uses_constant_max(args) ? run<Operand, ConstantMax>(args, stream) : run<Operand, OnlineMax>(args, stream);
}

}  // namespace
}  // namespace simclr::cuda

extern "C" int simclr_ntxent_fwd(const SimclrNtxentFwdArgs* args, void* stream_pointer) {
  using namespace simclr::cuda;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  if (!has_valid_shape(*args)) return cudaErrorInvalidValue;
  if (args->u_dtype == SIMCLR_HALF) return run<HalfOperand>(*args, stream);
  if (args->u_dtype == SIMCLR_DOUBLE) return fwd_rows(*args, plan_fwd(*args), stream);
  if (args->u_dtype != SIMCLR_FLOAT) return cudaErrorInvalidValue;
  return args->precision == SIMCLR_TF32 ? run<FloatOperand<1>>(*args, stream) : run<FloatOperand<3>>(*args, stream);
}

extern "C" int64_t simclr_ntxent_fwd_workspace_bytes(const SimclrNtxentFwdArgs* args) {
  return simclr::cuda::plan_fwd(*args).bytes;
}
