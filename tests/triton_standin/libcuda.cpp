// A libcuda.so.1 for machines without a GPU: what Triton's driver and launcher call of it. Everything succeeds, nothing
// runs, and the last launch is kept, with the bytes of its arguments.

#include <cuda.h>

#include <cstring>
#include <vector>

namespace {

int handle;  // whose address stands for every context, module and function
std::vector<size_t> sizes;
std::vector<unsigned char> values;
unsigned shape[7];

}  // namespace

extern "C" {

// Sizes in bytes of the arguments of the launches to come: the driver's interface does not tell them.
void standin_expect(const size_t* bytes, int count) { sizes.assign(bytes, bytes + count); }

// Copies grid, block and dynamic shared memory of the last launch, and its arguments one behind the other; forgets it.
// Returns the bytes of the arguments, -1 where nothing was launched.
long standin_take(unsigned* shape_out, unsigned char* values_out) {
  if (values.empty()) return -1;
  std::memcpy(shape_out, shape, sizeof shape);
  std::memcpy(values_out, values.data(), values.size());
  long size = static_cast<long>(values.size());
  values.clear();
  return size;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction, void** arguments, void**) {
  unsigned launched[] = {config->gridDimX,  config->gridDimY,  config->gridDimZ,      config->blockDimX,
                         config->blockDimY, config->blockDimZ, config->sharedMemBytes};
  std::memcpy(shape, launched, sizeof shape);
  values.clear();
  for (size_t i = 0; i < sizes.size(); ++i) {
    const auto* bytes = static_cast<const unsigned char*>(arguments[i]);
    values.insert(values.end(), bytes, bytes + sizes[i]);
  }
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void* data, CUpointer_attribute, CUdeviceptr pointer) {
  std::memcpy(data, &pointer, sizeof pointer);
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult, const char** text) {
  *text = "no error";
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int) {
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

// Shared memory and registers of a Hopper device, for whoever checks whether a kernel fits.
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
      *value = 48 << 10;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = 227 << 10;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      *value = 228 << 10;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
      *value = 64 << 10;
      break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      *value = 32;
      break;
    default:
      *value = 1;
  }
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = reinterpret_cast<CUcontext>(&handle);
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice* device) { return cuDeviceGet(device, 0); }

CUresult cuCtxGetLimit(size_t* value, CUlimit) {
  *value = 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return cuCtxGetCurrent(context); }

CUresult cuModuleLoadData(CUmodule* module, const void*) {
  *module = reinterpret_cast<CUmodule>(&handle);
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char*) {
  *function = reinterpret_cast<CUfunction>(&handle);
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }

CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
}
