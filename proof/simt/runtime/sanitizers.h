// What the runtime tells AddressSanitizer and ThreadSanitizer. The runtime itself is compiled without them, so that
// only the kernels' own accesses are watched; accesses it makes in a kernel's name go through watch_read/watch_write.
#pragma once

#include <cstddef>
#include <cstdlib>

#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef SIMT_TSAN
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
}
#endif

namespace simt {

// Host threads are fixed to one under a sanitizer: reports then follow from the schedule alone.
#if defined(SIMT_ASAN) || defined(SIMT_TSAN)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

#ifdef SIMT_TSAN
constexpr bool kRaceDetector = true;
#else
constexpr bool kRaceDetector = false;
#endif

// "All that happened before order_release(at) happened before what follows order_acquire(at)."
inline void order_release([[maybe_unused]] void* at) {
#ifdef SIMT_TSAN
  __tsan_release(at);
#endif
}
inline void order_acquire([[maybe_unused]] void* at) {
#ifdef SIMT_TSAN
  __tsan_acquire(at);
#endif
}

// Frees memory after all that order_release(at) covers, without ordering the caller after it: blocks of a grid stay
// unordered among each other, so that a race between two of them on global memory is seen.
inline void free_after([[maybe_unused]] void* at, void* memory) {
#ifdef SIMT_TSAN
  constexpr unsigned kNoOrder = 1;
  void* const caller = __tsan_get_current_fiber();
  void* const keeper = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(keeper, kNoOrder);
  __tsan_acquire(at);
  std::free(memory);
  __tsan_switch_to_fiber(caller, kNoOrder);
  __tsan_destroy_fiber(keeper);
#else
  std::free(memory);
#endif
}

inline void watch_read([[maybe_unused]] const void* address, [[maybe_unused]] size_t bytes) {
#ifdef SIMT_TSAN
  __tsan_read_range(const_cast<void*>(address), bytes);
#endif
}
inline void watch_write([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#ifdef SIMT_TSAN
  __tsan_write_range(address, bytes);
#endif
}

inline void forbid([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#ifdef SIMT_ASAN
  __asan_poison_memory_region(address, bytes);
#endif
}
inline void allow([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#ifdef SIMT_ASAN
  __asan_unpoison_memory_region(address, bytes);
#endif
}

}  // namespace simt
