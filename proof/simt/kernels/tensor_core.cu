// Kernels that test the runtime's ldmatrix, mma.sync and half arithmetic against plain loops in the test.
#include "launch.cuh"
#include "ptx.cuh"

namespace {

using namespace simclr::ptx;

// [32, 8] 16-bit elements in shared memory as four 8x8 matrices; each lane's registers to out[variant][lane][4].
__global__ void ldmatrix_kernel(const uint16_t* x, uint32_t* out) {
  __shared__ __align__(16) uint16_t tile[32][8];
  for (int i = 0; i < 8; ++i) tile[threadIdx.x][i] = x[threadIdx.x * 8 + i];
  __syncwarp();
  const void* row = tile[threadIdx.x];
  uint32_t plain[4], transposed[4];
  ldmatrix_x4(plain, row);
  ldmatrix_x4_trans(transposed, row);
  for (int i = 0; i < 4; ++i) {
    out[threadIdx.x * 4 + i] = plain[i];
    out[(32 + threadIdx.x) * 4 + i] = transposed[i];
  }
}

// Wrong: rows of 24 bytes are not aligned to 16.
__global__ void ldmatrix_misaligned_kernel(uint32_t* out) {
  __shared__ __align__(16) uint16_t tile[32][12];
  tile[threadIdx.x][0] = 0;
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, tile[threadIdx.x]);
  out[threadIdx.x] = r[0];
}

// Wrong: only part of the warp is there.
__global__ void mma_half_warp_kernel(float* out) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  mma_m16n8k16_f16(d, a, b);
  out[threadIdx.x] = d[0];
}

// d[16, 8] = c + a[16, 16] b[16, 8]: fragments by ldmatrix, as a GEMM's inner loop takes them.
__global__ void mma_float16_kernel(const __half* a, const __half* b, const float* c, float* d) {
  __shared__ __align__(16) __half ta[16][16];
  __shared__ __align__(16) __half tb[16][16];  // of which b has the first eight columns
  const int lane = threadIdx.x, group = lane / 4, pair = lane % 4 * 2;
  for (int i = lane; i < 256; i += 32) ta[i / 16][i % 16] = a[i];
  for (int i = lane; i < 256; i += 32) tb[i / 16][i % 16] = i % 16 < 8 ? b[i / 16 * 8 + i % 16] : __half(0.0f);
  __syncwarp();
  uint32_t fa[4], both[4];
  ldmatrix_x4(fa, &ta[lane % 16][lane / 16 * 8]);
  ldmatrix_x4_trans(both, &tb[lane % 16][lane / 16 * 8]);
  const uint32_t fb[2] = {both[0], both[1]};
  float acc[4];
  for (int i = 0; i < 4; ++i) acc[i] = c[(group + i / 2 * 8) * 8 + pair + i % 2];
  mma_m16n8k16_f16(acc, fa, fb);
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + pair + i % 2] = acc[i];
}

__global__ void exp2_kernel(const float* x, float* y, int n) {
  for (int i = threadIdx.x; i < n; i += 32) y[i] = exp2_approx(x[i]);
}

// [6, n]: a + b, a * b, a - b, a / b, fma(a, b, a), fma of pairs.
template <class T, class T2>
__global__ void half_kernel(const T* a, const T* b, T* y, int n) {
  for (int i = threadIdx.x; i < n; i += 32) {
    y[i] = a[i] + b[i];
    y[n + i] = a[i] * b[i];
    y[2 * n + i] = a[i] - b[i];
    y[3 * n + i] = a[i] / b[i];
    y[4 * n + i] = __hfma(a[i], b[i], a[i]);
    const T2 pair = __hfma2(T2(a[i], b[i]), T2(b[i], b[i]), T2(a[i], a[i]));
    y[5 * n + i] = pair.x;
  }
}

}  // namespace

extern "C" {

int ldmatrix(const uint16_t* x, uint32_t* out) { return SIMCLR_LAUNCH(ldmatrix_kernel, 1, 32, 0, nullptr, x, out); }
int ldmatrix_misaligned(uint32_t* out) { return SIMCLR_LAUNCH(ldmatrix_misaligned_kernel, 1, 32, 0, nullptr, out); }
int mma_half_warp(float* out) { return SIMCLR_LAUNCH(mma_half_warp_kernel, 1, 48, 0, nullptr, out); }
int mma_float16(const __half* a, const __half* b, const float* c, float* d) {
  return SIMCLR_LAUNCH(mma_float16_kernel, 1, 32, 0, nullptr, a, b, c, d);
}
int exp2_of(const float* x, float* y, int n) { return SIMCLR_LAUNCH(exp2_kernel, 1, 32, 0, nullptr, x, y, n); }
int half_arithmetic(const __half* a, const __half* b, __half* y, int n) {
  return SIMCLR_LAUNCH((half_kernel<__half, __half2>), 1, 32, 0, nullptr, a, b, y, n);
}
int bfloat_arithmetic(const __nv_bfloat16* a, const __nv_bfloat16* b, __nv_bfloat16* y, int n) {
  return SIMCLR_LAUNCH((half_kernel<__nv_bfloat16, __nv_bfloat162>), 1, 32, 0, nullptr, a, b, y, n);
}

}  // extern "C"
