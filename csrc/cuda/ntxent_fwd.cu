// The forward of NT-Xent and of the primitive on the tensor cores: log-sum-exps of the rows, and where they are wanted
// of the columns, of logits that never leave the registers.
//
// ntxent_fwd_kernel: one CTA takes a row band x column band of 128 x 128 tiles, and makes row sums and column sums of
// every tile. Where rows are columns the logits are symmetric: only tiles on and above the diagonal are computed, and a
// tile off the diagonal gives its column sums to the rows of the same numbers (M^2 D / 2 multiply-adds). Every CTA
// writes its partials to slots of its own: a row gets one partial for each of the at most kFwdMaxSlots bands that the
// columns are cut into, and a column for each band of the rows, so partials take O(rows + columns) memory, and a CTA
// that has several tiles for one slot adds them up in a fixed order. A second launch adds up the slots:
// ntxent_fwd_finish_kernel (ntxent_fwd.cuh), which also multiplies the rows of the pairs, which the tiles leave out, or
// the primitive's (similarity.cu).
#include "../ntxent_launch.h"
#include "ntxent_fwd.cuh"
#include "ntxent_statistics.cuh"
#include "ntxent_tiles.cuh"

namespace simclr::cuda {
namespace {

constexpr int kTile = kFwdTile;  // rows and columns of a tile
constexpr int kThreads = 128;    // 2 x 2 warps, each 64 x 64
constexpr int kDepthBytes = kFwdDepthBytes;
// Three would leave an SM of sm_80 one CTA instead of two, and exceed sm_86 with an online maximum.
constexpr int kStages = 2;
constexpr int kOperandBytes = kTile * kDepthBytes;
constexpr int kStageBytes = 2 * kOperandBytes;  // row tile and column tile

template <class Partial>
struct FwdTask {
  RowMatrix rows, columns;
  Pairing<int> pairing;
  Temperature<float> temperature;
  float product_unit;
  FwdPartials<Partial> partials;
  FwdPlan plan;
};

// The tiles of one CTA; in shared memory, because the tiles leave no registers for what is needed rarely.
struct Bands {
  int row, column;  // the bands' numbers
  int row_begin, row_end, column_begin, column_end;

  __device__ static Bands of(const FwdPlan& plan, int block) {
    Bands bands;
    plan.bands_of(block, &bands.row, &bands.column);
    bands.row_begin = bands.row * plan.row_band_tiles;
    bands.row_end = min(bands.row_begin + plan.row_band_tiles, plan.row_tiles);
    bands.column_begin = bands.column * plan.column_band_tiles;
    bands.column_end = min(bands.column_begin + plan.column_band_tiles, plan.column_tiles);
    return bands;
  }
};

// A CTA's tiles and depth slices in the order they are computed.
struct TileWalk {
  int row_tile, column_tile, depth = 0;

  __device__ TileWalk(const FwdPlan& plan, const Bands& bands) { start_row(plan, bands, bands.row_begin); }
  __device__ bool done(const Bands& bands) const { return row_tile >= bands.row_end; }
  __device__ void next(const FwdPlan& plan, const Bands& bands) {
    if (++depth < plan.depths) return;
    depth = 0;
    if (++column_tile == bands.column_end) start_row(plan, bands, row_tile + 1);
  }
  __device__ void start_row(const FwdPlan& plan, const Bands& bands, int row) {
    row_tile = row;
    column_tile = plan.symmetric ? max(bands.column_begin, row) : bands.column_begin;
  }
};

// Starts copying what comes next, and steps on; commits a group in any case.
template <int kParts, class Partial>
__device__ void copy_stage(unsigned char* stage, const FwdTask<Partial>& task, const Bands& bands, TileWalk* walk) {
  constexpr int kRunBytes = kDepthBytes / kParts;
  if (!walk->done(bands)) {
    const int64_t byte = static_cast<int64_t>(walk->depth) * kRunBytes;
    copy_tile<kParts, kRunBytes>(stage, task.rows, walk->row_tile * kTile, kTile, byte, kDepthBytes, kThreads);
    copy_tile<kParts, kRunBytes>(stage + kOperandBytes, task.columns, walk->column_tile * kTile, kTile, byte,
                                 kDepthBytes, kThreads);
    walk->next(task.plan, bands);
  }
  ptx::cp_async_commit();
}

// acc += rows columns^T over a stage, of `columns_inside` columns. That they are asked for also keeps ptxas from beginning
// the sums of more than 16 columns at once, for which there are no registers.
template <class Operand>
__device__ void multiply_stage(WarpTile& acc, const unsigned char* rows, const unsigned char* columns,
                               const LaneOffset& a_offset, const LaneOffset& b_offset, int columns_inside) {
  constexpr int kRunBytes = kDepthBytes / Operand::kParts;
#pragma unroll Operand::kStepsUnrolled
  for (int step = 0; step < kRunBytes / kStepBytes; ++step) {
    typename Operand::Fragment a[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) a[m] = Operand::template load<kRunBytes>(rows + 16 * m * kDepthBytes, a_offset, step);
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      if (Operand::kParts == 2 && 8 * n >= columns_inside) continue;
      const auto b = Operand::template load<kRunBytes>(columns + 8 * n * kDepthBytes, b_offset, step);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        Operand::multiply_add(acc[m][n], a[m], b, 0);
        Operand::multiply_add(acc[m][n + 1], a[m], b, 1);
      }
    }
  }
}

// Excludes all but the negatives.
__device__ void mask_tile(WarpTile& acc, const Pairing<int>& pairing, int first_row, int first_column) {
  const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = first_row + 16 * m + 8 * (i / 2) + group, column = first_column + 8 * n + 2 * quad + i % 2;
        if (!pairing.is_negative(row, column)) acc[m][n][i] = -INFINITY;
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

  // 1. What this CTA is to do, and the first stages on their way.
  __shared__ Bands bands;
  __shared__ float constant_max;  // 1/t, the largest of the base-2 logits
  __shared__ float scale;         // what brings products to these
  if (threadIdx.x == 0) {
    bands = Bands::of(task.plan, blockIdx.x);
    constant_max = task.temperature.base_2_scale();
    scale = constant_max * task.product_unit;
    if (blockIdx.x == 0) *task.partials.finished = 0;
  }
  __syncthreads();
  TileWalk copied(task.plan, bands), tile = copied;
  for (int stage = 0; stage < kStages; ++stage)
    copy_stage<Operand::kParts>(shared + stage * kStageBytes, task, bands, &copied);

  const LaneOffset a = a_offset(kDepthBytes), b = b_offset(kDepthBytes);
  WarpTile acc = {};
  for (int stage = 0; !tile.done(bands); tile.next(task.plan, bands), stage = (stage + 1) % kStages) {
    // 2. acc += u_rows u_columns^T over the stage's part of the depth, in units of the operands.
    ptx::cp_async_wait_group<kStages - 1>();
    __syncthreads();
    const unsigned char* rows = shared + stage * kStageBytes + warp_row * kDepthBytes;
    const unsigned char* columns = shared + stage * kStageBytes + kOperandBytes + warp_column * kDepthBytes;
    multiply_stage<Operand>(acc, rows, columns, a, b, task.columns.rows - tile.column_tile * kTile - warp_column);
    __syncthreads();  // every warp is done with the stage
    copy_stage<Operand::kParts>(shared + stage * kStageBytes, task, bands, &copied);
    if (tile.depth + 1 < task.plan.depths) continue;

    // 3. The tile is complete: sum of exp2(scale acc - max) over the negatives, along its rows and along its columns.
    const int row = tile.row_tile * kTile, column = tile.column_tile * kTile;
    if (task.pairing.needs_mask(row, kTile, column, kTile)) {
      mask_tile(acc, task.pairing, row + warp_row, column + warp_column);
    }
    Statistics::of_tile(acc, scale, constant_max, row_partials + warp % 2 * kTile + warp_row,
                        column_partials + warp / 2 * kTile + warp_column);
    __syncthreads();

    // 4. Into this CTA's slots. Where rows are columns, the columns' sums are those of the rows of the same numbers.
    // A row's slots are numbered by the band that the columns lie in, a column's by that of the rows. Where both bands
    // are the same, a row tile after the first already holds column sums, made when the first row of tiles met it. No
    // barrier is needed: thread k alone touches the partials of every tile's row k and column k.
    const bool on_diagonal = task.plan.symmetric && bands.row == bands.column;
    const bool first_of_row =
        tile.column_tile == bands.column_begin && (!on_diagonal || tile.row_tile == bands.row_begin);
    const int r = row + threadIdx.x, c = column + threadIdx.x;
    if (r < task.pairing.rows) {
      accumulate<Statistics>(task.partials.of_row + static_cast<int64_t>(bands.column) * task.pairing.rows + r,
                             Statistics::combine(row_partials[threadIdx.x], row_partials[kTile + threadIdx.x]),
                             first_of_row);
    }
    const bool counted = task.plan.symmetric && tile.row_tile == tile.column_tile;  // by its row sums
    if (task.partials.of_column != nullptr && !counted && c < task.pairing.columns) {
      accumulate<Statistics>(task.partials.of_column + static_cast<int64_t>(bands.row) * task.pairing.columns + c,
                             Statistics::combine(column_partials[threadIdx.x], column_partials[kTile + threadIdx.x]),
                             tile.row_tile == bands.row_begin);
    }
    // 5. Clear the accumulators.
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
cudaError_t run(const Product& product, const FwdPlan& plan, void* workspace, cudaStream_t stream) {
  using Partial = typename Statistics::Partial;
  const FwdTask<Partial> task{product.matrix_of_rows(),
                              product.matrix_of_columns(),
                              product.pairing,
                              product.temperature_of<float>(),
                              product.product_unit(),
                              partials_of<Partial>(plan, workspace),
                              plan};
  const size_t shared_bytes = kStages * kStageBytes + 4 * kTile * sizeof(Partial);
  return SIMCLR_LAUNCH((ntxent_fwd_kernel<Operand, Statistics>), plan.blocks, kThreads, shared_bytes, stream, task);
}

template <class Operand>
cudaError_t run(const Product& product, const FwdPlan& plan, void* workspace, cudaStream_t stream) {
  return plan.online_max ? run<Operand, OnlineMax>(product, plan, workspace, stream)
                         : run<Operand, ConstantMax>(product, plan, workspace, stream);
}

template <class E>
cudaError_t finish(const SimclrNtxentFwdArgs& args, const FwdPlan& plan, cudaStream_t stream) {
  return plan.online_max ? fwd_finish<E, float, OnlineMax>(args, plan, stream)
                         : fwd_finish<E, float, ConstantMax>(args, plan, stream);
}

}  // namespace

cudaError_t fwd_tiles(const Product& product, const FwdPlan& plan, void* workspace, cudaStream_t stream) {
#ifdef SIMCLR_SM90A
  if (plan.sm90.used) return fwd_tiles_sm90(product, plan, workspace, stream);
#endif
  if (product.u_dtype != SIMCLR_HALF && product.u_dtype != SIMCLR_FLOAT) return cudaErrorInvalidValue;
  return product.products() == 1 ? run<Products<1>>(product, plan, workspace, stream)
                                 : run<Products<3>>(product, plan, workspace, stream);
}

}  // namespace simclr::cuda

extern "C" int simclr_ntxent_fwd(const SimclrNtxentFwdArgs* args, void* stream_pointer) {
  using namespace simclr::cuda;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  if (!has_valid_shape(*args)) return cudaErrorInvalidValue;
  const FwdPlan plan = plan_fwd(*args);
  if (args->u_dtype == SIMCLR_DOUBLE) return ntxent_fwd_rows(*args, plan, stream);
  const cudaError_t error = fwd_tiles(product_of(*args), plan, args->workspace, stream);
  if (error != cudaSuccess) return error;
  return args->u_dtype == SIMCLR_HALF ? finish<__half>(*args, plan, stream) : finish<SplitHalf>(*args, plan, stream);
}

extern "C" int64_t simclr_ntxent_fwd_workspace_bytes(const SimclrNtxentFwdArgs* args) {
  return simclr::cuda::plan_fwd(*args).bytes;
}
