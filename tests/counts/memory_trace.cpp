// Counts every read and write of the kernels. -fsanitize=thread makes the compiler call a function
// at each; here these functions are ours, and nothing of the thread sanitizer is linked. A count
// depends on neither clock nor neighbours, and a loop over the weights cannot escape it.
#include "memory_trace.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

constexpr size_t line = 64, lines = 1024;  // direct-mapped

std::atomic<uintptr_t> begin{0};
std::atomic<size_t> size{0};
std::atomic<uint64_t> bytes{0}, fetched{0}, accesses{0}, allocations{0};
std::atomic<uintptr_t> cached[lines];

void note(uintptr_t address, size_t count, bool read) {
  accesses.fetch_add(1, std::memory_order_relaxed);
  if (!read || address - begin.load(std::memory_order_relaxed) >= size) return;
  bytes.fetch_add(count, std::memory_order_relaxed);
  for (uintptr_t at = address / line; at <= (address + count - 1) / line; ++at) {
    if (cached[at % lines].exchange(at, std::memory_order_relaxed) != at)
      fetched.fetch_add(line, std::memory_order_relaxed);
  }
}

}  // namespace

namespace trace {

void start(const void* watched, size_t watched_size) {
  for (auto& tag : cached) tag = 0;
  begin = reinterpret_cast<uintptr_t>(watched);
  size = watched_size;
  bytes = fetched = accesses = allocations = 0;
}

Counts stop() {
  return {bytes, fetched, accesses, allocations};
}

}  // namespace trace

void* operator new(size_t count) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* const memory = std::malloc(count ? count : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}

// ---------------------------------------------------------------- what the compiler calls

extern "C" {

void __tsan_init() {}
void __tsan_read_range(void* address, size_t count) {
  note(reinterpret_cast<uintptr_t>(address), count, true);
}
void __tsan_write_range(void* address, size_t count) {
  note(reinterpret_cast<uintptr_t>(address), count, false);
}
void __tsan_vptr_update(void** address, void*) {
  note(reinterpret_cast<uintptr_t>(address), 8, false);
}

#define ACCESS(name, count)                                   \
  void __tsan_##name##read##count(void* address) {            \
    note(reinterpret_cast<uintptr_t>(address), count, true);  \
  }                                                           \
  void __tsan_##name##write##count(void* address) {           \
    note(reinterpret_cast<uintptr_t>(address), count, false); \
  }
ACCESS(, 1)
ACCESS(, 2)
ACCESS(, 4)
ACCESS(, 8)
ACCESS(, 16)
ACCESS(unaligned_, 2)
ACCESS(unaligned_, 4)
ACCESS(unaligned_, 8)
ACCESS(unaligned_, 16)

#define ATOMICS(bits, Number)                                                              \
  Number __tsan_atomic##bits##_load(const volatile Number* at, int) {                      \
    return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                          \
  }                                                                                        \
  void __tsan_atomic##bits##_store(volatile Number* at, Number value, int) {               \
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                         \
  }                                                                                        \
  Number __tsan_atomic##bits##_fetch_add(volatile Number* at, Number value, int) {         \
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);                                \
  }                                                                                        \
  Number __tsan_atomic##bits##_fetch_sub(volatile Number* at, Number value, int) {         \
    return __atomic_fetch_sub(at, value, __ATOMIC_SEQ_CST);                                \
  }                                                                                        \
  Number __tsan_atomic##bits##_exchange(volatile Number* at, Number value, int) {          \
    return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);                               \
  }                                                                                        \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile Number* at, Number* expected, \
                                                    Number value, int, int) {              \
    return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_SEQ_CST,       \
                                       __ATOMIC_SEQ_CST);                                  \
  }
ATOMICS(8, uint8_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)

}  // extern "C"
