// What the CPU and the CUDA binding of NT-Xent share: readable views, and what a reduction makes of a row's loss.
#pragma once

#include <string>

#include "binding.h"

namespace simclr {

inline Tensor with_adjacent_columns(const Tensor& z) {
  return z.size(1) == 1 || z.stride(1) == 1 ? z : torch::stable::contiguous(z);
}

// How the row losses become the loss: whether they are added, and what each is multiplied by in the gradient.
struct Reduction {
  bool reduce;
  double scale;
};

// row_scale of simclr_fast/ops/ntxent/reference.py, for n samples of each process and the columns of all.
inline Reduction reduction_of(const std::string& name, int64_t n, int64_t columns) {
  STD_TORCH_CHECK(name == "mean" || name == "sum" || name == "none",
                  "ntxent: reduction must be 'mean', 'sum' or 'none', got '", name, "'");
  if (name == "none") return {false, 1.0};
  return {true, (name == "mean" ? 1.0 : static_cast<double>(columns)) / static_cast<double>(2 * n)};
}

inline void check_gradient(const Tensor& dloss, const Reduction& reduction, int64_t columns) {
  const int64_t expected = reduction.reduce ? 1 : columns;
  STD_TORCH_CHECK(dloss.numel() == expected, "ntxent: dloss must have ", expected, " elements, it has ", dloss.numel());
}

}  // namespace simclr
