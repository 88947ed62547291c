// Rows of z, of u and of the gradient in memory, as all but the tensor cores read and write them: entry by entry, four at
// a time, or chunk by chunk.
#pragma once

#include <cstdint>
#include <type_traits>

#include "launch.cuh"
#include "ntxent_problem.h"

namespace simclr::cuda {

// The type of u of float32 views, of which the others are __half and double: hi and lo in fp16 (ntxent_problem.h).
struct SplitHalf {};

// The type of u of views of T.
template <class T>
using OperandOf = std::conditional_t<std::is_same_v<T, float>, SplitHalf,
                                     std::conditional_t<std::is_same_v<T, double>, double, __half>>;

// Four entries side by side, which are loaded and stored at once where they are aligned.
template <class T>
struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) Four {
  T x[4];
};

template <class T>
__device__ __forceinline__ bool has_four(const T* x, int64_t k, int64_t d) {
  return k + 4 <= d && reinterpret_cast<uintptr_t>(x + k) % alignof(Four<T>) == 0;  // of any row: strides are free
}

// Entries [k, k + 4) of x [d], zero from d on.
template <class W, class T>
__device__ __forceinline__ void load_four(W (&to)[4], const T* x, int64_t k, int64_t d) {
  Four<T> four = {};
  if (has_four(x, k, d)) {
    four = *reinterpret_cast<const Four<T>*>(x + k);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (k + i < d) four.x[i] = x[k + i];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = static_cast<W>(four.x[i]);
}

// Writes those of entries [k, k + 4) of x [d] that there are.
template <class T, class W>
__device__ __forceinline__ void store_four(T* x, int64_t k, int64_t d, const W (&from)[4]) {
  Four<T> four;
#pragma unroll
  for (int i = 0; i < 4; ++i) four.x[i] = static_cast<T>(from[i]);
  if (has_four(x, k, d)) {
    *reinterpret_cast<Four<T>*>(x + k) = four;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (k + i < d) x[k + i] = four.x[i];
    }
  }
}

template <class E>
struct UnitRows {
  E* data;
  int64_t columns;  // of a row

  template <class W>
  __device__ W at(int64_t row, int64_t k) const {
    return static_cast<W>(data[row * columns + k]);
  }
  template <class W>
  __device__ void load_four(W (&u)[4], int64_t row, int64_t k) const {  // zero from `columns` on
    cuda::load_four(u, data + row * columns, k, columns);
  }
  template <class W>
  __device__ void set(int64_t row, int64_t k, const W (&u)[4]) const {  // from entry k on; k is a multiple of 4
    E* to = data + row * columns + k;
    Four<E> four;
#pragma unroll
    for (int i = 0; i < 4; ++i) four.x[i] = static_cast<E>(u[i]);
    if (k + 4 <= columns) {
      *reinterpret_cast<Four<E>*>(to) = four;
    } else {  // double, whose rows have an even number of columns
      to[0] = four.x[0], to[1] = four.x[1];
    }
  }

  // The entries from k on that lie in 16 bytes of each part, in units of kChunkUnit.
  static constexpr int kPerChunk = 16 / sizeof(E);
  template <class W>
  __device__ void load_chunk(W (&u)[kPerChunk], int64_t row, int64_t k) const {
    const uint4 raw = *reinterpret_cast<const uint4*>(data + row * columns + k);
    E x[kPerChunk];
    memcpy(x, &raw, sizeof x);
#pragma unroll
    for (int i = 0; i < kPerChunk; ++i) u[i] = static_cast<W>(x[i]);
  }
  static constexpr float kChunkUnit = 1;
};

template <>
struct UnitRows<SplitHalf> {
  __half* data;
  int64_t columns;  // of a part

  __device__ __half* part(int64_t row, int part) const { return data + (2 * row + part) * columns; }
  template <class W>
  __device__ W at(int64_t row, int64_t k) const {
    return (static_cast<W>(part(row, 0)[k]) + static_cast<W>(part(row, 1)[k])) * (1 / kSplitScale);
  }
  template <class W>
  __device__ void load_four(W (&u)[4], int64_t row, int64_t k) const {  // zero from `columns` on
    W lo[4];
    cuda::load_four(u, part(row, 0), k, columns);
    cuda::load_four(lo, part(row, 1), k, columns);
#pragma unroll
    for (int i = 0; i < 4; ++i) u[i] = (u[i] + lo[i]) * (1 / kSplitScale);
  }
  template <class W>
  __device__ void set(int64_t row, int64_t k, const W (&u)[4]) const {
    Four<__half> hi, lo;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const W scaled = u[i] * kSplitScale;
      hi.x[i] = __float2half_rn(static_cast<float>(scaled));
      lo.x[i] = __float2half_rn(static_cast<float>(scaled - static_cast<W>(hi.x[i])));
    }
    *reinterpret_cast<Four<__half>*>(part(row, 0) + k) = hi;
    *reinterpret_cast<Four<__half>*>(part(row, 1) + k) = lo;
  }

  static constexpr int kPerChunk = 8;
  template <class W>
  __device__ void load_chunk(W (&u)[kPerChunk], int64_t row, int64_t k) const {
    W lo[kPerChunk];
    UnitRows<__half>{data, columns}.load_chunk(u, 2 * row, k);
    UnitRows<__half>{data, columns}.load_chunk(lo, 2 * row + 1, k);
#pragma unroll
    for (int i = 0; i < kPerChunk; ++i) u[i] += lo[i];
  }
  static constexpr float kChunkUnit = 1 / kSplitScale;
};

template <class E>
UnitRows<E> unit_rows(const void* data, int64_t columns) {
  using Element = decltype(UnitRows<E>::data);
  return {static_cast<Element>(const_cast<void*>(data)), columns};
}

}  // namespace simclr::cuda
