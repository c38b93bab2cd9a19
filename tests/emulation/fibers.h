// Fibers: stacks that the scheduler switches between, one for each CUDA thread that is waiting.
// On x86-64 a switch is a dozen instructions; elsewhere ucontext (about six times slower).
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__x86_64__) && !defined(DEEPGEN_EMULATION_UCONTEXT)
#define DEEPGEN_OWN_SWITCH 1
#else
#define DEEPGEN_OWN_SWITCH 0
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define DEEPGEN_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define DEEPGEN_ASAN 0
#endif

namespace deepgen::emulation {

struct Fiber {
#if DEEPGEN_OWN_SWITCH
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  void* mapping = nullptr;  // lowest address: the guard page
  size_t mapping_bytes = 0;
  const void* stack_bottom = nullptr;  // what ASan is told: above the guard page
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;
};

// The fiber that was left last, so that the one entered can tell ASan where it came from.
inline Fiber* left_fiber = nullptr;

#if DEEPGEN_OWN_SWITCH
// Saves the callee-saved registers and the stack pointer, loads those of the other stack.
// The floating-point control words are left alone: no kernel changes them.
__attribute__((naked, noinline, noipa)) inline void switch_stack(void** /*save*/, void* /*load*/) {
  asm("pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "ret");
}
#endif

// To be called first on a stack that has just been entered.
__attribute__((no_sanitize("address"))) inline void arrived([[maybe_unused]] Fiber& self) {
#if DEEPGEN_ASAN
  __sanitizer_finish_switch_fiber(self.fake_stack, &left_fiber->stack_bottom,
                                  &left_fiber->stack_bytes);
#endif
}

__attribute__((no_sanitize("address"))) inline void switch_fiber(Fiber& from, Fiber& to) {
  left_fiber = &from;
#if DEEPGEN_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack_bottom, to.stack_bytes);
#endif
#if DEEPGEN_OWN_SWITCH
  switch_stack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
  arrived(from);
}

// Makes the fiber start in entry() at the next switch to it. Whatever ran on it is forgotten.
inline void reset_fiber(Fiber& fiber, void (*entry)()) {
#if DEEPGEN_ASAN
  __asan_unpoison_memory_region(fiber.stack_bottom, fiber.stack_bytes);
  fiber.fake_stack = nullptr;
#endif
  auto* bottom = static_cast<char*>(const_cast<void*>(fiber.stack_bottom));
#if DEEPGEN_OWN_SWITCH
  auto* top = reinterpret_cast<void**>(bottom + fiber.stack_bytes);
  *--top = nullptr;  // entry() never returns; unwinders stop here
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = bottom;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
}

// A stack with a guard page below: overflow is a segmentation fault, not silent corruption.
inline Fiber* new_fiber(size_t stack_bytes, void (*entry)()) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  auto* fiber = new Fiber;
  fiber->mapping_bytes = stack_bytes + page;
  fiber->mapping = mmap(nullptr, fiber->mapping_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (fiber->mapping == MAP_FAILED) {
    delete fiber;
    throw std::bad_alloc();
  }
  mprotect(fiber->mapping, page, PROT_NONE);
  fiber->stack_bottom = static_cast<char*>(fiber->mapping) + page;
  fiber->stack_bytes = stack_bytes;
  reset_fiber(*fiber, entry);
  return fiber;
}

}  // namespace deepgen::emulation
