// What every binding file needs: devices, torch's thread pool as a Parallel, the current CUDA stream, launch checks.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <array>
#include <initializer_list>

#include "parallel.h"

// The check that hands on the message of torch's own exception came with torch 2.13; the older one names only the call.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace simclr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Parallel torch_threads() {
  const auto parallel_for = [](int64_t begin, int64_t end, int64_t grain, Parallel::Body body, void* context) {
    STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
  };
  return Parallel(parallel_for, static_cast<int>(torch::stable::get_num_threads()));
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// An uninitialised contiguous tensor on the device of another. torch::stable::new_empty has the dispatcher look up its
// name, box and unbox at each call, which for a small batch takes longer than the kernels.
inline Tensor allocate(const Tensor& other, std::initializer_list<int64_t> sizes, ScalarType type) {
  std::array<int64_t, 4> strides;
  int64_t stride = 1;
  for (size_t k = sizes.size(); k-- > 0; stride *= sizes.begin()[k]) strides[k] = stride;
  int32_t device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(other.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(other.get(), &device_index));
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(),
                                                         strides.data(), dtype, device_type, device_index, &handle));
  return Tensor(handle);
}

namespace {

// A device of a binding: derived from one of these, with a `run` for the arguments of each op.
struct CpuDevice {
  struct Guard {
    explicit Guard(const Tensor&) {}
  };
};

#ifdef USE_CUDA
struct CudaDevice {
  struct Guard : torch::stable::accelerator::DeviceGuard {
    explicit Guard(const Tensor& x) : DeviceGuard(x.get_device_index()) {}
  };
};
#endif

}  // namespace

#ifdef USE_CUDA
// Weak, since libtorch_cuda has it: a torch without CUDA loads the extension as well, and calls nothing of CUDA.
#pragma weak aoti_torch_get_current_cuda_stream

inline void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

inline void check_launch(int cuda_error, const char* kernel) {
  STD_TORCH_CHECK(cuda_error == 0, kernel, ": the CUDA launch failed with cudaError ", cuda_error);
}
#endif

}  // namespace simclr
