// A block's shared memory: dynamic first, then the static variables in the order threads come by them. All of it is
// 0xFF bytes at first (NaN as fp16, bf16, fp32 and fp64), and AddressSanitizer forbids the gaps between variables.
#pragma once

#include <cstddef>
#include <vector>

namespace simt {

class SharedMemory {
 public:
  void create(size_t dynamic_bytes);
  // `order`: what the block's threads released when they returned, for the race detector.
  void destroy(void* order);
  void abandon();  // after an error

  char* dynamic() const { return slab_; }
  size_t dynamic_bytes() const { return dynamic_bytes_; }
  size_t static_bytes() const { return static_bytes_; }
  // The variable of that key, made now if it is new; nullptr where the static variables exceed kStaticLimit.
  char* variable(const void* key, size_t bytes, size_t alignment);
  bool contains(const void* address, size_t bytes) const;

  static constexpr size_t kStaticLimit = 48 * 1024;  // CUDA's, for variables declared in the kernel

 private:
  struct Variable {
    const void* key;
    size_t offset;
    size_t bytes;
  };
  static constexpr size_t kAlignment = 1024;
  static constexpr size_t kGap = 128;
  static constexpr size_t kMaxVariables = 64;

  char* slab_ = nullptr;
  size_t slab_bytes_ = 0;
  size_t used_ = 0;
  size_t dynamic_bytes_ = 0;
  size_t static_bytes_ = 0;
  std::vector<Variable> variables_;
};

}  // namespace simt
