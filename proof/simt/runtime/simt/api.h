// What a kernel compiled for the CPU calls: the runtime's functions, as the CUDA-named wrappers beside this file use
// them. No container or standard algorithm here: kernels see as little of the runtime as possible.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>

namespace simt {

// A place in a kernel's source. As a default argument, Site::here() is the caller's.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// The last parameter of what a kernel calls.
#define SIMT_SITE ::simt::Site site = ::simt::Site::here()

// threadIdx, blockIdx, blockDim and gridDim of the running CUDA thread.
struct Coordinates {
  uint3 thread;
  uint3 block;
  dim3 block_dim;
  dim3 grid_dim;
};
extern __thread const Coordinates* coordinates;

// Ends the launch with an error that names the kernel, the block, the thread and the site.
[[noreturn]] void fail(const char* what, Site site);

// ---- Barriers. id 0 with threads 0 is __syncthreads: all of the block's threads that have not returned.
struct Votes {
  int count;  // how many of the arriving threads passed a nonzero predicate
  int threads;
};
Votes barrier_sync(int id, int threads, int predicate, const char* name, Site site);
void memory_fence();
// All threads of all blocks of a resident launch.
void grid_sync(Site site);

// ---- Warp operations. `mask` names the lanes; those that have returned are dropped from it.
enum class Shuffle { kIndex, kUp, kDown, kXor };
void warp_sync(unsigned mask, Site site);
uint64_t warp_shuffle(unsigned mask, uint64_t bits, Shuffle kind, int argument, int width, Site site);
unsigned warp_ballot(unsigned mask, bool predicate, Site site);
unsigned warp_match_any(unsigned mask, uint64_t bits, Site site);
enum class Reduction { kAdd, kMin, kMax, kAnd, kOr, kXor };
int64_t warp_reduce(unsigned mask, int64_t value, Reduction kind, Site site);

// ---- Shared memory, filled with 0xFF bytes (NaN in every float type) before a block sees it.
// `key` names the variable; the first thread of a block that comes by makes it.
void* static_shared(const void* key, size_t bytes, size_t alignment, Site site);
void* dynamic_shared(size_t alignment, Site site);

// ---- Copies and tensor cores; see ptx.h.
void copy_async(void* shared, const void* global, int bytes, int source_bytes, Site site);
void copy_async_commit(Site site);
void copy_async_wait(int pending);
void load_matrices(uint32_t* registers, const void* row, bool transposed, Site site);
void multiply_accumulate(float* d, const uint32_t* a, const uint32_t* b, Site site);

// ---- Launch. Runs call(body) once per CUDA thread; returns when the grid is done (a cudaError_t as int).
// Blocks run one after the other, or, where they are `resident`, side by side: they may then wait for each other.
int launch_grid(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, bool resident,
                void (*call)(const void* body), const void* body);

}  // namespace simt
