// A CUDA runtime that hands launches to a callback instead of a GPU: linked with objects that nvcc made, it lets the
// real launchers (their plans, their launch configurations, their argument structs) drive a simulator of the generated
// PTX.
#include <cuda_runtime.h>

#include <map>
#include <string>
#include <vector>

namespace {

// `resident`: the blocks wait for each other, so that all must be simulated at once.
using Launched = int (*)(const char* kernel, const unsigned* grid, const unsigned* block, size_t shared_bytes,
                         void** arguments, int resident);

Launched launched = nullptr;

// Kernels register themselves before main, in any order: hence a function.
std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> of_host_function;
  return of_host_function;
}

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};
std::vector<Configuration> pushed;

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes, int resident) {
  const unsigned g[3] = {grid.x, grid.y, grid.z}, b[3] = {block.x, block.y, block.z};
  return static_cast<cudaError_t>(launched(names().at(kernel).c_str(), g, b, shared_bytes, arguments, resident));
}

}  // namespace

extern "C" {

void simclr_set_launched(Launched callback) { launched = callback; }

void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host_function, char*, const char* device_name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  names()[host_function] = device_name;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host_function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host_function));
  return cudaSuccess;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
  pushed.push_back({grid, block, shared_bytes, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  const Configuration last = pushed.back();
  pushed.pop_back();
  *grid = last.grid;
  *block = last.block;
  *shared_bytes = last.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = last.stream;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                               cudaStream_t) {
  return launch(kernel, grid, block, arguments, shared_bytes, 0);
}
cudaError_t cudaLaunchCooperativeKernel(const void* kernel, dim3 grid, dim3 block, void** arguments,
                                        size_t shared_bytes, cudaStream_t) {
  return launch(kernel, grid, block, arguments, shared_bytes, 1);
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
// An H100's answers.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute == cudaDevAttrMultiProcessorCount) return *value = 132, cudaSuccess;
  if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin) return *value = 232448, cudaSuccess;
  if (attribute == cudaDevAttrComputeCapabilityMajor) return *value = 9, cudaSuccess;
  if (attribute == cudaDevAttrComputeCapabilityMinor) return *value = 0, cudaSuccess;
  return cudaErrorInvalidValue;
}

}  // extern "C"
