// Row L2-normalisation on the CPU: picks the instruction set, splits rows over threads.
#include "../l2_normalize.h"

#include <algorithm>
#include <cstdint>

#include "../l2_normalize_launch.h"

#define SIMCLR_ISA_BODY "l2_normalize_body.h"
#include "for_each_isa.h"

namespace simclr::cpu {
namespace {

// Rows per task, so that one task touches at least a few ten kilobytes.
int64_t grain(int64_t dim) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, dim)); }

}  // namespace

template <class T>
void l2_normalize(const L2NormalizeForward<T>& args, const Parallel& parallel) {
  const auto rows = SIMCLR_DISPATCH(forward_rows<T>);
  parallel(args.rows, grain(args.dim), [&](int64_t begin, int64_t end) { rows(args, begin, end); });
}

template <class T>
void l2_normalize_backward(const L2NormalizeBackward<T>& args, const Parallel& parallel) {
  const auto rows = SIMCLR_DISPATCH(backward_rows<T>);
  parallel(args.rows, grain(args.dim), [&](int64_t begin, int64_t end) { rows(args, begin, end); });
}

template void l2_normalize(const L2NormalizeForward<float>&, const Parallel&);
template void l2_normalize(const L2NormalizeForward<double>&, const Parallel&);
template void l2_normalize_backward(const L2NormalizeBackward<float>&, const Parallel&);
template void l2_normalize_backward(const L2NormalizeBackward<double>&, const Parallel&);

}  // namespace simclr::cpu
