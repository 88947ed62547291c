// The host's side of csrc/cuda/ptx.cuh: the same functions, handed to the runtime with the caller's place.
#pragma once

#include <cmath>
#include <cstdint>

#include "api.h"
#include "math.h"

namespace simt::ptx {

template <int kBytes>
void cp_async(void* shared, const void* global, int source_bytes = kBytes, SIMT_SITE) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  copy_async(shared, global, kBytes, source_bytes, site);
}
inline void cp_async_commit(SIMT_SITE) { copy_async_commit(site); }
template <int kPending>
void cp_async_wait_group() {
  copy_async_wait(kPending);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, SIMT_SITE) { load_matrices(r, row, false, site); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, SIMT_SITE) { load_matrices(r, row, true, site); }

inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_SITE) {
  multiply_accumulate(d, a, b, site);
}

// ex2.approx.ftz.f32, without its error of up to 2 ulp.
inline float exp2_approx(float x) {
  constexpr float kSmallestNormal = 0x1p-126f;
  const float y = std::exp2(std::fabs(x) < kSmallestNormal ? 0.0f : x);
  return y < kSmallestNormal ? 0.0f : y;
}

// min.NaN.f32 and max.NaN.f32.
inline float min_or_nan(float a, float b) { return a < b || std::isnan(a) ? a : b; }
inline float max_or_nan(float a, float b) { return a > b || std::isnan(a) ? a : b; }

inline void named_barrier_sync(int id, int threads, SIMT_SITE) { barrier_sync(id, threads, 0, "bar.sync", site); }

}  // namespace simt::ptx
