// Plain C entry points of the augmentation's launchers and plans, for ctypes.
#include "augment_launch.h"
#include "cuda/augment_plan.h"

extern "C" {

int augment(const simclr::AugmentArgs* args, double* contrast_sums) {
  return simclr::cuda::augment(*args, contrast_sums, nullptr);
}

int64_t augment_scratch_doubles(const simclr::AugmentArgs* args) {
  return simclr::cuda::augment_scratch_doubles(*args);
}

int augment_sample(const simclr::AugmentSampleArgs* args) { return simclr::cuda::augment_sample(*args, nullptr); }

// Returns the kernels that are launched: 0, 1 (whole) or 2 (mean, tile).
int64_t augment_plans(const simclr::AugmentArgs* args, int64_t shared_limit, simclr::cuda::AugmentPlans* plans) {
  *plans = simclr::cuda::augment_plans(*args, static_cast<int>(shared_limit));
  return plans->whole.threads > 0 ? 1 : plans->tile.threads > 0 ? 2 : 0;
}

// The sizes of the structs that proof/simt/augment.py mirrors.
int64_t augment_struct_bytes(int64_t which) {
  const int64_t bytes[] = {sizeof(simclr::AugmentArgs), sizeof(simclr::AugmentSampleArgs),
                           sizeof(simclr::cuda::AugmentPlans)};
  return bytes[which];
}

}  // extern "C"
