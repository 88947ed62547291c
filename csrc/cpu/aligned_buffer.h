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
  AlignedBuffer() = default;
  explicit AlignedBuffer(int64_t size) { at_least(size); }
  ~AlignedBuffer() { release(); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  // Room for `size` elements; where there was less, what stood there is lost.
  T* at_least(int64_t size) {
    if (size > capacity_) {
      release();
      data_ = static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(kCacheLine)));
      capacity_ = size;
    }
    return data_;
  }
  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  void release() { ::operator delete(data_, std::align_val_t(kCacheLine)); }

  T* data_ = nullptr;
  int64_t capacity_ = 0;
};

}  // namespace simclr::cpu
