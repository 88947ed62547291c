// Hopper's warpgroup products: wgmma.mma_async of fp16 operands with fp32 accumulators, their descriptors and fences,
// and the copy that lays rows of u out as they want them.
//
// A warpgroup is 128 threads, four warps of which each holds 16 of the 64 rows of D: d[n][0..1] are row `group` and
// d[n][2..3] row `group` + 8 of the warp's, columns 8 n + 2 quad + {0, 1}, with lane = 4 group + quad. That is
// mma.sync's layout (ptx.cuh), as is that of an operand A in registers.
//
// Operands lie in shared memory as panels of 64 columns: a row of a panel is 128 bytes, eight chunks of 16; chunk c of
// row r lies at chunk c ^ (r mod 8) ("128-byte swizzle"), and panels start at multiples of 1024 bytes. The same panel
// serves with its rows as rows of A or columns of B ("K-major", rows_descriptor), and with its rows as the depth of B
// ("MN-major", columns_descriptor).
//
// A product is under way from multiply_*() until wait(): between fence() and the first product nothing may write
// accumulators or A's registers, and until wait() nothing may touch them. The compiler does not know; hold() tells it.
// Sources: PTX ISA 8.6, "Asynchronous warpgroup level matrix instructions", "Matrix descriptor", "Canonical layouts".
#pragma once

#include <cstdint>

#include "launch.cuh"
#include "ntxent_tiles.cuh"
#include "ptx.cuh"

namespace simclr::wgmma {

constexpr int kThreads = 128;     // of a warpgroup
constexpr int kRows = 64;         // of D per warpgroup
constexpr int kStepColumns = 16;  // the depth of one product
constexpr int kPanelColumns = 64;
constexpr int kPanelRowBytes = 128;
constexpr int kPanelAlignment = 1024;  // bytes: eight rows, after which the swizzle repeats
constexpr int kStepBytes = kStepColumns * 2;

// x, which is the same in all lanes of the warp, as one that the compiler knows to be: what follows from it is kept in
// registers of the warp, where products want their descriptors; from a thread's they would be moved for each product.
template <class T>
__device__ __forceinline__ T uniform(T x) {
  return __shfl_sync(0xffffffffu, x, 0);
}

// Operand A or B with a panel's rows as its rows (A) or columns (B), 16 columns of them as the depth: `address` is the
// shared address of the panel's first row (a multiple of eight rows behind the panel's start) + kStepBytes * step.
__device__ __forceinline__ uint64_t rows_descriptor(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroupStride = uint64_t{kPanelAlignment >> 4} << 32;
  return kSwizzle128 | kGroupStride | uint64_t{1} << 16 | (address & 0x3ffff) >> 4;
}

// Operand B with 16 of a panel's rows as the depth, from `address` (a multiple of eight rows behind the panel's start)
// on; further columns than 64 lie in panels that are panel_bytes apart.
__device__ __forceinline__ uint64_t columns_descriptor(uint32_t address, int panel_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroupStride = uint64_t{kPanelAlignment >> 4} << 32;
  return kSwizzle128 | kGroupStride | static_cast<uint64_t>(panel_bytes >> 4) << 16 | (address & 0x3ffff) >> 4;
}

// The descriptor of what lies `bytes` (a multiple of 16) behind; shared memory ends before its address would overflow.
__device__ __forceinline__ uint64_t advanced(uint64_t descriptor, int bytes) { return descriptor + (bytes >> 4); }

// Before the first product, and where registers of one were written since the last: they are seen by what follows.
__device__ __forceinline__ void fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

// Closes the group of the products since the last commit.
__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

// Waits until at most kPending of the newest groups are still under way.
template <int kPending>
__device__ __forceinline__ void wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// What this thread wrote to shared memory, or waited for (cp.async), is seen by products issued after a barrier.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// Keeps the compiler from moving uses of the accumulators past this point: behind every wait() whose results are read,
// and before the first product where accumulators were written.
template <int kBlocks>
__device__ __forceinline__ void hold(float (&d)[kBlocks][4]) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[n][i])::"memory");
  }
}

// d (+)= A B for 64 x kColumns, 16 deep; without `add` the old d does not count. Defined for kColumns 32, 64, 128, 256.
//   multiply_shared             A, B: rows_descriptor
//   multiply_shared_transposed  A: rows_descriptor, B: columns_descriptor
//   multiply_registers          A: registers, B: columns_descriptor
template <int kColumns>
__device__ void multiply_shared(float (&d)[kColumns / 8][4], uint64_t a, uint64_t b, bool add);
template <int kColumns>
__device__ void multiply_shared_transposed(float (&d)[kColumns / 8][4], uint64_t a, uint64_t b, bool add);
template <int kColumns>
__device__ void multiply_registers(float (&d)[kColumns / 8][4], const uint32_t (&a)[4], uint64_t b, bool add = true);

// Placeholders %0, %1, ... of the first accumulators, and the accumulators themselves.
#define SIMCLR_TEN(tens)                                                                                               \
  "%" tens "0, %" tens "1, %" tens "2, %" tens "3, %" tens "4, %" tens "5, %" tens "6, %" tens "7, %" tens "8, %" tens \
  "9, "
#define SIMCLR_NAMES_16 SIMCLR_TEN("") "%10, %11, %12, %13, %14, %15"
#define SIMCLR_NAMES_32 SIMCLR_TEN("") SIMCLR_TEN("1") SIMCLR_TEN("2") "%30, %31"
#define SIMCLR_NAMES_60 SIMCLR_TEN("") SIMCLR_TEN("1") SIMCLR_TEN("2") SIMCLR_TEN("3") SIMCLR_TEN("4") SIMCLR_TEN("5")
#define SIMCLR_NAMES_64 SIMCLR_NAMES_60 "%60, %61, %62, %63"
#define SIMCLR_NAMES_128                                                                           \
  SIMCLR_NAMES_60 SIMCLR_TEN("6") SIMCLR_TEN("7") SIMCLR_TEN("8") SIMCLR_TEN("9") SIMCLR_TEN("10") \
      SIMCLR_TEN("11") "%120, %121, %122, %123, %124, %125, %126, %127"
#define SIMCLR_BLOCK(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define SIMCLR_BLOCKS_4(n) SIMCLR_BLOCK(n), SIMCLR_BLOCK(n + 1), SIMCLR_BLOCK(n + 2), SIMCLR_BLOCK(n + 3)
#define SIMCLR_BLOCKS_8(n) SIMCLR_BLOCKS_4(n), SIMCLR_BLOCKS_4(n + 4)
#define SIMCLR_BLOCKS_16(n) SIMCLR_BLOCKS_8(n), SIMCLR_BLOCKS_8(n + 8)
#define SIMCLR_BLOCKS_32(n) SIMCLR_BLOCKS_16(n), SIMCLR_BLOCKS_16(n + 16)

// The instruction on the accumulators `names`, which counts their old values where `add` is not zero.
#define SIMCLR_WGMMA(columns, names, a, b, add, layouts)                                         \
  "{\n.reg .pred add;\nsetp.ne.b32 add, " add ", 0;\nwgmma.mma_async.sync.aligned.m64n" #columns \
  "k16.f32.f16.f16 {" names "}, " a ", " b ", add, 1, 1, " layouts ";\n}\n"

// The three products of 64 x columns; p0 to p5 are the placeholders behind those of the accumulators.
#define SIMCLR_DEFINE_PRODUCTS(columns, names, blocks, p0, p1, p2, p3, p4, p5)                                  \
  template <>                                                                                                   \
  __device__ __forceinline__ void multiply_shared<columns>(float(&d)[columns / 8][4], uint64_t a, uint64_t b,   \
                                                           bool add) {                                          \
    asm volatile(SIMCLR_WGMMA(columns, names, p0, p1, p2, "0, 0") : blocks(0) : "l"(a), "l"(b), "r"(int{add})); \
  }                                                                                                             \
  template <>                                                                                                   \
  __device__ __forceinline__ void multiply_shared_transposed<columns>(float(&d)[columns / 8][4], uint64_t a,    \
                                                                      uint64_t b, bool add) {                   \
    asm volatile(SIMCLR_WGMMA(columns, names, p0, p1, p2, "0, 1") : blocks(0) : "l"(a), "l"(b), "r"(int{add})); \
  }                                                                                                             \
  template <>                                                                                                   \
  __device__ __forceinline__ void multiply_registers<columns>(float(&d)[columns / 8][4], const uint32_t(&a)[4], \
                                                              uint64_t b, bool add) {                           \
    asm volatile(SIMCLR_WGMMA(columns, names, "{" p0 ", " p1 ", " p2 ", " p3 "}", p4, p5, "1")                  \
                 : blocks(0)                                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{add}));                          \
  }

SIMCLR_DEFINE_PRODUCTS(32, SIMCLR_NAMES_16, SIMCLR_BLOCKS_4, "%16", "%17", "%18", "%19", "%20", "%21")
SIMCLR_DEFINE_PRODUCTS(64, SIMCLR_NAMES_32, SIMCLR_BLOCKS_8, "%32", "%33", "%34", "%35", "%36", "%37")
SIMCLR_DEFINE_PRODUCTS(128, SIMCLR_NAMES_64, SIMCLR_BLOCKS_16, "%64", "%65", "%66", "%67", "%68", "%69")
SIMCLR_DEFINE_PRODUCTS(256, SIMCLR_NAMES_128, SIMCLR_BLOCKS_32, "%128", "%129", "%130", "%131", "%132", "%133")

// Starts copying rows [row, row + tile_rows) of the matrix into `panels` panels, one behind the other, by all `threads`
// of the block, a multiple of 64: bytes [byte, byte + 128 * panels) of a row. A thread copies kRowsAtOnce rows at once;
// tile_rows is a multiple of kRowsAtOnce * threads / 8, or with kRowsAtOnce = 1 of eight. kUnroll: rounds of the loops
// that are unrolled; where their number is not known, the tests of it would be more than the copies. What lies outside
// the matrix, or from byte `width` of a row on, becomes zero. Wait for the copies (cp_async_wait_group), then
// fence_proxy_async() and a barrier come before a product.
template <int kRowsAtOnce = 1, int kUnroll = 1>
__device__ __forceinline__ void copy_panels(unsigned char* panel, const cuda::RowMatrix& matrix, int row, int tile_rows,
                                            int byte, int width, int panels, int threads) {
  const int chunk = threadIdx.x % 8, first = threadIdx.x / 8, stride = threads / 8;
  const int64_t step = stride * matrix.pitch;
  const unsigned char* rows = matrix.data + static_cast<int64_t>(row + first) * matrix.pitch;
  unsigned char* to = panel + first * kPanelRowBytes + (chunk ^ (first & 7)) * 16;  // & 7 is the same for all its rows
#pragma unroll(kUnroll)
  for (int p = 0; p < panels; ++p, byte += kPanelRowBytes) {
    const int column = byte + 16 * chunk, rows_inside = column < width ? matrix.rows - row : 0;
    const unsigned char* source = rows + column;
#pragma unroll(kUnroll)
    for (int r = 0; r < tile_rows; r += kRowsAtOnce * stride) {
      if (kRowsAtOnce == 1 && first + r >= tile_rows) break;
#pragma unroll
      for (int k = 0; k < kRowsAtOnce; ++k, source += step, to += stride * kPanelRowBytes) {
        ptx::cp_async<16>(to, source, first + r + k * stride < rows_inside ? 16 : 0);
      }
    }
  }
}

}  // namespace simclr::wgmma
