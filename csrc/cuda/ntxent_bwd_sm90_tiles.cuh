// What the CTAs of Hopper's backward (ntxent_bwd_sm90.cu) have in shared memory, and the warpgroup that brings it there.
#pragma once

#include "mbarrier.cuh"
#include "ntxent_bwd.cuh"
#include "ntxent_bwd_sm90_plan.h"
#include "ntxent_bwd_terms.cuh"
#include "ntxent_tiles.cuh"
#include "wgmma.cuh"

namespace simclr::cuda {

struct Sm90Task {
  RowMatrix rows, columns;
  Pairing<int> pairing;
  Temperature<float> temperature;
  float product_unit, operand_unit;
  Side<float> of_rows, of_columns;
  int searched_rows;  // those that are none of the columns
  BwdPartials<float> partials;
  int tiles, split_tiles, du_columns;

  static Sm90Task of(const BwdProblem& problem, const BwdPlan& plan) {
    const Product& product = problem.product;
    return {product.matrix_of_rows(),
            product.matrix_of_columns(),
            product.pairing,
            product.temperature_of<float>(),
            product.product_unit(),
            product.operand_unit(),
            problem.rows.of<float>(),
            problem.columns.of<float>(),
            problem.rows_are_columns ? 0 : product.pairing.rows,
            partials_of<float>(problem, plan),
            plan.tiles,
            plan.split_tiles,
            plan.du_columns};
  }
};

template <int kPanels_, int kProducts_>
struct Sm90Shape {
  static constexpr int kPanels = kPanels_, kProducts = kProducts_, kStages = kSm90Stages;
  static constexpr int kParts = kProducts == 3 ? 2 : 1;
  static constexpr int kDepth = kPanels * kSm90Panel;
  static constexpr int kTile = sm90_tile_columns(kPanels, kProducts);
  static constexpr int kRowPanelBytes = kSm90BlockRows * kSm90PanelRowBytes;
  static constexpr int kTilePanelBytes = kTile * kSm90PanelRowBytes;
  static constexpr int kRowsBytes = kParts * kPanels * kRowPanelBytes;
  static constexpr int kStageBytes = kParts * kPanels * kTilePanelBytes;
  using Logits = float[kTile / 8][4];
  using Coefficients = uint32_t[kParts][kTile / 16][4];
  using Gradient = float[kDepth / 8][4];
};

template <class Shape>
struct Sm90Shared {
  unsigned char* rows;    // [parts][panels][128][128 bytes]
  unsigned char* stages;  // [stages][parts][panels][tile columns][128 bytes]
  float* weights;         // [stages][tile columns]
  float* shifts;          // [stages][tile columns]
  uint64_t* full;         // [stages]: the producers have brought a tile
  uint64_t* empty;        // [stages]: the consumers' warps are done with it

  __device__ explicit Sm90Shared(unsigned char* base) {
    rows = base;
    stages = rows + Shape::kRowsBytes;
    weights = reinterpret_cast<float*>(stages + Shape::kStages * Shape::kStageBytes);
    shifts = weights + Shape::kStages * Shape::kTile;
    full = reinterpret_cast<uint64_t*>(shifts + Shape::kStages * Shape::kTile);
    empty = full + Shape::kStages;
  }
};

// Where a tile of the walk lies, and the parity of the phase in which the stage's barriers see it.
template <int kStages>
struct StageOf {
  int stage = 0, phase = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

// Starts copying rows [row, row + kRows) of all parts into panels, by threads 0 .. kThreads - 1. What lies outside the
// matrix becomes zero.
template <class Shape, int kRows, int kThreads>
__device__ void copy_panels(unsigned char* panels, const RowMatrix& matrix, int row, int thread) {
  constexpr int kChunks = Shape::kPanels * 8, kRowsAtOnce = kThreads / kChunks;
  const int chunk = thread % kChunks, first = thread / kChunks;
  const int rows_inside = chunk * kChunkBytes < matrix.part_bytes ? matrix.rows - row : 0;
#pragma unroll
  for (int part = 0; part < Shape::kParts; ++part) {
    unsigned char* panel = panels + (part * Shape::kPanels + chunk / 8) * kRows * kSm90PanelRowBytes;
    const unsigned char* source =
        matrix.data + (row + first) * matrix.pitch + part * matrix.part_bytes + chunk * kChunkBytes;
#pragma unroll 8
    for (int r = first; r < kRows; r += kRowsAtOnce, source += kRowsAtOnce * matrix.pitch) {
      ptx::cp_async<kChunkBytes>(panel + chunk_offset(r, chunk % 8, kSm90PanelRowBytes), source,
                                 r < rows_inside ? kChunkBytes : 0);
    }
  }
}

// The third warpgroup's part: brings the walk's tiles and the terms of their columns.
template <bool kOnline, class Shape>
class Producer {
 public:
  __device__ Producer(const Sm90Task& task, const Sm90Shared<Shape>& shared, int tile_begin, int tile_end)
      : task_(task), shared_(shared), begin_(tile_begin), end_(tile_end), thread_(threadIdx.x - kSm90Consumers) {}

  // Starts copying the first tiles. They want no terms yet.
  __device__ void start() {
    for (int i = 0; i < kUnderWay; ++i) {
      if (begin_ + i < end_) copy(begin_ + i, i);
      ptx::cp_async_commit();
    }
  }

  // A tile is announced when the copies of the next one have been started, and before its stage has to be free.
  __device__ void run(const TermScale& scale) {
    StageOf<Shape::kStages> filled, announced;
    for (int tile = begin_; tile < end_ + kUnderWay; ++tile) {
      if (tile >= begin_ + kUnderWay) {
        ptx::cp_async_wait_group<kUnderWay - 1>();
        wgmma::fence_proxy_async();
        mbarrier::arrive(shared_.full + announced.stage);
        announced.next();
      }
      if (tile < end_) {
        mbarrier::wait(shared_.empty + filled.stage, filled.phase ^ 1);
        if (tile >= begin_ + kUnderWay) copy(tile, filled.stage);
        write_terms(scale, tile, filled.stage);
        filled.next();
      }
      ptx::cp_async_commit();
    }
  }

 private:
  static constexpr int kUnderWay = 2;  // with three, the third stage could not be filled before the first is announced

  __device__ void copy(int tile, int stage) const {
    copy_panels<Shape, Shape::kTile, kSm90Producers>(shared_.stages + stage * Shape::kStageBytes, task_.columns,
                                                     tile * Shape::kTile, thread_);
  }
  __device__ void write_terms(const TermScale& scale, int tile, int stage) const {
    if (thread_ >= Shape::kTile) return;
    const int column = tile * Shape::kTile + thread_, at = stage * Shape::kTile + thread_;
    const Term term = column < task_.pairing.columns ? term_of<kOnline>(task_.of_columns, scale, column) : Term{0, 0};
    shared_.weights[at] = term.weight;
    if (kOnline) shared_.shifts[at] = term.shift;
  }

  const Sm90Task& task_;
  const Sm90Shared<Shape>& shared_;
  int begin_, end_, thread_;
};

}  // namespace simclr::cuda
