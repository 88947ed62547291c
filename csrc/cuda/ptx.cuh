// The PTX instructions that CUDA C++ has no function for. The only code with two branches: inline assembly here, and
// functions of the same names and arguments in proof/simt/runtime/simt/ptx.h for the CPU.
//
// Register layouts are the PTX manual's ("Matrix fragments for mma.m16n8k16", "ldmatrix"). With
// lane = 4 * group + quad:
//   m16n8k16 (fp16), two elements per register, the lower half first:
//     a[0]: A[group][2 quad, +1]   a[1]: A[group + 8][2 quad, +1]   a[2], a[3]: the same rows, columns + 8
//     b[0]: B[2 quad, +1][group]   b[1]: B[2 quad + 8, +9][group]
//   accumulators: d[0], d[1]: D[group][2 quad, +1]   d[2], d[3]: D[group + 8][2 quad, +1]
// Needs sm_80 or newer.
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace simclr::ptx {

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Starts copying kBytes (4, 8 or 16; both addresses aligned to it) from global to shared memory. Only the first
// source_bytes are read, the rest is filled with zeros: with 0 the source is not touched.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int source_bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  if constexpr (kBytes == 16) {  // .cg: past L1, which only this size may
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
                 "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(source_bytes)
                 : "memory");
  }
}

// Closes the group of this thread's copies started since the last commit (an empty group counts too).
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most kPending of this thread's newest groups are still under way. Other threads see the data only
// after a barrier.
template <int kPending>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Loads four 8x8 matrices of 16-bit elements; lane 8 i + r passes the address of row r of matrix i, aligned to 16
// bytes. Register i of a lane then holds matrix_i[group][2 quad, +1]; with _trans matrix_i[2 quad, +1][group].
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a b for one 16x8 tile per warp, fp32 accumulation; layouts above.
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// 2^x to 2 ulp; subnormal arguments and results are flushed to zero.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// The smaller and the larger number; NaN where one is NaN, unlike fminf and fmaxf. Functions of both sides may call
// them where nvcc compiles for the device.
#ifdef __CUDA_ARCH__
__host__ __device__ __forceinline__ float min_or_nan(float a, float b) {
  float y;
  asm("min.NaN.f32 %0, %1, %2;\n" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
__host__ __device__ __forceinline__ float max_or_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;\n" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
#endif

// Barrier `id` (1-15; 0 is __syncthreads') among `threads` threads, a multiple of 32.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

#else

using ::simt::ptx::cp_async;
using ::simt::ptx::cp_async_commit;
using ::simt::ptx::cp_async_wait_group;
using ::simt::ptx::exp2_approx;
using ::simt::ptx::ldmatrix_x4;
using ::simt::ptx::ldmatrix_x4_trans;
using ::simt::ptx::max_or_nan;
using ::simt::ptx::min_or_nan;
using ::simt::ptx::mma_m16n8k16_f16;
using ::simt::ptx::named_barrier_sync;

#endif

}  // namespace simclr::ptx
