// What launch plans need to know of the current device.
#include "../ntxent_launch.h"
#include "launch.cuh"

extern "C" int simclr_query_device(SimclrDevice* device) {
  int index = 0;
  cudaError_t error = cudaGetDevice(&index);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, index);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&device->max_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  }
  int major = 0, minor = 0;
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  device->capability = 10 * major + minor;
  return error;
}
