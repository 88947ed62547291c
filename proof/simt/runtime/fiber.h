// Fibers: the stacks that CUDA threads run on, and the switch between them, known to the sanitizers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

// One flow of control: a fiber's, or that of the host thread which runs the fibers.
struct Context {
  void* stack_pointer = nullptr;  // where the flow stopped; unused by the portable switch
  void* portable = nullptr;       // ucontext_t of the portable switch
  const void* stack_low = nullptr;
  size_t stack_bytes = 0;
  void* asan_fake_stack = nullptr;
  void* tsan_fiber = nullptr;
};

// Memory for `count` stacks of `bytes` each, every one above an inaccessible page.
class StackArena {
 public:
  StackArena() = default;
  StackArena(const StackArena&) = delete;
  StackArena& operator=(const StackArena&) = delete;
  ~StackArena() { release(); }

  void reserve(int count, size_t bytes);  // throws std::bad_alloc
  char* stack(int i) const { return base_ + bytes_ * i + kGuardBytes; }
  size_t usable_bytes() const { return bytes_ - kGuardBytes; }

 private:
  static constexpr size_t kGuardBytes = 4096;
  void release();

  char* base_ = nullptr;
  int count_ = 0;
  size_t bytes_ = 0;
};

// Prepares a fiber that calls entry() when first switched to; entry must leave through switch_for_good.
void create_fiber(Context& fiber, char* stack, size_t bytes, void (*entry)());
void destroy_fiber(Context& fiber);
// order_release(at) by a fiber that was left where it stood; the caller's context is the running one.
void release_in_the_name_of(Context& fiber, Context& caller, void* at);
// Makes the calling host thread's own flow a context that fibers can switch to.
void adopt_host_thread(Context& host);

void switch_to(Context& from, Context& to);
[[noreturn]] void switch_for_good(Context& from, Context& to);
// To be called first on a new fiber, with the context that it was entered from.
void entered_from(Context& from);

}  // namespace simt
