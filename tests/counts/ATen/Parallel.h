// In place of torch's: the kernels alone, on as many threads as a test asks for.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

namespace at {

inline int64_t threads = 1;

inline int64_t get_num_threads() {
  return threads;
}

template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  const int64_t most = (end - begin + grain - 1) / grain;
  const int64_t count = most < threads ? most : threads;
  if (count < 2) {
    if (begin < end) body(begin, end);
    return;
  }
  const int64_t share = (end - begin + count - 1) / count;
  std::vector<std::thread> others;
  for (int64_t first = begin + share; first < end; first += share)
    others.emplace_back([=, &body] { body(first, first + share < end ? first + share : end); });
  body(begin, begin + share);
  for (std::thread& other : others) other.join();
}

}  // namespace at
