// CUDA C++ for g++: the toolkit's own types, and its keywords, functions and variables by way of the runtime.
// Included by csrc/cuda/launch.cuh where the compiler is not nvcc. The build rewrites __shared__ declarations
// (proof/simt/build.py): they have no meaning that a macro could give them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "api.h"

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __align__
#undef __restrict__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (::simt::coordinates->thread)
#define blockIdx (::simt::coordinates->block)
#define blockDim (::simt::coordinates->block_dim)
#define gridDim (::simt::coordinates->grid_dim)
#define warpSize 32

namespace simt {

// What SIMCLR_LAUNCH and SIMCLR_LAUNCH_RESIDENT come to.
template <class Body>
cudaError_t launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, bool resident,
                   const Body& body) {
  auto call = [](const void* b) { (*static_cast<const Body*>(b))(); };
  return static_cast<cudaError_t>(launch_grid(name, kernel, grid, block, shared_bytes, resident, call, &body));
}

// What `__shared__ T name;` is rewritten to. The key is a lambda's own variable, so that every instantiation of a
// kernel template has its own.
template <class T>
T& shared_variable(const void* key, size_t alignment, Site site = Site::here()) {
  return *static_cast<T*>(static_shared(key, sizeof(T), alignment > alignof(T) ? alignment : alignof(T), site));
}
template <class T>
T* shared_array(size_t alignment, Site site = Site::here()) {
  return static_cast<T*>(dynamic_shared(alignment > alignof(T) ? alignment : alignof(T), site));
}

}  // namespace simt

#include "atomics.h"
#include "half.h"
#include "math.h"
#include "ptx.h"
#include "sync.h"
