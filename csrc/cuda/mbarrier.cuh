// Barriers in shared memory that a pipeline's producer and its consumers wait at, each at their own time.
//
// A barrier is complete, and its phase ends, when as many threads have arrived as it was initialised for; the phases are
// numbered from 0, and waiting names the parity of one. What a thread wrote before it arrived is visible to those that
// have waited. Needs sm_90.
#pragma once

#include <cstdint>

#include "ptx.cuh"

namespace simclr::mbarrier {

// By one thread, before a __syncthreads that all who use the barrier pass.
__device__ __forceinline__ void initialise(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(ptx::shared_address(barrier)), "r"(arrivals)
               : "memory");
}

__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(ptx::shared_address(barrier)) : "memory");
}

// Returns when the latest phase of this parity has ended; a barrier counts as if a phase of parity 1 came before the
// first. Each lane tries for itself, and they may see the end at different tries: the branch is not uniform.
__device__ __forceinline__ void wait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@!ended bra AGAIN;\n"
      "}\n" ::"r"(ptx::shared_address(barrier)),
      "r"(parity)
      : "memory");
}

}  // namespace simclr::mbarrier
