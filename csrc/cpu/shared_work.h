// A few threads that share out short pieces of work many times over, without going to sleep in
// between: the row steps of a single image come every few hundred microseconds, and waking a thread
// takes a tenth of that.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <cstdint>
#include <functional>

namespace deepgen::cpu {

// Runs lead() on one thread and help() on up to `threads` - 1 others, at the same time where there
// are so many threads, else afterwards: help() must return once the leader is done.
template <class Lead, class Help>
void lead_with_help(int64_t threads, Lead lead, Help help) {
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) thread == 0 ? lead() : help();
  });
}

inline void pause_thread() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// One thread leads and calls `share`; the others wait for pieces until it is done. The leader takes
// pieces as well, so that all is done also where the others never come.
class SharedWork {
 public:
  // Runs lead(*this) with the help of up to `threads` - 1 others.
  template <class Lead>
  static void run(int64_t threads, Lead lead) {
    SharedWork work;
    const auto leading = [&] {
      const Done done{work};  // also where `lead` throws
      lead(work);
    };
    lead_with_help(threads, leading, [&] { work.help(); });
  }

  // each(piece) for all pieces, on whichever thread; returns when all are done.
  void share(uint32_t pieces, const std::function<void(uint32_t)>& each) {
    each_ = &each;
    left_.store(pieces, std::memory_order_relaxed);
    // The round is part of both: a latecomer of the last round takes no piece of this one.
    const uint64_t round = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    end_.store(round << 32 | pieces, std::memory_order_relaxed);
    ticket_.store(round << 32, std::memory_order_release);
    take();
    while (left_.load(std::memory_order_acquire) != 0) pause_thread();
  }

 private:
  struct Done {
    SharedWork& work;
    ~Done() { work.done_.store(true, std::memory_order_release); }
  };

  void help() {
    uint64_t seen = 0;
    while (!done_.load(std::memory_order_acquire)) {
      const uint64_t round = ticket_.load(std::memory_order_acquire) >> 32;
      if (round == seen) {
        pause_thread();
        continue;
      }
      seen = round;
      take();
    }
  }

  void take() {
    for (;;) {
      const uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
      const uint64_t end = end_.load(std::memory_order_relaxed);
      if (ticket >> 32 != end >> 32 || ticket >= end) return;
      // While this piece is not done, what describes the round stays as it is.
      (*each_.load(std::memory_order_relaxed))(static_cast<uint32_t>(ticket));
      left_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  std::atomic<uint64_t> ticket_{0}, end_{0};
  std::atomic<uint32_t> left_{0};
  std::atomic<const std::function<void(uint32_t)>*> each_{nullptr};
  std::atomic<bool> done_{false};
};

}  // namespace deepgen::cpu
