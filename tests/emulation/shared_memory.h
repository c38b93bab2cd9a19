// The shared memory of the block that runs: heap blocks of exactly the declared sizes, so that ASan
// sees the first byte past the end; filled with a pattern that is NaN in every floating-point type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibers.h"

namespace deepgen::emulation {

struct SharedMemory {
  static constexpr size_t static_limit = 48 * 1024;   // of the language
  static constexpr size_t opt_in_limit = 227 * 1024;  // of compute capability 9.0
  static constexpr size_t dynamic_alignment = 128;    // what DEEPGEN_DYNAMIC_SHARED promises

  struct Array {
    const void* site;
    void* allocation;
    void* data;
    size_t bytes;
    uint64_t block;  // the block it was filled for
  };

  std::vector<Array> arrays;
  void* dynamic = nullptr;
  size_t dynamic_bytes = 0;
  uint64_t block = 0;

  void start_block(size_t shared_bytes) {
    ++block;
    if (!dynamic) {
      if (posix_memalign(&dynamic, dynamic_alignment, shared_bytes)) throw std::bad_alloc();
      dynamic_bytes = shared_bytes;
    }
    std::memset(dynamic, 0xff, dynamic_bytes);
  }

  // The array declared at a site: one for all threads of the block, a fresh one for every block.
  void* array(const void* site, size_t bytes, size_t alignment) {
    for (Array& a : arrays) {
      if (a.site != site) continue;
      if (a.block != block) std::memset(a.data, 0xff, bytes);
      a.block = block;
      return a.data;
    }
    size_t total = bytes;
    for (const Array& a : arrays) total += a.bytes;
    if (total > static_limit || total + dynamic_bytes > opt_in_limit) {
      throw std::runtime_error("shared memory: " + std::to_string(total) + " bytes static and " +
                               std::to_string(dynamic_bytes) +
                               " dynamic are more than a block has");
    }
    // Under ASan no better aligned than the type asks for, so that UBSan sees a float4 in a
    // float[].
    const size_t pad = DEEPGEN_ASAN && alignment <= 8 ? 8 : 0;
    Array a{site, nullptr, nullptr, bytes, block};
    if (posix_memalign(&a.allocation, 128, bytes + pad)) throw std::bad_alloc();
    a.data = static_cast<char*>(a.allocation) + pad;
    std::memset(a.data, 0xff, bytes);
#if DEEPGEN_ASAN
    __asan_poison_memory_region(a.allocation, pad);
#endif
    arrays.push_back(a);
    return a.data;
  }

  void clear() {
    for (const Array& a : arrays) std::free(a.allocation);
    arrays.clear();
    std::free(dynamic);
    dynamic = nullptr;
    dynamic_bytes = 0;
  }
};

inline SharedMemory shared_memory;

}  // namespace deepgen::emulation

#define DEEPGEN_SHARED(T, name, count) \
  static char name##_site;             \
  T(&name)                             \
  [count] = *static_cast<T(*)[count]>( \
      deepgen::emulation::shared_memory.array(&name##_site, sizeof(T) * (count), alignof(T)))

#define DEEPGEN_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(deepgen::emulation::shared_memory.dynamic)
