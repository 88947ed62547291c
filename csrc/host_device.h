// Marks the math shared by CPU and CUDA kernels: plain inline functions for g++, __host__ __device__ ones for nvcc.
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif
