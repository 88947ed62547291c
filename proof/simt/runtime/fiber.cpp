// The context switch (x86-64 assembly, ucontext elsewhere) and the stacks.
#include "fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <new>

#include "sanitizers.h"

namespace simt {
namespace {

#ifdef __x86_64__

// Pushes the registers that a call preserves, swaps stacks, pops the other flow's: 20 times faster than swapcontext,
// which asks the kernel for the signal mask.
__attribute__((naked, noinline)) void swap_stacks(void** /*save: rdi*/, void* /*to: rsi*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

void prepare_stack(Context& fiber, char* stack, size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15});
  *--top = nullptr;  // where entry would return to; keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved_register = 0; saved_register < 6; ++saved_register) *--top = nullptr;
  fiber.stack_pointer = top;
}

void swap(Context& from, Context& to) { swap_stacks(&from.stack_pointer, to.stack_pointer); }
void forget(Context&) {}

#else

ucontext_t* ucontext_of(Context& context) {
  if (context.portable == nullptr) context.portable = new ucontext_t;
  return static_cast<ucontext_t*>(context.portable);
}

void prepare_stack(Context& fiber, char* stack, size_t bytes, void (*entry)()) {
  ucontext_t* context = ucontext_of(fiber);
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = bytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}

void swap(Context& from, Context& to) { swapcontext(ucontext_of(from), ucontext_of(to)); }
void forget(Context& fiber) {
  delete static_cast<ucontext_t*>(fiber.portable);
  fiber.portable = nullptr;
}

#endif

void announce_switch([[maybe_unused]] Context& from, [[maybe_unused]] Context& to, [[maybe_unused]] bool for_good) {
#ifdef SIMT_ASAN
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.asan_fake_stack, to.stack_low, to.stack_bytes);
#endif
#ifdef SIMT_TSAN
  constexpr unsigned kNoOrder = 1;  // a switch by itself orders nothing: on a GPU there is none
  __tsan_switch_to_fiber(to.tsan_fiber, kNoOrder);
#endif
}

}  // namespace

void StackArena::reserve(int count, size_t bytes) {
  // The race detector knows a new mapping for untouched memory; a used stack it would hold against the next fiber.
  if (count <= count_ && bytes == bytes_ && !kRaceDetector) return;
  release();
  void* memory =
      mmap(nullptr, bytes * count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<char*>(memory);
  count_ = count;
  bytes_ = bytes;
  for (int i = 0; i < count && !kRaceDetector; ++i) mprotect(base_ + bytes * i, kGuardBytes, PROT_NONE);
}

void StackArena::release() {
  if (base_ == nullptr) return;
  for (int i = 0; i < count_; ++i) allow(stack(i), usable_bytes());
  munmap(base_, bytes_ * count_);
  base_ = nullptr;
}

void create_fiber(Context& fiber, char* stack, size_t bytes, void (*entry)()) {
  allow(stack, bytes);  // an abandoned fiber's frames may still be forbidden here
  fiber.stack_low = stack;
  fiber.stack_bytes = bytes;
  fiber.asan_fake_stack = nullptr;
  prepare_stack(fiber, stack, bytes, entry);
#ifdef SIMT_TSAN
  fiber.tsan_fiber = __tsan_create_fiber(0);
#endif
}

void destroy_fiber(Context& fiber) {
  forget(fiber);
#ifdef SIMT_TSAN
  __tsan_destroy_fiber(fiber.tsan_fiber);
  fiber.tsan_fiber = nullptr;
#endif
}

void release_in_the_name_of([[maybe_unused]] Context& fiber, [[maybe_unused]] Context& caller,
                            [[maybe_unused]] void* at) {
#ifdef SIMT_TSAN
  constexpr unsigned kNoOrder = 1;
  __tsan_switch_to_fiber(fiber.tsan_fiber, kNoOrder);
  order_release(at);
  __tsan_switch_to_fiber(caller.tsan_fiber, kNoOrder);
#endif
}

void adopt_host_thread([[maybe_unused]] Context& host) {
#ifdef SIMT_TSAN
  host.tsan_fiber = __tsan_get_current_fiber();
#endif
}

void switch_to(Context& from, Context& to) {
  announce_switch(from, to, false);
  swap(from, to);
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(from.asan_fake_stack, nullptr, nullptr);
#endif
}

void switch_for_good(Context& from, Context& to) {
  announce_switch(from, to, true);
  swap(from, to);
  __builtin_unreachable();
}

void entered_from([[maybe_unused]] Context& from) {
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &from.stack_low, &from.stack_bytes);
#endif
}

}  // namespace simt
