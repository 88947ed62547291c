// The backward of NT-Xent and of the primitive on the tensor cores: du = (coefficients of S) u without ever storing S.
//
// A CTA owns rows and walks over tiles of columns in shared memory. For 16 columns at a time a warp computes logits
// (first product, M^2 D multiply-adds in all), turns them into coefficients in its registers, and multiplies these with
// the same tile (second product, M^2 D): du accumulates in registers, without atomics.
//
//   A warp owns a slice of 128 of the D columns of 32 rows (with three products of 16): its rows of u, as A operands,
//   and its part of du stay in registers. For D <= 128 that is all. For larger D, 2, 4 or 8 warps share rows, one per slice, and each
//   reads only its slice of a tile, for both products; the logits, sums over the slices, are exchanged through shared
//   memory. So nothing is computed twice up to D = 1024; a CTA has then fewer rows, and tiles are read more often (from
//   L2).
//
//   The walk over the columns is split over gridDim.y CTAs where row blocks alone would leave the GPU idle.
//
// The accumulators of the first product are the A operand of the second (Products::accumulate). The sum over the
// splits, the positive's term and the Jacobian of the normalisation are in ntxent_bwd_finish.cu.
#include "ntxent_bwd.cuh"
#include "ntxent_bwd_terms.cuh"
#include "ntxent_plan.h"
#include "ntxent_tiles.cuh"

namespace simclr::cuda {
namespace {

constexpr float kMaskedProduct = -1e30f;  // of an excluded element: its exponential is 0, and 0 times it too

struct BwdTask {
  RowMatrix rows, columns;
  Pairing<int> pairing;
  Temperature<float> temperature;
  float product_unit, operand_unit;
  Side<float> of_rows, of_columns;
  int searched_rows;  // those that are none of the columns
  BwdPartials<float> partials;
  BwdPlan plan;
};

template <class Operand>
struct Shape {
  static constexpr int kRowFragments = Operand::kRowFragments;
  static constexpr int kWarpRows = 16 * kRowFragments;
  static constexpr int kRunBytes = kBwdSlice * kPartElementBytes;  // a slice of one part
  static constexpr int kSliceBytes = Operand::kParts * kRunBytes;
  static constexpr int kSteps = kRunBytes / kStepBytes;
  static constexpr int kExchanged = kWarpRows * kBwdPanel;  // logits of a warp's rows and one panel
  using Rows = typename Operand::Fragment[kRowFragments][kSteps];
  using Logits = float[kRowFragments][2][4];
};

// Starts copying tile_columns rows into a stage.
template <class Operand>
__device__ void copy_rows(unsigned char* stage, const RowMatrix& matrix, int row, const BwdPlan& plan) {
  copy_tile<Operand::kParts, Shape<Operand>::kRunBytes>(stage, matrix, row, plan.tile_columns, 0, plan.row_bytes,
                                                        blockDim.x);
}

// Shared memory of a CTA.
template <class Operand>
struct Shared {
  unsigned char* stages;  // [stages][stage_bytes]: tiles of u
  float* column_weights;  // [stages][tile_columns]
  float* column_shifts;   // [stages][tile_columns]
  float* partial_logits;  // [warps][kExchanged], where there are several slices
  float* logits;          // [row groups][kExchanged]

  __device__ Shared(unsigned char* base, const BwdPlan& plan) {
    stages = base;
    column_weights = reinterpret_cast<float*>(base + plan.stages * plan.stage_bytes);
    column_shifts = column_weights + plan.stages * plan.tile_columns;
    partial_logits = column_shifts + plan.stages * plan.tile_columns;
    logits = partial_logits + plan.warps * Shape<Operand>::kExchanged;
  }
};

// The warp's rows and slice of u as A operands. They come through the first stage, tile_columns rows at a time.
template <class Operand>
__device__ void load_rows(typename Shape<Operand>::Rows& rows, const BwdTask& task, unsigned char* stage, int block_row,
                          int warp_row, int slice) {
  const BwdPlan& plan = task.plan;
  const LaneOffset offset = a_offset(plan.row_bytes);
  for (int first = 0; first < plan.block_rows; first += plan.tile_columns) {
    copy_rows<Operand>(stage, task.rows, block_row + first, plan);
    ptx::cp_async_commit();
    ptx::cp_async_wait_group<0>();
    __syncthreads();
#pragma unroll
    for (int m = 0; m < Operand::kRowFragments; ++m) {
      const int row = warp_row + 16 * m - first;
      if (row < 0 || row >= plan.tile_columns) continue;
#pragma unroll
      for (int step = 0; step < Shape<Operand>::kSteps; ++step) {
        rows[m][step] = Operand::template load<Shape<Operand>::kRunBytes>(
            stage + row * plan.row_bytes + slice * Shape<Operand>::kSliceBytes, offset, step);
      }
    }
    __syncthreads();
  }
}

// Starts copying a column tile and prepares its terms; commits a group in any case.
template <bool kOnline, class Operand>
__device__ void copy_columns(const BwdTask& task, const TermScale& scale, const Shared<Operand>& shared, int stage,
                             int tile, int tile_end) {
  const BwdPlan& plan = task.plan;
  if (tile < tile_end) {
    const int column = tile * plan.tile_columns;
    copy_rows<Operand>(shared.stages + stage * plan.stage_bytes, task.columns, column, plan);
    if (threadIdx.x < plan.tile_columns) {
      const int own = column + threadIdx.x, at = stage * plan.tile_columns + threadIdx.x;
      const Term term = own < task.pairing.columns ? term_of<kOnline>(task.of_columns, scale, own) : Term{0, 0};
      shared.column_weights[at] = term.weight;
      shared.column_shifts[at] = term.shift;
    }
  }
  ptx::cp_async_commit();
}

__device__ void wait_for_oldest_stage(int stages) {
  switch (stages) {
    case 1:
      return ptx::cp_async_wait_group<0>();
    case 2:
      return ptx::cp_async_wait_group<1>();
    default:
      return ptx::cp_async_wait_group<2>();
  }
}

// x += the warp's rows times 16 columns (rows of a tile, from the slice on), over half kHalf of the slice.
template <class Operand, int kHalf>
__device__ void multiply_rows(typename Shape<Operand>::Logits& x, const typename Shape<Operand>::Rows& rows,
                              const unsigned char* columns, const LaneOffset& offset) {
  constexpr int kSteps = Shape<Operand>::kSteps;
#pragma unroll
  for (int step = kHalf * kSteps / 2; step < (kHalf + 1) * kSteps / 2; ++step) {
    const auto b = Operand::template load<Shape<Operand>::kRunBytes>(columns, offset, step);
#pragma unroll
    for (int m = 0; m < Operand::kRowFragments; ++m) {
      Operand::multiply_add(x[m][0], rows[m][step], b, 0);
      Operand::multiply_add(x[m][1], rows[m][step], b, 1);
    }
  }
}

// Replaces each slice's part of the logits by their sum over the slices, added in the order of the slices.
template <class Operand>
__device__ void sum_over_slices(typename Shape<Operand>::Logits& x, const Shared<Operand>& shared, int slices,
                                int slice, int row_group) {
  constexpr int kExchanged = Shape<Operand>::kExchanged;
  const int lane = threadIdx.x % 32;
  float* parts = shared.partial_logits + row_group * slices * kExchanged;
  float* sums = shared.logits + row_group * kExchanged;
  const auto fragment = [&](float* logits, int m, int n) {  // conflict-free: neighbouring lanes, neighbouring 16 bytes
    return reinterpret_cast<float4*>(logits) + (2 * m + n) * 32 + lane;
  };
#pragma unroll
  for (int m = 0; m < Operand::kRowFragments; ++m) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      *fragment(parts + slice * kExchanged, m, n) = make_float4(x[m][n][0], x[m][n][1], x[m][n][2], x[m][n][3]);
    }
  }
  ptx::named_barrier_sync(1 + row_group, 32 * slices);
  for (int i = 32 * slice + lane; i < kExchanged; i += 32 * slices) {
    float sum = 0;
    for (int k = 0; k < slices; ++k) sum += parts[k * kExchanged + i];
    sums[i] = sum;
  }
  ptx::named_barrier_sync(1 + row_group, 32 * slices);  // and sums are read before the next panel's first barrier
#pragma unroll
  for (int m = 0; m < Operand::kRowFragments; ++m) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float4 sum = *fragment(sums, m, n);
      x[m][n][0] = sum.x, x[m][n][1] = sum.y, x[m][n][2] = sum.z, x[m][n][3] = sum.w;
    }
  }
}

template <class Operand>
__device__ void mask_panel(typename Shape<Operand>::Logits& x, const Pairing<int>& pairing, int first_row,
                           int first_column) {
  const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < Operand::kRowFragments; ++m) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = first_row + 16 * m + 8 * (i / 2) + group, column = first_column + 8 * n + 2 * quad + i % 2;
        if (!pairing.is_negative(row, column)) x[m][n][i] = kMaskedProduct;
      }
    }
  }
}

// Products -> coefficients of du, in place. With kOwn, own[m][h] gains sum_j exp2(logit - shift_i) [weight_i] product.
template <bool kOnline, bool kOwn, class Operand>
__device__ void coefficients(typename Shape<Operand>::Logits& x, float scale,
                             const Term (&row)[Operand::kRowFragments][2], const float* weights, const float* shifts,
                             float (&own)[Operand::kRowFragments][2]) {
  const int quad = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float2 weight = *reinterpret_cast<const float2*>(weights + 8 * n + 2 * quad);
    const float2 shift = kOnline ? *reinterpret_cast<const float2*>(shifts + 8 * n + 2 * quad) : float2{};
#pragma unroll
    for (int m = 0; m < Operand::kRowFragments; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Term& own_row = row[m][i / 2];
        const float product = x[m][n][i], column_weight = i % 2 ? weight.y : weight.x;
        float of_row = ptx::exp2_approx(fmaf(product, scale, -own_row.shift));
        if constexpr (kOnline) {
          of_row *= own_row.weight;
          const float of_column = ptx::exp2_approx(fmaf(product, scale, -(i % 2 ? shift.y : shift.x)));
          x[m][n][i] = fmaf(of_column, column_weight, of_row);
        } else {
          x[m][n][i] = of_row * (own_row.weight + column_weight);
        }
        if constexpr (kOwn) own[m][i / 2] = fmaf(of_row, product, own[m][i / 2]);
      }
    }
  }
}

template <class Operand, bool kOnline>
__global__ void __launch_bounds__(kBwdMaxThreads) ntxent_bwd_kernel(const BwdTask task) {
  extern __shared__ __align__(128) unsigned char shared_memory[];
  constexpr int kRowFragments = Operand::kRowFragments, kRunBytes = Shape<Operand>::kRunBytes;
  constexpr int kHalf = kBwdSlice / 16;  // fragments of du in half a slice
  const BwdPlan& plan = task.plan;
  const Shared<Operand> shared(shared_memory, plan);
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  const int slice = warp % plan.slices, row_group = warp / plan.slices;
  const int block_row = blockIdx.x * plan.block_rows, warp_row = row_group * Shape<Operand>::kWarpRows;
  const int slice_columns = plan.du_columns - slice * kBwdSlice;  // those that exist; the rest of the slice is zero

  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *task.partials.finished = 0;

  // 1. The unit of coefficients, this warp's rows of u, and their terms.
  const float constant_max = task.temperature.base_2_scale(), scale = constant_max * task.product_unit;
  __shared__ TermScale term_scale;
  find_term_scale(task.of_rows, task.searched_rows, task.of_columns, task.pairing.columns, constant_max,
                  task.temperature.inverse() * task.operand_unit, &term_scale);

  typename Shape<Operand>::Rows rows;
  load_rows<Operand>(rows, task, shared.stages, block_row, warp_row, slice);
  Term row_terms[kRowFragments][2];
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = block_row + warp_row + 16 * m + 8 * h + group;
      row_terms[m][h] =
          row < task.pairing.rows ? term_of<kOnline>(task.of_rows, term_scale, row) : Term{0, term_scale.constant_max};
    }
  }

  // 2. The first stages of the CTA's share of the columns, on their way.
  const LaneOffset a = a_offset(plan.row_bytes), b = b_offset(plan.row_bytes);
  float du[kRowFragments][kBwdSlice / 8][4] = {};
  float own[kRowFragments][2] = {};
  const int tile_begin = blockIdx.y * plan.split_tiles, tile_end = min(tile_begin + plan.split_tiles, plan.tiles);
  for (int stage = 0; stage < plan.stages; ++stage) {
    copy_columns<kOnline>(task, term_scale, shared, stage, tile_begin + stage, tile_end);
  }
  for (int tile = tile_begin, stage = 0; tile < tile_end; ++tile) {
    wait_for_oldest_stage(plan.stages);
    __syncthreads();
    const unsigned char* columns = shared.stages + stage * plan.stage_bytes + slice * Shape<Operand>::kSliceBytes;
    int first_row = block_row + warp_row;
    asm volatile("" : "+r"(first_row));  // else what the mask needs of it is kept from tile to tile, and spilled
    const bool masked =
        task.pairing.needs_mask(first_row, Shape<Operand>::kWarpRows, tile * plan.tile_columns, plan.tile_columns);
#pragma unroll 1
    for (int panel = 0; panel < plan.tile_columns; panel += kBwdPanel, columns += kBwdPanel * plan.row_bytes) {
      // 3. x_ij = u_i . u_j, in units of the operands: this slice's part, then the sum over the slices.
      typename Shape<Operand>::Logits x = {};
      multiply_rows<Operand, 0>(x, rows, columns, b);
      if (slice_columns > kBwdSlice / 2) multiply_rows<Operand, 1>(x, rows, columns, b);
      if (plan.slices > 1) sum_over_slices<Operand>(x, shared, plan.slices, slice, row_group);

      // 4. x_ij -> w_i exp(s_ij - lse_i) + w_j exp(s_ij - lse_j), 0 where j is no negative of i.
      if (masked) mask_panel<Operand>(x, task.pairing, first_row, tile * plan.tile_columns + panel);
      const float* weights = shared.column_weights + stage * plan.tile_columns + panel;
      const float* shifts = shared.column_shifts + stage * plan.tile_columns + panel;
      if (task.partials.own_logits != nullptr) {
        coefficients<kOnline, true, Operand>(x, scale, row_terms, weights, shifts, own);
      } else {
        coefficients<kOnline, false, Operand>(x, scale, row_terms, weights, shifts, own);
      }
      // 5. du_i += sum_j c_ij u_j, over this slice of the columns of u.
      typename Operand::Fragment c[kRowFragments];
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m) c[m] = Operand::coefficients(x[m]);
      Operand::template accumulate<0, kHalf, kRunBytes>(du, c, columns, a);
      if (slice_columns > kBwdSlice / 2) Operand::template accumulate<kHalf, kHalf, kRunBytes>(du, c, columns, a);
    }
    __syncthreads();  // every warp is done with the stage
    copy_columns<kOnline>(task, term_scale, shared, stage, tile + plan.stages, tile_end);
    stage = stage + 1 < plan.stages ? stage + 1 : 0;
  }

  // 6. The partial du of this split, 1/t and the units included, and its part of dt, whose products have two operands.
  const float unit = term_scale.of_result, own_unit = unit * task.operand_unit;
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = block_row + warp_row + 16 * m + 8 * h + group;
      const int64_t at = static_cast<int64_t>(blockIdx.y) * task.pairing.rows + row;
      float own_logits = own[m][h] * (kOnline ? 1.0f : row_terms[m][h].weight);
      own_logits += __shfl_xor_sync(0xffffffffu, own_logits, 1);
      own_logits += __shfl_xor_sync(0xffffffffu, own_logits, 2);
      if (row >= task.pairing.rows) continue;
      if (slice == 0 && quad == 0 && task.partials.own_logits != nullptr)
        task.partials.own_logits[at] = own_logits * own_unit;
#pragma unroll
      for (int n = 0; n < kBwdSlice / 8; ++n) {
        const int column = 8 * n + 2 * quad;
        if (column >= slice_columns) continue;
        float* out = task.partials.du + at * plan.du_columns + slice * kBwdSlice + column;
        *reinterpret_cast<float2*>(out) = make_float2(du[m][n][2 * h] * unit, du[m][n][2 * h + 1] * unit);
      }
    }
  }
}

template <class Operand>
cudaError_t run(const BwdProblem& problem, const BwdPlan& plan, cudaStream_t stream) {
  const Product& product = problem.product;
  const BwdTask task{product.matrix_of_rows(),
                     product.matrix_of_columns(),
                     product.pairing,
                     product.temperature_of<float>(),
                     product.product_unit(),
                     product.operand_unit(),
                     problem.rows.of<float>(),
                     problem.columns.of<float>(),
                     problem.rows_are_columns ? 0 : product.pairing.rows,
                     partials_of<float>(problem, plan),
                     plan};
  const dim3 grid(plan.row_blocks, plan.splits);
  return product.uses_constant_max() ? SIMCLR_LAUNCH((ntxent_bwd_kernel<Operand, false>), grid, 32 * plan.warps,
                                                     plan.shared_bytes, stream, task)
                                     : SIMCLR_LAUNCH((ntxent_bwd_kernel<Operand, true>), grid, 32 * plan.warps,
                                                     plan.shared_bytes, stream, task);
}

}  // namespace

cudaError_t bwd_tiles(const BwdProblem& problem, const BwdPlan& plan, cudaStream_t stream) {
#ifdef SIMCLR_SM90A
  if (plan.uses_clusters) return bwd_tiles_wide_sm90(problem, plan, stream);
  if (plan.uses_wgmma) return bwd_tiles_sm90(problem, plan, stream);
#endif
  return problem.product.products() == 1 ? run<Products<1>>(problem, plan, stream)
                                         : run<Products<3>>(problem, plan, stream);
}

}  // namespace simclr::cuda
