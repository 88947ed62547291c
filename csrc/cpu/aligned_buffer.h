// Uninitialised scratch memory aligned to a cache line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace simclr::cpu {

constexpr size_t kCacheLine = 64;

template <class T>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t size)
      : data_(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(kCacheLine)))) {}
  ~AlignedBuffer() { ::operator delete(data_, std::align_val_t(kCacheLine)); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

}  // namespace simclr::cpu
