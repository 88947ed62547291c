// The forward of ntxent_fwd.cu by Hopper's warpgroup products (wgmma.cuh): the same partials in the same slots.
//
// ntxent_fwd_sm90_kernel: as many CTAs as multiprocessors, each with a range of the pairs of bands (FwdPlan::bands_of).
// A CTA takes a tile's columns and goes down the rows of its bands in steps of two shares, one a warpgroup, of 64 x 128
// logits: two warpgroups side by side, or one above the other. The columns stay in shared memory, all of their depth,
// where they fit; rows come in slices of the depth, stage by stage. While the tensor cores make the shares of one step,
// the warps sum the exponentials of the step before: a thread has both, 64 registers each. Row sums go to the workspace
// step by step, column sums are kept in registers over a band. Every order of adding is fixed.
#ifdef SIMCLR_SM90A
#include <type_traits>

#include "../ntxent_launch.h"
#include "ntxent_fwd_sm90.cuh"
#include "ntxent_statistics_sm90.cuh"
#include "wgmma.cuh"

namespace simclr::cuda {

namespace {

constexpr int kThreads = kFwdSm90Threads;

template <class Partial>
struct FwdSm90Task {
  RowMatrix rows, columns;
  Pairing<int> pairing;
  Temperature<float> temperature;
  FwdPartials<Partial> partials;
  FwdPlan plan;
  int part_bytes;  // of a row
  float unit;      // what sums of products are in units of u.u
};

// Excludes all but the negatives of a share. Unused where the kernels are compiled empty.
[[maybe_unused]] __device__ void exclude_pairs(float (&x)[16][4], const Pairing<int>& pairing, int first_row,
                                               int first_column) {
  const int quad = threadIdx.x % 4, row = first_row + threadIdx.x % 32 / 4;
#pragma unroll
  for (int n = 0; n < 16; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!pairing.is_negative(row + 8 * (i / 2), first_column + 8 * n + 2 * quad + i % 2)) x[n][i] = -INFINITY;
    }
  }
}

// Waits until at most `pending` of the newest groups of copies are on their way: an immediate of the instruction, at
// most kMost, which is that of the most stages with no product under way.
template <int kMost = kFwdMaxStages - 2>
__device__ __forceinline__ void wait_copies(int pending) {
  if (pending == kMost) ptx::cp_async_wait_group<kMost>();
  if constexpr (kMost > 0) wait_copies<kMost - 1>(pending);
}

template <int kProducts, class Statistics, class Known>
class Forward {
 public:
  using Partial = typename Statistics::Partial;
  using Share = float[16][4];

  __device__ Forward(const FwdSm90Task<Partial>& task, unsigned char* shared)
      : task_(task), strips_(task.plan), held_(shared), stages_(shared + plan().held_bytes()) {
    row_partials_ = reinterpret_cast<Partial*>(stages_ + plan().stages * plan().stage_bytes);
    column_partials_ = row_partials_ + 2 * kFwdWarpgroups * kFwdShareRows;
    const int warpgroup = wgmma::uniform(threadIdx.x / 128);
    own_row_ = plan().step_rows == kFwdShareRows ? 0 : warpgroup * kFwdShareRows;
    own_column_ = plan().tile == kFwdShareColumns ? 0 : warpgroup * kFwdShareColumns;
    constant_max_ = task.temperature.base_2_scale();
    scale_ = constant_max_ * task.unit;
  }

  __device__ void run() {
    bool more = strips_.next(task_.plan, &strip_);
    if (more) start_strip();
    while (more) {
      const Strip90 strip = strip_;
      const int steps = steps_of(strip);
      Share logits;
      for (int step = 0; step < steps; ++step) {
        // 1. Sum the exponentials of one step while the first slice of the next one, or its first sum, is multiplied.
        Share products;
        start_slice(products, 0, false);
        if (step > 0) sum_share(logits, step - 1, strip);
        if constexpr (kProducts == 3) clear(logits);
#pragma unroll 1
        for (int slice = 1; slice < plan().slices; ++slice) {
          // 2. Multiply the rest. Of one product all slices are one sum; of three there are several in each.
          if constexpr (kProducts == 3) finish_slice(logits, products, slice - 1);
          start_slice(products, slice, kProducts == 1);
        }
        finish_slice(logits, products, plan().slices - 1);
        sums_.take(logits, scale_, constant_max_);
      }
      // 3. The strip's last step, while the operands of the next strip are copied.
      __syncthreads();
      more = strips_.next(task_.plan, &strip_);
      if (more) start_strip();
      sum_share(logits, steps - 1, strip);
    }
    __syncthreads();
    store_partials();
  }

 private:
  __device__ decltype(auto) plan() const { return Known::of(task_.plan.sm90); }

  __device__ int steps_of(const Strip90& strip) const {
    return (strip.row_end - strip.row_begin) * (plan().tile / plan().step_rows);
  }

  // ---- Operands. Items are slices of steps, in the order of their products.

  // Copies a slice of some rows or columns: [part][panel][count][64 columns].
  __device__ void copy_slice(unsigned char* to, const RowMatrix& matrix, int first, int count, int slice) {
#pragma unroll
    for (int part = 0; part < (kProducts == 3 ? 2 : 1); ++part) {
      const RowMatrix of_part{matrix.data + part * task_.part_bytes, matrix.pitch, matrix.rows, matrix.part_bytes};
      wgmma::copy_panels<kFwdShareRows * 8 / kThreads, Known::kUnroll>(to, of_part, first, count,
                                                                       slice * plan().slice_panels * kFwdPanelRowBytes,
                                                                       task_.part_bytes, plan().slice_panels, kThreads);
      to += count * plan().slice_panels * kFwdPanelRowBytes;
    }
  }

  // Starts copying the next item into its stage; commits a group in any case.
  __device__ void copy_item() {
    if (copied_step_ < steps_of(strip_)) {
      unsigned char* stage = stages_ + copied_stage_ * plan().stage_bytes;
      const int row = strip_.row_begin * plan().tile + copied_step_ * plan().step_rows;
      copy_slice(stage, task_.rows, row, plan().step_rows, copied_slice_);
      if (!plan().holds_columns) {
        copy_slice(stage + plan().step_slice_bytes(), task_.columns, strip_.column_tile * plan().tile, plan().tile,
                   copied_slice_);
      }
      if (++copied_slice_ == plan().slices) {
        copied_slice_ = 0;
        ++copied_step_;
      }
      copied_stage_ = copied_stage_ + 1 == plan().stages ? 0 : copied_stage_ + 1;
    }
    ptx::cp_async_commit();
  }

  // No product of the strip before may be under way.
  __device__ void start_strip() {
    copied_step_ = copied_slice_ = copied_stage_ = 0;
    stage_ = -1;
    if (plan().holds_columns) {
      for (int slice = 0; slice < plan().slices; ++slice) {
        copy_slice(held_ + slice * plan().tile_slice_bytes(), task_.columns, strip_.column_tile * plan().tile,
                   plan().tile, slice);
      }
    }
    for (int item = 0; item < plan().copies_ahead(); ++item) copy_item();
  }

  // ---- Products.

  // Starts x (+)= rows columns^T over the slice that is next in the stages; of three products, over its first sum.
  __device__ void start_slice(Share& x, int slice, bool add) {
    // 1. Its copies have landed and all can see them; the stage before the one of the products under way is free.
    wgmma::wait<kProducts == 1 ? 1 : 0>();
    wait_copies(plan().copies_ahead() - 1);
    wgmma::fence_proxy_async();
    __syncthreads();
    copy_item();
    stage_ = stage_ + 1 == plan().stages ? 0 : stage_ + 1;
    // 2. Panel by panel, or the first sum.
    if constexpr (kProducts == 3) {
      start_sum(x, slice, 0);
    } else {
#pragma unroll(Known::kUnroll)
      for (int panel = 0; panel < plan().slice_panels; ++panel, add = true) {
        wgmma::fence();
        multiply<kFwdPanelRowBytes>(x, rows_at(0, panel), columns_at(slice, 0, panel), add);
      }
      wgmma::commit();
    }
  }

  // Starts x = rows columns^T over the three products of kFwdSumColumns columns of a slice, the small ones first.
  __device__ void start_sum(Share& x, int slice, int sum) {
    constexpr int kBytes = kFwdPanelRowBytes / kFwdPanelSums;
    const int panel = sum / kFwdPanelSums, byte = sum % kFwdPanelSums * kBytes;
    wgmma::fence();
#pragma unroll
    for (int product = 0; product < 3; ++product) {
      const int row_part = product == 0, column_part = product == 1;
      multiply<kBytes>(x, rows_at(row_part, panel) + byte, columns_at(slice, column_part, panel) + byte, product > 0);
    }
    wgmma::commit();
  }

  // Where this warpgroup's rows and columns of a panel lie.
  __device__ uint32_t rows_at(int part, int panel) const {
    return ptx::shared_address(stages_ + stage_ * plan().stage_bytes) +
           ((part * plan().slice_panels + panel) * plan().step_rows + own_row_) * kFwdPanelRowBytes;
  }
  __device__ uint32_t columns_at(int slice, int part, int panel) const {
    const unsigned char* columns = plan().holds_columns
                                       ? held_ + slice * plan().tile_slice_bytes()
                                       : stages_ + stage_ * plan().stage_bytes + plan().step_slice_bytes();
    return ptx::shared_address(columns) +
           ((part * plan().slice_panels + panel) * plan().tile + own_column_) * kFwdPanelRowBytes;
  }

  // Hands the products over kBytes of a panel's rows to the tensor cores, 16 columns of the depth at a time.
  template <int kBytes>
  __device__ static void multiply(Share& x, uint32_t rows, uint32_t columns, bool add) {
    const uint64_t of_row = wgmma::rows_descriptor(rows), of_column = wgmma::rows_descriptor(columns);
#pragma unroll
    for (int byte = 0; byte < kBytes; byte += wgmma::kStepBytes, add = true) {
      wgmma::multiply_shared<kFwdShareColumns>(x, wgmma::advanced(of_row, byte), wgmma::advanced(of_column, byte), add);
    }
  }

  __device__ static void clear(Share& x) {
#pragma unroll
    for (int k = 0; k < 64; ++k) x[k / 4][k % 4] = 0;
  }

  // Waits for the products and puts them into x. Three are summed from zero, kFwdSumColumns columns at a time, and
  // added with rounding, where tensor cores truncate.
  __device__ void finish_slice(Share& x, Share& products, int slice) {
    const int sums = kProducts == 1 ? 1 : plan().slice_panels * kFwdPanelSums;
#pragma unroll 1
    for (int sum = 0; sum < sums; ++sum) {
      if (kProducts == 3 && sum > 0) start_sum(products, slice, sum);
      wgmma::wait<0>();
      wgmma::hold(products);
#pragma unroll
      for (int k = 0; k < 64; ++k) {
        const float product = products[k / 4][k % 4];
        x[k / 4][k % 4] = kProducts == 1 ? product : x[k / 4][k % 4] + product;
      }
    }
  }

  // ---- Sums.

  // Begins with the first row of a band, or of the tile on the diagonal, whose columns are not summed. Cleared where
  // they are written instead, the columns' sums would be moved to other registers in every step.
  __device__ void begin_band(int row, const Strip90& strip) {
    const int band_rows = task_.plan.row_band_tiles * plan().tile, diagonal = strip.column_tile * plan().tile;
    row_band_ = row / band_rows;
    band_end_ = min((row_band_ + 1) * band_rows, strip.row_end * plan().tile);
    if (task_.plan.symmetric && row < diagonal) band_end_ = min(band_end_, diagonal);
    const int column_band = strip.column_tile / task_.plan.column_band_tiles;
    row_slot_ = task_.partials.of_row + static_cast<int64_t>(column_band) * task_.pairing.rows;
    first_of_rows_ = strip.column_tile == column_band * task_.plan.column_band_tiles;
    // A tile on the diagonal holds every pair twice: its row sums are enough.
    sums_columns_ = task_.partials.of_column != nullptr && !(task_.plan.symmetric && row == diagonal);
    sums_.clear();
  }

  // Partials of a share's rows, and of its columns where a band ends, to shared memory; those of the step before, which
  // a barrier has made visible since, to the workspace.
  __device__ void sum_share(Share& x, int step, const Strip90& strip) {
    store_partials();
    const int row = strip.row_begin * plan().tile + step * plan().step_rows, column = strip.column_tile * plan().tile;
    if (step == 0 || row == band_end_) begin_band(row, strip);
    if (task_.pairing.needs_mask(row + own_row_, kFwdShareRows, column + own_column_, kFwdShareColumns)) {
      exclude_pairs(x, task_.pairing, row + own_row_ + threadIdx.x / 32 % 4 * 16, column + own_column_);
    }
    parity_ ^= 1;
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4;
    Partial of_row[2];
    Partial* of_column = column_partials_ + (parity_ * kFwdWarpgroups * 4 + warp) * kFwdShareColumns;
    sums_.add(x, scale_, of_row, of_column);
    if (threadIdx.x % 4 == 0) {
      Partial* to = row_partials_ + parity_ * kFwdWarpgroups * kFwdShareRows + 16 * warp + group;
      to[0] = of_row[0];
      to[8] = of_row[1];
    }
    const bool band_ends = row + plan().step_rows == band_end_;
    if (band_ends && sums_columns_) sums_.write_columns(of_column);
    made_.row = row;
    made_.column = column;
    made_.sums_columns = sums_columns_ && (band_ends || !Strip<Statistics>::kKeepsColumns);
    made_.band_ends = band_ends;
  }

  // Puts `value` into the slot's partial, or adds it to what this CTA put there before.
  __device__ static void accumulate(Partial* slot, Partial value, bool first) {
    *slot = first ? value : Statistics::combine(*slot, value);
  }

  // What sum_share left, into this CTA's slots, behind a barrier. A row's slots are numbered by the band that the
  // columns lie in, a column's by that of the rows; where rows are columns, they are the slots of one array. A strip is
  // alone in giving its columns' sums to their slot, and the first to: a row of the same number, where both bands are
  // the same, gets there after it, from the tile on the diagonal and those to its right.
  __device__ void store_partials() {
    if (made_.row < 0) return;
    const int t = threadIdx.x, r = made_.row + t;
    if (t < plan().step_rows && r < task_.pairing.rows) {
      const Partial* own = row_partials_ + parity_ * kFwdWarpgroups * kFwdShareRows + t;
      const Partial sum = plan().step_rows == kFwdShareRows ? Statistics::combine(own[0], own[kFwdShareRows]) : own[0];
      accumulate(row_slot_ + r, sum, first_of_rows_);
    }
    if (made_.sums_columns && t < plan().tile) store_column();
    made_.row = -1;
  }
  __device__ void store_column() {
    const int warps = kFwdWarpgroups * 4 * kFwdShareColumns / plan().tile;  // that have rows of this thread's column
    const Partial* own = column_partials_ + parity_ * kFwdWarpgroups * 4 * kFwdShareColumns +
                         threadIdx.x / kFwdShareColumns * warps * kFwdShareColumns + threadIdx.x % kFwdShareColumns;
    Partial sum = own[0];
    for (int warp = 1; warp < warps; ++warp) sum = Statistics::combine(sum, own[warp * kFwdShareColumns]);
    column_sum_ = has_column_sum_ ? Statistics::combine(column_sum_, sum) : sum;
    has_column_sum_ = !made_.band_ends;
    const int c = made_.column + threadIdx.x;
    if (made_.band_ends && c < task_.pairing.columns) {
      task_.partials.of_column[static_cast<int64_t>(row_band_) * task_.pairing.columns + c] = column_sum_;
    }
  }

  // What the last step left in shared memory: its first row (none: -1) and column.
  struct Made {
    int row = -1, column;
    bool sums_columns, band_ends;
  };

  const FwdSm90Task<Partial>& task_;
  Strips strips_;
  Strip90 strip_;  // whose operands are copied
  unsigned char *held_, *stages_;
  Partial *row_partials_, *column_partials_;  // [2][warpgroup][64], [2][warp][128]
  int own_row_, own_column_;                  // of this warpgroup's share in a step
  int stage_;                                 // of the slice that is multiplied
  int copied_step_, copied_slice_, copied_stage_;
  float scale_, constant_max_;
  Strip<Statistics> sums_;
  int parity_ = 0;
  Made made_;
  int row_band_, band_end_ = 0;  // of the rows that are summed
  Partial* row_slot_;
  bool sums_columns_, first_of_rows_;
  Partial column_sum_;  // of column `thread` since the band began
  bool has_column_sum_ = false;
};

template <int kProducts, class Statistics, class Known>
__global__ void __launch_bounds__(kThreads, 1)
    ntxent_fwd_sm90_kernel(const __grid_constant__ FwdSm90Task<typename Statistics::Partial> task) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  if (blockIdx.x == 0 && threadIdx.x == 0) *task.partials.finished = 0;
  Forward<kProducts, Statistics, Known>(task, shared).run();
#endif
}

template <int kProducts, class Statistics, class Known>
cudaError_t run(const Product& product, const FwdPlan& plan, void* workspace, cudaStream_t stream) {
  using Partial = typename Statistics::Partial;
  const FwdSm90Task<Partial> task{product.matrix_of_rows(),
                                  product.matrix_of_columns(),
                                  product.pairing,
                                  product.temperature_of<float>(),
                                  partials_of<Partial>(plan, workspace),
                                  plan,
                                  static_cast<int>(product.part_bytes()),
                                  product.product_unit()};
  return SIMCLR_LAUNCH((ntxent_fwd_sm90_kernel<kProducts, Statistics, Known>), plan.blocks, kThreads,
                       plan.sm90.shared_bytes, stream, task);
}

template <class Statistics>
cudaError_t run(const Product& product, const FwdPlan& plan, void* workspace, cudaStream_t stream) {
  if constexpr (std::is_same_v<Statistics, ConstantMax>) {  // the usual depths: D of 65 to 128, and about 512
    if (plan.sm90 == PlanOf<256, 2>::of()) return run<1, Statistics, PlanOf<256, 2>>(product, plan, workspace, stream);
    if (plan.sm90 == PlanOf<128, 2>::of()) return run<1, Statistics, PlanOf<128, 2>>(product, plan, workspace, stream);
    if (plan.sm90 == PlanOf<128, 8>::of()) return run<1, Statistics, PlanOf<128, 8>>(product, plan, workspace, stream);
  }
  return product.products() == 3 ? run<3, Statistics, AnyPlan>(product, plan, workspace, stream)
                                 : run<1, Statistics, AnyPlan>(product, plan, workspace, stream);
}

}  // namespace

cudaError_t fwd_tiles_sm90(const Product& product, const FwdPlan& plan, void* workspace, cudaStream_t stream) {
  return plan.online_max ? run<OnlineMax>(product, plan, workspace, stream)
                         : run<ConstantMax>(product, plan, workspace, stream);
}

}  // namespace simclr::cuda
#endif
