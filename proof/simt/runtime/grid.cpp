// Launches: limits checked as the CUDA runtime does, blocks run on host threads, the first error kept for Python.
#include <driver_types.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "block.h"
#include "options.h"

namespace simt {
namespace {

SimtOptions current_options{0, 0, 1, 99 * 1024, 4};

std::mutex mutex;  // guards the three below
std::string last_error;
cudaError_t last_code = cudaSuccess;
std::map<const void*, size_t> dynamic_shared_limits;  // by kernel; CUDA's default where absent

constexpr size_t kDefaultDynamicLimit = 48 * 1024;
// Threads at once, each of which needs two mappings of the host's 65530 for its stack.
constexpr size_t kMaxResidentThreads = 24 * 1024;

cudaError_t record(cudaError_t code, const std::string& message) {
  std::lock_guard<std::mutex> lock(mutex);
  if (last_error.empty()) last_error = message;
  last_code = code;
  return code;
}

cudaError_t check_limits(const Launch& launch, const void* kernel) {
  auto refuse = [&](cudaError_t code, const std::string& why) {
    return record(code, std::string("launch of ") + launch.kernel + " refused: " + why);
  };
  const dim3 b = launch.block, g = launch.grid;
  if (b.x == 0 || b.y == 0 || b.z == 0 || b.x > 1024 || b.y > 1024 || b.z > 64 ||
      1ull * b.x * b.y * b.z > kMaxThreads) {
    return refuse(cudaErrorInvalidConfiguration, "block of " + std::to_string(b.x) + " x " + std::to_string(b.y) +
                                                     " x " + std::to_string(b.z) + " threads");
  }
  if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7FFFFFFFu || g.y > 65535 || g.z > 65535) {
    return refuse(cudaErrorInvalidConfiguration, "grid of " + std::to_string(g.x) + " x " + std::to_string(g.y) +
                                                     " x " + std::to_string(g.z) + " blocks");
  }
  std::lock_guard<std::mutex> lock(mutex);
  const auto opted = dynamic_shared_limits.find(kernel);
  const size_t limit = opted == dynamic_shared_limits.end() ? kDefaultDynamicLimit : opted->second;
  if (launch.dynamic_bytes > limit) {
    last_error = std::string("launch of ") + launch.kernel + " refused: " + std::to_string(launch.dynamic_bytes) +
                 " bytes of dynamic shared memory, the kernel may take " + std::to_string(limit);
    return last_code = cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

uint3 block_index(size_t i, dim3 grid) {
  return {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
          static_cast<unsigned>(i / grid.x / grid.y)};
}

// The blocks in the order they start: 0, 1, 2, ... for seed 0, else shuffled, for nothing may depend on it.
std::vector<int> block_order(size_t blocks, uint64_t seed) {
  if (current_options.last_block_only) return {static_cast<int>(blocks - 1)};
  std::vector<int> order(blocks);
  for (size_t i = 0; i < blocks; ++i) order[i] = static_cast<int>(i);
  if (seed != 0) Random(seed).shuffle(order);
  return order;
}

}  // namespace

const SimtOptions& options() { return current_options; }

// Runs all blocks side by side on this host thread: by turns, or with an odd seed one as far as it can before the next.
std::string run_together(const Launch& launch, const std::vector<int>& order, uint64_t seed) {
  static thread_local std::vector<std::unique_ptr<Block>> blocks;
  while (blocks.size() < order.size()) blocks.emplace_back(new Block);
  for (size_t i = 0; i < order.size(); ++i) blocks[i]->start(launch, block_index(order[i], launch.grid));
  Random random(seed);
  std::string error;
  for (bool progress = true; progress && error.empty();) {
    progress = false;
    for (size_t i = 0; i < order.size() && error.empty(); ++i) {
      bool advanced = !blocks[i]->is_done() && blocks[i]->advance(seed, random);
      progress |= advanced;
      while (advanced && seed % 2 == 1 && !blocks[i]->is_done()) advanced = blocks[i]->advance(seed, random);
      error = blocks[i]->error();
    }
  }
  for (size_t i = 0; i < order.size() && error.empty(); ++i) {
    if (!blocks[i]->is_done()) error = blocks[i]->deadlock();
  }
  for (size_t i = 0; i < order.size(); ++i) {
    if (!error.empty()) blocks[i]->stop(error);
    blocks[i]->finish();
    blocks[i]->join();
  }
  return error;
}

int launch_grid(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, bool resident,
                void (*call)(const void*), const void* body) {
  GridBarrier barrier{static_cast<int>(grid.x * grid.y * grid.z)};
  const Launch launch{name,
                      grid,
                      block,
                      shared_bytes,
                      static_cast<size_t>(current_options.shared_bytes_optin),
                      call,
                      body,
                      resident ? &barrier : nullptr};
  if (const cudaError_t refused = check_limits(launch, kernel); refused != cudaSuccess) return refused;

  const std::vector<int> order = block_order(1ull * grid.x * grid.y * grid.z, current_options.seed);
  if (resident && order.size() * launch.threads() > kMaxResidentThreads) {
    return record(cudaErrorCooperativeLaunchTooLarge, std::string("launch of ") + name + " refused: more threads at " +
                                                          "once than this runtime has room for");
  }
  if (resident) {
    if (order.size() > static_cast<size_t>(current_options.multiprocessors)) {
      return record(cudaErrorCooperativeLaunchTooLarge,
                    std::string("launch of ") + name + " refused: " + std::to_string(order.size()) +
                        " blocks at once on " + std::to_string(current_options.multiprocessors) + " multiprocessors");
    }
    const std::string error = run_together(launch, order, current_options.seed);
    return error.empty() ? cudaSuccess : record(cudaErrorLaunchFailure, error);
  }
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  auto work = [&] {
    static thread_local const std::unique_ptr<Block> runner(new Block);  // its stacks serve launch after launch
    for (size_t i; !failed && (i = next++) < order.size();) {
      const uint64_t seed = current_options.seed;
      const std::string error = runner->run(launch, block_index(order[i], grid), seed);
      if (error.empty()) continue;
      failed = true;
      record(cudaErrorLaunchFailure, error);
    }
    runner->join();
  };
  const size_t wanted = kSanitized ? 1 : static_cast<size_t>(std::max(1, current_options.host_threads));
  std::vector<std::thread> helpers;
  for (size_t i = 1; i < std::min(wanted, order.size()); ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

}  // namespace simt

extern "C" {

void simt_configure(const SimtOptions* options) { simt::current_options = *options; }

const char* simt_take_error() {
  static thread_local std::string message;
  std::lock_guard<std::mutex> lock(simt::mutex);
  message = simt::last_error;
  simt::last_error.clear();
  simt::last_code = cudaSuccess;
  return message.c_str();
}

// ---- The part of the CUDA runtime that launchers call.

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;  // a hint
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return simt::record(cudaErrorInvalidValue, "cudaFuncSetAttribute: this attribute is not known here");
  }
  if (value < 0 || value > simt::current_options.shared_bytes_optin) {
    return simt::record(cudaErrorInvalidValue,
                        "cudaFuncSetAttribute: " + std::to_string(value) + " bytes of shared memory, the device has " +
                            std::to_string(simt::current_options.shared_bytes_optin) + " per block");
  }
  std::lock_guard<std::mutex> lock(simt::mutex);
  simt::dynamic_shared_limits[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaPeekAtLastError() { return simt::last_code; }

cudaError_t cudaGetLastError() { return std::exchange(simt::last_code, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t code) {
  switch (code) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    default:
      return "unknown error";
  }
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = simt::current_options.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = simt::current_options.shared_bytes_optin;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    default:
      return simt::record(cudaErrorInvalidValue, "cudaDeviceGetAttribute: attribute not known here");
  }
}

}  // extern "C"
