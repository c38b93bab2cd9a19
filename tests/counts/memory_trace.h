// What the kernels did to memory since `start`: see memory_trace.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trace {

struct Counts {
  uint64_t bytes;        // read of the watched memory
  uint64_t fetched;      // of them, bytes that a cache of 64 KiB had to fetch
  uint64_t accesses;     // reads and writes, of anything
  uint64_t allocations;  // calls of operator new
};

void start(const void* watched, size_t size);
Counts stop();

}  // namespace trace
