// Which tiles a CTA of Hopper's forward (ntxent_fwd_sm90.cu) takes, one strip of a column after another.
#pragma once

#include "ntxent_fwd.cuh"
#include "ntxent_plan.h"

#ifdef __CUDACC__

namespace simclr::cuda {

// Row tiles [row_begin, row_end) of one column tile.
struct Strip90 {
  int column_tile, row_begin, row_end;
};

// The strips of a CTA's pairs of bands. Where a band has one tile, pairs beside each other are one strip.
class Strips {
 public:
  __device__ Strips(const FwdPlan& plan) {
    pair_ = static_cast<int64_t>(plan.pairs) * blockIdx.x / plan.blocks;
    end_ = static_cast<int64_t>(plan.pairs) * (blockIdx.x + 1) / plan.blocks;
  }
  __device__ bool next(const FwdPlan& plan, Strip90* strip) {
    if (pair_ >= end_) return false;
    int row_band, column_band;
    plan.bands_of(pair_, &row_band, &column_band);
    const int first = column_band * plan.column_band_tiles;
    const int end = min(first + plan.column_band_tiles, plan.column_tiles);
    int pairs = 1;
    if (plan.column_band_tiles == 1) {
      pairs = min(end_ - pair_, (plan.symmetric ? column_band + 1 : plan.row_bands) - row_band);
    }
    strip->column_tile = first + column_;
    strip->row_begin = row_band * plan.row_band_tiles;
    strip->row_end = min((row_band + pairs) * plan.row_band_tiles, plan.row_tiles);
    if (plan.symmetric) strip->row_end = min(strip->row_end, strip->column_tile + 1);
    if (first + ++column_ == end) {
      column_ = 0;
      pair_ += pairs;
    }
    return true;
  }

 private:
  int pair_, end_, column_ = 0;
};

}  // namespace simclr::cuda

#endif
