// How every CUDA kernel of the project is launched: by nvcc's <<<>>>, or by the host runtime of proof/simt.
//
// A kernel file includes this header (and ptx.cuh) and is otherwise plain CUDA. Built by g++ with proof/simt/runtime on
// the include path, the same file runs on the CPU, one fiber per CUDA thread.
#pragma once

#include <cstddef>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "simt/cuda.h"
#endif

namespace simclr::cuda {

// Above this a kernel must be told how much dynamic shared memory it may take.
constexpr size_t kSharedBytesWithoutOptIn = 48 * 1024;

// Launches kernel(args...) on the stream and returns the launch's error without waiting for the kernel. Call it through
// SIMCLR_LAUNCH or SIMCLR_LAUNCH_RESIDENT, which know the kernel's name.
template <bool kResident, class... Params, class... Args>
cudaError_t launch([[maybe_unused]] const char* name, void (*kernel)(Params...), dim3 grid, dim3 block,
                   size_t shared_bytes, [[maybe_unused]] cudaStream_t stream, Args... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "the launch must pass as many arguments as the kernel takes");
  if (shared_bytes > kSharedBytesWithoutOptIn) {
    const cudaError_t refused = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (refused != cudaSuccess) return refused;
    // As many blocks as fit are to be on a multiprocessor: these kernels want the room more than a first-level cache.
    const cudaError_t uncarved =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared);
    if (uncarved != cudaSuccess) return uncarved;
  }
#ifdef __CUDACC__
  if constexpr (kResident) {
    return [&](Params... params) {
      void* pointers[] = {&params...};
      return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, shared_bytes,
                                         stream);
    }(static_cast<Params>(args)...);
  } else {
    kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Params>(args)...);
    return cudaGetLastError();
  }
#else
  return ::simt::launch(name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, kResident,
                        [=] { kernel(static_cast<Params>(args)...); });
#endif
}

}  // namespace simclr::cuda

// SIMCLR_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...) -> cudaError_t.
// A kernel whose name holds a comma goes in parentheses: SIMCLR_LAUNCH((kernel<float, 64>), ...).
#define SIMCLR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::simclr::cuda::launch<false>(#kernel, kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

// The same for a kernel whose blocks wait for each other: all are on the device at once, or the launch is refused with
// cudaErrorCooperativeLaunchTooLarge.
#define SIMCLR_LAUNCH_RESIDENT(kernel, grid, block, shared_bytes, stream, ...) \
  ::simclr::cuda::launch<true>(#kernel, kernel, grid, block, shared_bytes, stream, __VA_ARGS__)
