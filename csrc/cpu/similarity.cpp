// Log-sum-exps of similarities on the CPU: the choice of element types and of instructions for the passes over blocks.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../similarity_launch.h"
#include "aligned_buffer.h"
#include "block_schedule.h"
#include "rows.h"

#define SIMCLR_ISA_BODY "similarity_body.h"
#include "for_each_isa.h"

namespace simclr::cpu {

void similarity_fwd(const SimclrSimilarityFwdArgs& args, const Parallel& parallel) {
  with_element_types(args.u_dtype, [&](auto, auto t) { SIMCLR_DISPATCH(forward_pass<decltype(t)>)(args, parallel); });
}

void similarity_fwd_bwd(const SimclrSimilarityFwdBwdArgs& args, const Parallel& parallel) {
  with_element_types(args.u_dtype, [&](auto, auto t) {
    SIMCLR_DISPATCH(forward_backward_pass<decltype(t)>)(args, parallel);
  });
}

void similarity_bwd(const SimclrSimilarityBwdArgs& args, const Parallel& parallel) {
  with_element_types(args.z_dtype, [&](auto z, auto t) {
    const auto pass = SIMCLR_DISPATCH(backward_pass<decltype(z), decltype(t)>);
    pass(args, parallel);
  });
}

}  // namespace simclr::cpu
