// What the threads of a block wait for, and what is wrong when they wait in vain.
#pragma once

#include <cstdio>

#include "scheduler.h"

namespace deepgen::emulation {

inline std::string to_text(Site site) {
  const std::string file = site.file;
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(site.line);
}

inline std::string mask_text(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

inline std::string lanes_text(unsigned mask) {
  std::string text;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) text += (text.empty() ? "" : ",") + std::to_string(lane);
  }
  return text;
}

inline std::string Scheduler::place(unsigned thread) const {
  const auto triple = [](auto i) {
    return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
  };
  return "thread " + triple(threads[thread].index) + " (warp " + std::to_string(thread / 32) +
         ", lane " + std::to_string(thread % 32) + ") of block " + triple(blockIdx);
}

// Called when nothing can run: names one thread that waits and one that does not come.
inline std::string Scheduler::deadlock() const {
  for (unsigned t = 0; t < n_threads; ++t) {
    const Warp& warp = warps[t / 32];
    if (!(warp.in_collective >> t % 32 & 1)) continue;
    const Thread& waits = threads[t];
    const std::string who = "deadlock: " + place(t) + " waits in " + waits.collective + " at " +
                            to_text(waits.site) + " with mask " + mask_text(waits.mask);
    if (const unsigned elsewhere = waits.mask & ~warp.in_collective) {
      return who + " for lanes " + lanes_text(elsewhere) + ", which wait in " + barrier + " at " +
             to_text(barrier_site);
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
      const Thread& other = threads[t / 32 * 32 + lane];
      if (!(waits.mask >> lane & 1) ||
          (other.collective == waits.collective && other.mask == waits.mask &&
           other.site.line == waits.site.line)) {
        continue;
      }
      return who + " for lane " + std::to_string(lane) + ", which waits in " + other.collective +
             " at " + to_text(other.site) + " with mask " + mask_text(other.mask);
    }
  }
  return "deadlock: " + std::to_string(n_at_barrier) + " of " + std::to_string(n_threads) +
         " threads of a block wait in " + (barrier ? barrier : "a barrier") + " at " +
         to_text(barrier_site) + " for threads that never come";
}

// The current thread has left the kernel.
inline void Scheduler::returned() {
  const unsigned self = current;
  Warp& warp = warps[self / 32];
  clear_runnable(self);
  warp.returned |= uint32_t{1} << self % 32;
  ++n_returned;
  if (n_at_barrier > 0) {
    throw std::runtime_error("divergent barrier: " + place(self) + " has returned, while " +
                             std::to_string(n_at_barrier) + " threads wait in " + barrier + " at " +
                             to_text(barrier_site));
  }
  for (uint32_t waiting = warp.in_collective; waiting; waiting &= waiting - 1) {
    const unsigned t = self / 32 * 32 + __builtin_ctz(waiting);
    if (threads[t].mask >> self % 32 & 1) {
      throw std::runtime_error(std::string(threads[t].collective) + " at " +
                               to_text(threads[t].site) + ": the mask " +
                               mask_text(threads[t].mask) + " of " + place(t) + " names lane " +
                               std::to_string(self % 32) + ", which has returned");
    }
  }
}

// __syncthreads and its voting forms: returns for how many threads the vote was true.
inline int Scheduler::synchronize(const char* name, Site site, bool vote) {
  const unsigned self = current;
  if (n_returned > 0) {
    throw std::runtime_error("divergent barrier: " + place(self) + " waits in " + name + " at " +
                             to_text(site) + " after " + std::to_string(n_returned) +
                             " threads of the block have returned");
  }
  if (n_at_barrier == 0) {
    barrier = name;
    barrier_site = site;
    barrier_votes = 0;
  } else if (barrier_site.line != site.line || std::string(barrier_site.file) != site.file ||
             std::string(barrier) != name) {
    throw std::runtime_error("divergent barrier: " + place(self) + " waits in " + name + " at " +
                             to_text(site) + ", while " + std::to_string(n_at_barrier) +
                             " threads wait in " + barrier + " at " + to_text(barrier_site));
  }
  barrier_votes += vote;
  if (++n_at_barrier < n_threads) {
    clear_runnable(self);
  } else {
    n_at_barrier = 0;
    barrier_result = barrier_votes;
    for (unsigned w = 0; w < n_warps; ++w) set_runnable(w, warps[w].exists);
    turn_warp = turn_lane = before_first();
  }
  suspend();
  return barrier_result;
}

// A warp collective: waits until all lanes of the mask are here; the last one completes it for all.
inline Thread& Scheduler::meet(const char* name, Site site, unsigned mask, bool same_site,
                               const Thread& offer,
                               void (*complete)(Scheduler&, Thread* lanes, unsigned mask)) {
  const unsigned self = current, lane = self % 32;
  Warp& warp = warps[self / 32];
  Thread* const lanes = &threads[self / 32 * 32];
  const auto fail = [&](const std::string& what) {
    throw std::runtime_error(std::string(name) + " at " + to_text(site) + ": the mask " +
                             mask_text(mask) + " of " + place(self) + what);
  };
  if (!(mask >> lane & 1)) fail(" does not name the lane itself");
  if (const unsigned absent = mask & ~warp.exists) {
    fail(" names lanes " + lanes_text(absent) + ", which do not exist: the block has " +
         std::to_string(n_threads) + " threads");
  }
  if (const unsigned gone = mask & warp.returned) {
    fail(" names lanes " + lanes_text(gone) + ", which have returned");
  }
  Thread& me = lanes[lane];
  me.collective = name;
  me.site = site;
  me.mask = mask;
  me.source = offer.source;
  std::memcpy(me.value, offer.value, sizeof me.value);
  warp.in_collective |= uint32_t{1} << lane;

  bool all_here = (warp.in_collective & mask) == mask;
  for (uint32_t rest = all_here ? mask : 0; rest && all_here; rest &= rest - 1) {
    const Thread& other = lanes[__builtin_ctz(rest)];
    all_here = other.mask == mask && std::strcmp(other.collective, name) == 0 &&
               (!same_site || other.site.line == site.line);
  }
  if (all_here) {
    complete(*this, lanes, mask);
    warp.in_collective &= ~mask;
    set_runnable(self / 32, mask);
    turn_lane = before_first();
  } else {
    clear_runnable(self);
  }
  suspend();
  return me;
}

}  // namespace deepgen::emulation
