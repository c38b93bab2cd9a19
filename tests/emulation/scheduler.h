// The emulated device: runs the blocks of a launch one after another, and the threads of a block as
// fibers that change places only where CUDA threads may wait for each other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fibers.h"
#include "order.h"
#include "shared_memory.h"

inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim{}, gridDim{};
inline constexpr int warpSize = 32;

namespace deepgen::emulation {

struct Site {
  const char* file;
  int line;
};

// What a lane brings to a warp collective, and what it takes away.
struct Thread {
  uint3 index;
  const char* collective;
  Site site;
  unsigned mask;
  int source;  // the lane it reads
  alignas(8) unsigned char value[8];
  alignas(8) unsigned char result[8];
};

struct Warp {
  uint32_t exists, runnable, in_collective, returned;
};

struct Scheduler {
  static constexpr size_t stack_bytes = DEEPGEN_ASAN ? 512 * 1024 : 128 * 1024;

  std::mutex one_launch;
  std::thread::id launching;
  std::exception_ptr error;

  void (*invoke)(void*) = nullptr;
  void* kernel = nullptr;
  unsigned n_threads = 0, n_warps = 0;
  std::vector<Thread> threads;
  std::vector<Fiber*> suspended;  // null: the thread has not started
  Warp warps[32] = {};
  uint32_t runnable_warps = 0;

  unsigned current = 0;
  unsigned n_returned = 0, n_at_barrier = 0, naps = 0;
  const char* barrier = nullptr;
  Site barrier_site{};
  int barrier_votes = 0, barrier_result = 0;

  Order order;
  uint64_t random_state = 0;
  int turn_warp = 0, turn_lane = 0;

  Fiber launcher;
  Fiber* running = nullptr;
  std::vector<Fiber*> idle;

  // ---- whose turn it is -------------------------------------------------------------------

  uint32_t random_below(uint32_t bound) {  // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return static_cast<uint32_t>((random_state * 0x2545F4914F6CDD1DULL >> 32) * bound >> 32);
  }

  int random_bit(uint32_t mask) {
    for (uint32_t skip = random_below(__builtin_popcount(mask)); skip > 0; --skip) mask &= mask - 1;
    return __builtin_ctz(mask);
  }

  // The next set bit after position (-1 or 32: none yet) in the launch's direction, cyclically.
  int next_bit(uint32_t mask, int position) const {
    if (order.kind == Order::descending) {
      const auto below = static_cast<uint32_t>(mask & ((uint64_t{1} << position) - 1));
      return 31 - __builtin_clz(below ? below : mask);
    }
    const auto above = static_cast<uint32_t>(mask & (uint64_t{0xffffffff} << (position + 1)));
    return __builtin_ctz(above ? above : mask);
  }

  int before_first() const { return order.kind == Order::descending ? 32 : -1; }

  // Each warp runs as far as it can before the next one: the widest skew that barriers allow.
  int pick() {
    if (runnable_warps == 0) return -1;
    if (order.kind == Order::random) {
      turn_warp = random_bit(runnable_warps);
      turn_lane = random_bit(warps[turn_warp].runnable);
    } else {
      if (turn_warp < 0 || turn_warp > 31 || warps[turn_warp].runnable == 0) {
        turn_warp = next_bit(runnable_warps, turn_warp);
        turn_lane = before_first();
      }
      turn_lane = next_bit(warps[turn_warp].runnable, turn_lane);
    }
    return turn_warp * 32 + turn_lane;
  }

  void set_runnable(unsigned warp, uint32_t lanes) {
    warps[warp].runnable |= lanes;
    runnable_warps |= uint32_t{1} << warp;
  }

  void clear_runnable(unsigned thread) {
    Warp& warp = warps[thread / 32];
    warp.runnable &= ~(uint32_t{1} << thread % 32);
    if (warp.runnable == 0) runnable_warps &= ~(uint32_t{1} << thread / 32);
  }

  // ---- changing places --------------------------------------------------------------------

  void enter(unsigned thread) {
    current = thread;
    threadIdx = threads[thread].index;
  }

  // Gives the turn away; returns when the calling thread has it again.
  void suspend() {
    const unsigned self = current;
    const int next = pick();
    if (next < 0) throw std::runtime_error(deadlock());
    if (static_cast<unsigned>(next) == self) return;
    Fiber* const from = running;
    suspended[self] = from;
    running = suspended[next] ? suspended[next] : idle_fiber();
    enter(next);
    switch_fiber(*from, *running);
  }

  // A place where hardware may let others go first, though nothing waits.
  void maybe_suspend() {
    if (order.kind == Order::random && random_below(4) == 0) suspend();
  }

  // For threads that poll: lets all others go first.
  void nap() {
    const unsigned self = current;
    turn_warp = order.kind == Order::random ? turn_warp : next_bit(runnable_warps, turn_warp);
    if (++naps > 1'000'000) {
      throw std::runtime_error(place(self) +
                               " polls for something that never happens (blocks run "
                               "one after another: none can wait for a later one)");
    }
    suspend();
  }

  Fiber* idle_fiber() {
    if (idle.empty()) return new_fiber(stack_bytes, fiber_main);
    Fiber* fiber = idle.back();
    idle.pop_back();
    return fiber;
  }

  static void fiber_main();

  bool run_current() {
    try {
      invoke(kernel);
      returned();
      if (runnable_warps == 0 && n_returned < n_threads) throw std::runtime_error(deadlock());
    } catch (...) {
      error = std::current_exception();
    }
    return !error;
  }

  // Runs threads until none can go on here, then hands over, and is handed the turn again later.
  void fiber_loop() {
    for (;;) {
      const int next = run_current() ? pick() : -1;
      if (next >= 0) enter(next);
      if (next >= 0 && !suspended[next]) continue;
      Fiber* const self = running;
      idle.push_back(self);
      running = next >= 0 ? suspended[next] : &launcher;
      switch_fiber(*self, *running);
    }
  }

  // ---- what threads do to each other (barriers.h) -----------------------------------------

  std::string place(unsigned thread) const;
  std::string deadlock() const;
  void returned();
  int synchronize(const char* name, Site site, bool vote);
  Thread& meet(const char* name, Site site, unsigned mask, bool same_site, const Thread& offer,
               void (*complete)(Scheduler&, Thread* lanes, unsigned mask));

  // ---- a launch ---------------------------------------------------------------------------

  void run_block() {
    n_returned = n_at_barrier = naps = 0;
    std::fill(suspended.begin(), suspended.end(), nullptr);
    for (unsigned w = 0; w < n_warps; ++w) {
      const unsigned lanes = std::min(32u, n_threads - 32 * w);
      const uint32_t all = lanes == 32 ? 0xffffffffu : (uint32_t{1} << lanes) - 1;
      warps[w] = {all, all, 0, 0};
    }
    runnable_warps = n_warps == 32 ? 0xffffffffu : (uint32_t{1} << n_warps) - 1;
    turn_warp = turn_lane = before_first();
    enter(pick());
    running = idle_fiber();
    switch_fiber(launcher, *running);
    if (!error) return;
    for (unsigned t = 0; t < n_threads; ++t) {  // the stacks of those that still waited
      const bool done = warps[t / 32].returned >> t % 32 & 1;
      Fiber* fiber = suspended[t];
      if (done || !fiber || std::count(idle.begin(), idle.end(), fiber)) continue;
      reset_fiber(*fiber, fiber_main);
      idle.push_back(fiber);
    }
    std::rethrow_exception(std::exchange(error, nullptr));
  }

  void run(dim3 grid, dim3 block, size_t shared_bytes, void (*function)(void*), void* argument) {
    if (launching == std::this_thread::get_id()) {
      throw std::runtime_error("a kernel launches a kernel: not emulated");
    }
    const uint64_t threads_wanted = uint64_t{block.x} * block.y * block.z;
    if (threads_wanted == 0 || threads_wanted > 1024 || block.z > 64 || grid.y > 65535 ||
        grid.z > 65535 || grid.x > 0x7fffffffu || shared_bytes > SharedMemory::opt_in_limit) {
      throw std::runtime_error("CUDA kernel launch failed: invalid configuration argument");
    }
    const std::lock_guard lock(one_launch);
    struct Finally {
      Scheduler& self;
      ~Finally() {
        self.launching = {};
        shared_memory.clear();
      }
    } finally{*this};
    launching = std::this_thread::get_id();
    order = read_order();
    random_state = (order.seed + 1) * 0x9E3779B97F4A7C15ULL | 1;
    invoke = function;
    kernel = argument;
    n_threads = static_cast<unsigned>(threads_wanted);
    n_warps = (n_threads + 31) / 32;
    threads.resize(n_threads);
    suspended.resize(n_threads);
    for (unsigned t = 0; t < n_threads; ++t) {
      threads[t].index = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
    }
    gridDim = grid;
    blockDim = block;
    std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
    std::iota(blocks.begin(), blocks.end(), 0);
    if (order.kind == Order::descending) std::reverse(blocks.begin(), blocks.end());
    if (order.kind == Order::random) {
      for (size_t i = blocks.size(); i > 1; --i) {
        std::swap(blocks[i - 1], blocks[random_below(static_cast<uint32_t>(i))]);
      }
    }
    for (const uint64_t b : blocks) {
      blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                  static_cast<unsigned>(b / grid.x / grid.y)};
      shared_memory.start_block(shared_bytes);
      run_block();
    }
  }
};

inline Scheduler scheduler;

inline void Scheduler::fiber_main() {
  arrived(*scheduler.running);
  scheduler.fiber_loop();
}

}  // namespace deepgen::emulation
