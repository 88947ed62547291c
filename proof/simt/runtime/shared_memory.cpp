// Lays out, fills and frees a block's shared memory.
#include "shared_memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "block.h"
#include "sanitizers.h"

namespace simt {
namespace {

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

void SharedMemory::create(size_t dynamic_bytes) {
  dynamic_bytes_ = dynamic_bytes;
  static_bytes_ = 0;
  variables_.clear();
  used_ = round_up(dynamic_bytes, 8) + kGap;
  slab_bytes_ = used_ + kStaticLimit + kMaxVariables * (kGap + kAlignment);
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, slab_bytes_) != 0) throw std::bad_alloc();
  slab_ = static_cast<char*>(memory);
  std::memset(slab_, 0xFF, slab_bytes_);
  forbid(slab_, slab_bytes_);
  allow(slab_, dynamic_bytes);
}

void SharedMemory::destroy(void* order) {
  allow(slab_, slab_bytes_);
  free_after(order, slab_);
  slab_ = nullptr;
}

void SharedMemory::abandon() {
  allow(slab_, slab_bytes_);
  if (!kRaceDetector) std::free(slab_);
  slab_ = nullptr;
}

char* SharedMemory::variable(const void* key, size_t bytes, size_t alignment) {
  for (const Variable& v : variables_) {
    if (v.key == key) return slab_ + v.offset;
  }
  static_bytes_ += bytes;
  if (static_bytes_ > kStaticLimit || variables_.size() == kMaxVariables || alignment > kAlignment) return nullptr;
  const size_t offset = round_up(used_, alignment > 8 ? alignment : 8);
  variables_.push_back({key, offset, bytes});
  used_ = round_up(offset + bytes, 8) + kGap;
  allow(slab_ + offset, bytes);
  return slab_ + offset;
}

bool SharedMemory::contains(const void* address, size_t bytes) const {
  const char* begin = static_cast<const char*>(address);
  auto inside = [&](size_t offset, size_t size) {
    return begin >= slab_ + offset && begin + bytes <= slab_ + offset + size;
  };
  if (inside(0, dynamic_bytes_)) return true;
  for (const Variable& v : variables_) {
    if (inside(v.offset, v.bytes)) return true;
  }
  return false;
}

void* static_shared(const void* key, size_t bytes, size_t alignment, Site site) {
  Block& block = Block::current();
  void* variable = block.shared().variable(key, bytes, alignment);
  if (variable == nullptr) block.fail("static shared memory: more than 48 KiB, or aligned to more than 1024", site);
  block.check_shared_limit(site);
  return variable;
}

void* dynamic_shared(size_t alignment, Site site) {
  Block& block = Block::current();
  if (block.shared().dynamic_bytes() == 0) block.fail("dynamic shared memory: the launch gave none", site);
  if (alignment > 1024) block.fail("dynamic shared memory: aligned to more than 1024", site);
  return block.shared().dynamic();
}

}  // namespace simt
