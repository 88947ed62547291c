// NT-Xent's loss and gradient in one launch, where ntxent_resident_plan.h says that it fits.
#pragma once

#include "launch.cuh"
#include "ntxent_resident_plan.h"

namespace simclr::cuda {

cudaError_t ntxent_resident(const SimclrNtxentFwdBwdArgs& args, const ResidentPlan& plan, cudaStream_t stream);

}  // namespace simclr::cuda
