// How a launch is run, and what it left behind; set and read from Python through the C functions below.
#pragma once

#include <cstdint>

// Mirrored by Options in proof/simt/library.py.
struct SimtOptions {
  uint64_t seed;               // 0: threads and blocks in order; odd: one warp runs ahead; even: shuffled each round
  int32_t eager_copies;        // cp.async lands when issued (1), or when waited for (0)
  int32_t host_threads;        // blocks run on so many host threads (1 under a sanitizer)
  int32_t shared_bytes_optin;  // the device's limit per block; 99 KiB is the least among sm_80 and newer
  int32_t multiprocessors;     // what cudaDeviceGetAttribute tells a launcher
  int32_t truncating_tensor_cores;  // mma adds as the hardware does (1), or rounds to nearest (0)
  int32_t last_block_only;          // of every launch only the last block runs (1): for grids too large to run
};

extern "C" {
void simt_configure(const SimtOptions* options);
// The message of the last failed launch, or "". Reading it clears it.
const char* simt_take_error();
}

namespace simt {

const SimtOptions& options();

}  // namespace simt
