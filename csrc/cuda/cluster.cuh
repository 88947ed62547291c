// What the CTAs of a cluster send each other on Hopper: barriers in shared memory that count arrivals and bytes
// (mbarriers), and stores into another CTA's shared memory.
//
// An mbarrier's phases alternate between parity 0 and 1; a wait for the parity that the running phase does not have
// passes at once, so that waiting for parity 1 of a fresh barrier does. PTX manual: "mbarrier", "st.async", "mapa".
#pragma once

#include <cstdint>

#include "ptx.cuh"

#ifdef __CUDACC__

// Of a kernel, before its launch bounds: so many CTAs, neighbours along x, are a cluster. The code for other
// architectures may not even name clusters.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SIMCLR_CLUSTER(ctas) __cluster_dims__(ctas, 1, 1)
#else
#define SIMCLR_CLUSTER(ctas)
#endif

namespace simclr::cluster {

// The shared memory address `address` of this CTA in the CTA of that rank.
__device__ __forceinline__ uint32_t address_in(uint32_t address, uint32_t rank) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}

// Waits for all threads of all CTAs of the cluster; what they wrote before is visible afterwards.
__device__ __forceinline__ void sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}

// Makes mbarrier::initialise visible to the cluster, together with sync().
__device__ __forceinline__ void fence_init() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }

// Arrives at a barrier of this CTA and announces bytes that store_async brings.
__device__ __forceinline__ void arrive_and_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}
// Arrives at a barrier of any CTA: what this thread read or wrote before, it has read or written for whoever waits.
__device__ __forceinline__ void arrive_at(uint32_t remote_barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];\n" ::"r"(remote_barrier) : "memory");
}
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "retry:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra retry;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Stores 16 bytes in the CTA that has remote_barrier; its running phase counts them.
__device__ __forceinline__ void store_async(uint32_t remote_address, const float (&x)[4], uint32_t remote_barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];\n" ::"r"(
          remote_address),
      "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]), "r"(remote_barrier)
      : "memory");
}

// Loads 16 bytes that came by store_async.
__device__ __forceinline__ float4 load(uint32_t address) {
  float4 x;
  asm volatile("ld.shared::cta.v4.f32 {%0, %1, %2, %3}, [%4];\n"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(address)
               : "memory");
  return x;
}

}  // namespace simclr::cluster

#endif
