// __syncthreads, the barrier of a grid and the *_sync warp functions. __activemask is left out: which lanes happen to
// run together is not something a kernel may build on.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "api.h"

inline void __syncthreads(SIMT_SITE) { ::simt::barrier_sync(0, 0, 0, "__syncthreads", site); }
inline int __syncthreads_count(int predicate, SIMT_SITE) {
  return ::simt::barrier_sync(0, 0, predicate, "__syncthreads_count", site).count;
}
inline int __syncthreads_or(int predicate, SIMT_SITE) {
  return ::simt::barrier_sync(0, 0, predicate, "__syncthreads_or", site).count != 0;
}
inline int __syncthreads_and(int predicate, SIMT_SITE) {
  const ::simt::Votes votes = ::simt::barrier_sync(0, 0, predicate, "__syncthreads_and", site);
  return votes.count == votes.threads;
}

namespace cooperative_groups {

struct grid_group {
  void sync(SIMT_SITE) const { ::simt::grid_sync(site); }
};
inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups

inline void __threadfence() { ::simt::memory_fence(); }
inline void __threadfence_block() { ::simt::memory_fence(); }
inline void __threadfence_system() { ::simt::memory_fence(); }

inline void __syncwarp(unsigned mask = ~0u, SIMT_SITE) { ::simt::warp_sync(mask, site); }

namespace simt {

template <class T>
uint64_t to_bits(T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "a warp operation moves at most 64 bits");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
T shuffle(unsigned mask, T value, Shuffle kind, int argument, int width, Site site) {
  const uint64_t bits = warp_shuffle(mask, to_bits(value), kind, argument, width, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// 32-bit integers only, as __reduce_*_sync.
template <class T>
T reduce(unsigned mask, T value, Reduction kind, Site site) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4, "__reduce_*_sync takes int or unsigned");
  return static_cast<T>(warp_reduce(mask, value, kind, site));
}

}  // namespace simt

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, SIMT_SITE) {
  return ::simt::shuffle(mask, value, ::simt::Shuffle::kIndex, lane, width, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
  return ::simt::shuffle(mask, value, ::simt::Shuffle::kUp, static_cast<int>(delta), width, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
  return ::simt::shuffle(mask, value, ::simt::Shuffle::kDown, static_cast<int>(delta), width, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SIMT_SITE) {
  return ::simt::shuffle(mask, value, ::simt::Shuffle::kXor, lanes, width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
  return ::simt::warp_ballot(mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, SIMT_SITE) {
  return ::simt::warp_ballot(mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_SITE) {
  return ::simt::warp_ballot(mask, predicate == 0, site) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, SIMT_SITE) {
  return ::simt::warp_match_any(mask, ::simt::to_bits(value), site);
}
// The mask where all values are equal, else 0.
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all_equal, SIMT_SITE) {
  const unsigned equal = ::simt::warp_match_any(mask, ::simt::to_bits(value), site);
  *all_equal = equal == mask;
  return *all_equal ? mask : 0;
}

template <class T>
T __reduce_add_sync(unsigned mask, T value, SIMT_SITE) {
  return ::simt::reduce(mask, value, ::simt::Reduction::kAdd, site);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, SIMT_SITE) {
  return ::simt::reduce(mask, value, ::simt::Reduction::kMin, site);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, SIMT_SITE) {
  return ::simt::reduce(mask, value, ::simt::Reduction::kMax, site);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, SIMT_SITE) {
  return ::simt::reduce(mask, value, ::simt::Reduction::kAnd, site);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, SIMT_SITE) {
  return ::simt::reduce(mask, value, ::simt::Reduction::kOr, site);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, SIMT_SITE) {
  return ::simt::reduce(mask, value, ::simt::Reduction::kXor, site);
}
