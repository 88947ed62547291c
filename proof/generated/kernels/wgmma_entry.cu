// One tile by each product of csrc/cuda/wgmma.cuh: D = A B, 64 x kColumns, with operands from global memory.
#include "../../../csrc/cuda/wgmma.cuh"

namespace simclr {
namespace {

// Of the three: B's columns are rows of b; B's depth are rows of b; the same with A in registers.
enum Form { kShared = 0, kTransposed = 1, kRegisters = 2 };

constexpr int kDepthPanels = 2;
constexpr int kDepth = kDepthPanels * wgmma::kPanelColumns;

template <int kColumns, int kForm>
__global__ void __launch_bounds__(wgmma::kThreads) wgmma_case_kernel(cuda::RowMatrix a, cuda::RowMatrix b, float* out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  // 1. A as panels of its 64 rows, B as panels of kColumns rows or of kDepth.
  constexpr int kColumnRows = kForm == kShared ? kColumns : kDepth;
  constexpr int kColumnPanels = kForm == kShared ? kDepthPanels : (kColumns + 63) / 64;
  constexpr int kColumnPanelBytes = kColumnRows * wgmma::kPanelRowBytes;
  unsigned char* columns = shared + kDepthPanels * wgmma::kRows * wgmma::kPanelRowBytes;
  const int width = static_cast<int>(a.pitch), column_width = static_cast<int>(b.pitch);
  wgmma::copy_panels(shared, a, 0, wgmma::kRows, 0, width, kDepthPanels, wgmma::kThreads);
  wgmma::copy_panels(columns, b, 0, kColumnRows, 0, column_width, kColumnPanels, wgmma::kThreads);
  ptx::cp_async_commit();
  ptx::cp_async_wait_group<0>();
  wgmma::fence_proxy_async();
  __syncthreads();

  // 2. A's registers, which ordinary loads take out of the swizzled panels.
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  uint32_t registers[kDepth / wgmma::kStepColumns][4];
  for (int step = 0; step < kDepth / wgmma::kStepColumns; ++step) {
    for (int i = 0; i < 4; ++i) {
      const int row = 16 * warp + group + 8 * (i % 2), column = 16 * step + 2 * quad + 8 * (i / 2);
      const int chunk = column % 64 / 8 ^ (row & 7);
      const unsigned char* panel = shared + column / 64 * wgmma::kRows * wgmma::kPanelRowBytes;
      registers[step][i] = *reinterpret_cast<const uint32_t*>(panel + row * 128 + chunk * 16 + column % 8 * 2);
    }
  }

  // 3. D = A B; what D held before does not count.
  float d[kColumns / 8][4];
  for (auto& block : d) {
    for (float& x : block) x = NAN;
  }
  const uint32_t a_at = ptx::shared_address(shared), b_at = ptx::shared_address(columns);
  wgmma::hold(d);
  wgmma::fence();
#pragma unroll
  for (int step = 0; step < kDepth / wgmma::kStepColumns; ++step) {
    const int panel = step / 4, in_panel = step % 4 * wgmma::kStepBytes;
    const uint64_t of_a = wgmma::rows_descriptor(a_at + panel * wgmma::kRows * wgmma::kPanelRowBytes + in_panel);
    const uint64_t of_rows = wgmma::rows_descriptor(b_at + panel * kColumnPanelBytes + in_panel);
    const uint64_t of_depth = wgmma::columns_descriptor(b_at + 16 * step * wgmma::kPanelRowBytes, kColumnPanelBytes);
    if (kForm == kShared) wgmma::multiply_shared<kColumns>(d, of_a, of_rows, step > 0);
    if (kForm == kTransposed) wgmma::multiply_shared_transposed<kColumns>(d, of_a, of_depth, step > 0);
    if (kForm == kRegisters) wgmma::multiply_registers<kColumns>(d, registers[step], of_depth, step > 0);
  }
  wgmma::commit();
  wgmma::wait<0>();
  wgmma::hold(d);
  for (int n = 0; n < kColumns / 8; ++n) {
    for (int i = 0; i < 4; ++i) out[(16 * warp + group + 8 * (i / 2)) * kColumns + 8 * n + 2 * quad + i % 2] = d[n][i];
  }
#endif
}

template <int kColumns, int kForm>
int run(const cuda::RowMatrix& a, const cuda::RowMatrix& b, float* out) {
  const int rows = wgmma::kRows * kDepthPanels + (kForm == kShared ? kColumns * kDepthPanels : kDepth * 4);
  return SIMCLR_LAUNCH((wgmma_case_kernel<kColumns, kForm>), 1, wgmma::kThreads, rows * wgmma::kPanelRowBytes, nullptr,
                       a, b, out);
}

template <int kColumns>
int run(int form, const cuda::RowMatrix& a, const cuda::RowMatrix& b, float* out) {
  return form == kShared       ? run<kColumns, kShared>(a, b, out)
         : form == kTransposed ? run<kColumns, kTransposed>(a, b, out)
                               : run<kColumns, kRegisters>(a, b, out);
}

}  // namespace
}  // namespace simclr

// a: [a_rows, a_columns], b: [b_rows, b_columns], fp16, contiguous, both widths multiples of eight; out: [64, columns].
extern "C" int wgmma_case(int columns, int form, const void* a, int a_rows, int a_columns, const void* b, int b_rows,
                          int b_columns, float* out) {
  using namespace simclr;
  const cuda::RowMatrix of_a{static_cast<const unsigned char*>(a), 2 * int64_t{a_columns}, a_rows};
  const cuda::RowMatrix of_b{static_cast<const unsigned char*>(b), 2 * int64_t{b_columns}, b_rows};
  return columns == 32    ? run<32>(form, of_a, of_b, out)
         : columns == 64  ? run<64>(form, of_a, of_b, out)
         : columns == 128 ? run<128>(form, of_a, of_b, out)
                          : run<256>(form, of_a, of_b, out);
}
