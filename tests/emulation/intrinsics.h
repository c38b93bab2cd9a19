// The device functions that kernels call without including anything: barriers, warp collectives,
// atomics, cached loads, bit casts and the mathematics that C lacks.
#pragma once

#include <math.h>

#include <bit>
#include <source_location>
#include <type_traits>

#include "barriers.h"

#define DEEPGEN_HERE std::source_location where = std::source_location::current()

namespace deepgen::emulation {

inline Site to_site(const std::source_location& where) {
  return {where.file_name(), static_cast<int>(where.line())};
}

template <class T>
T shuffle(const char* name, unsigned mask, T value, int source, int width, int last_in_reach,
          const std::source_location& where) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "shuffle: at most 8 bytes");
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    throw std::runtime_error(std::string(name) + " at " + to_text(to_site(where)) +
                             ": width must be a power of two up to 32, got " +
                             std::to_string(width));
  }
  const int lane = static_cast<int>(scheduler.current % 32);
  const int first = lane & ~(width - 1);
  Thread offer{};
  // Up stops at the segment's first lane, the others at its last; beyond, a lane reads itself.
  offer.source = last_in_reach < 0 ? (source < first ? lane : source)
                                   : (source > first + width - 1 ? lane : source);
  std::memcpy(offer.value, &value, sizeof(T));
  const Thread& me = scheduler.meet(
      name, to_site(where), mask, true, offer, [](Scheduler& self, Thread* lanes, unsigned all) {
        for (unsigned rest = all; rest; rest &= rest - 1) {
          Thread& to = lanes[__builtin_ctz(rest)];
          if (!(all >> to.source & 1)) {
            throw std::runtime_error(std::string(to.collective) + " at " + to_text(to.site) + ": " +
                                     self.place(static_cast<unsigned>(&to - self.threads.data())) +
                                     " reads lane " + std::to_string(to.source) +
                                     ", which is not in the mask " + mask_text(all));
          }
          std::memcpy(to.result, lanes[to.source].value, sizeof to.result);
        }
      });
  std::memcpy(static_cast<void*>(&value), me.result, sizeof(T));
  return value;
}

inline unsigned ballot(const char* name, unsigned mask, bool vote,
                       const std::source_location& where) {
  Thread offer{};
  offer.value[0] = vote;
  const Thread& me = scheduler.meet(
      name, to_site(where), mask, true, offer, [](Scheduler&, Thread* lanes, unsigned all) {
        unsigned votes = 0;
        for (int lane = 0; lane < 32; ++lane) {
          if (all >> lane & 1 && lanes[lane].value[0]) votes |= 1u << lane;
        }
        for (unsigned rest = all; rest; rest &= rest - 1) {
          std::memcpy(lanes[__builtin_ctz(rest)].result, &votes, sizeof votes);
        }
      });
  unsigned votes;
  std::memcpy(&votes, me.result, sizeof votes);
  return votes;
}

template <class T, class Combine>
T reduce(const char* name, unsigned mask, T value, const std::source_location& where) {
  Thread offer{};
  std::memcpy(offer.value, &value, sizeof(T));
  const Thread& me = scheduler.meet(
      name, to_site(where), mask, true, offer, [](Scheduler&, Thread* lanes, unsigned all) {
        T total, next;
        std::memcpy(&total, lanes[__builtin_ctz(all)].value, sizeof(T));
        for (unsigned rest = all & (all - 1); rest; rest &= rest - 1) {
          std::memcpy(&next, lanes[__builtin_ctz(rest)].value, sizeof(T));
          total = Combine{}(total, next);
        }
        for (unsigned rest = all; rest; rest &= rest - 1) {
          std::memcpy(lanes[__builtin_ctz(rest)].result, &total, sizeof(T));
        }
      });
  std::memcpy(&value, me.result, sizeof(T));
  return value;
}

// The old value; hardware may run others before an atomic, so random order does.
template <class T, class Change>
T exchange(T* address, Change change) {
  scheduler.maybe_suspend();
  const T old = *address;
  *address = change(old);
  return old;
}

}  // namespace deepgen::emulation

// ---- barriers and warp collectives ----------------------------------------------------------

inline void __syncthreads(DEEPGEN_HERE) {
  deepgen::emulation::scheduler.synchronize("__syncthreads", deepgen::emulation::to_site(where),
                                            false);
}
inline int __syncthreads_count(int vote, DEEPGEN_HERE) {
  return deepgen::emulation::scheduler.synchronize("__syncthreads_count",
                                                   deepgen::emulation::to_site(where), vote != 0);
}
inline int __syncthreads_or(int vote, DEEPGEN_HERE) {
  return deepgen::emulation::scheduler.synchronize(
             "__syncthreads_or", deepgen::emulation::to_site(where), vote != 0) > 0;
}
inline int __syncthreads_and(int vote, DEEPGEN_HERE) {
  return deepgen::emulation::scheduler.synchronize(
             "__syncthreads_and", deepgen::emulation::to_site(where), vote == 0) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffff, DEEPGEN_HERE) {
  deepgen::emulation::scheduler.meet(
      "__syncwarp", deepgen::emulation::to_site(where), mask, false, {},
      [](deepgen::emulation::Scheduler&, deepgen::emulation::Thread*, unsigned) {});
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, DEEPGEN_HERE) {
  const int first = static_cast<int>(deepgen::emulation::scheduler.current % 32) & ~(width - 1);
  return deepgen::emulation::shuffle("__shfl_sync", mask, value, first | (source & (width - 1)),
                                     width, 1, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize, DEEPGEN_HERE) {
  const int lane = static_cast<int>(deepgen::emulation::scheduler.current % 32);
  return deepgen::emulation::shuffle("__shfl_xor_sync", mask, value, (lane ^ lane_mask) & 31, width,
                                     1, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, DEEPGEN_HERE) {
  const int lane = static_cast<int>(deepgen::emulation::scheduler.current % 32);
  return deepgen::emulation::shuffle("__shfl_down_sync", mask, value,
                                     lane + static_cast<int>(delta), width, 1, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, DEEPGEN_HERE) {
  const int lane = static_cast<int>(deepgen::emulation::scheduler.current % 32);
  return deepgen::emulation::shuffle("__shfl_up_sync", mask, value, lane - static_cast<int>(delta),
                                     width, -1, where);
}

inline unsigned __ballot_sync(unsigned mask, int vote, DEEPGEN_HERE) {
  return deepgen::emulation::ballot("__ballot_sync", mask, vote != 0, where);
}
inline int __any_sync(unsigned mask, int vote, DEEPGEN_HERE) {
  return deepgen::emulation::ballot("__any_sync", mask, vote != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int vote, DEEPGEN_HERE) {
  return deepgen::emulation::ballot("__all_sync", mask, vote != 0, where) == mask;
}
// Only the lane itself is sure to be active: code that takes the mask for the whole warp shows.
inline unsigned __activemask() {
  return 1u << deepgen::emulation::scheduler.current % 32;
}

struct deepgen_plus {
  auto operator()(auto a, auto b) const { return a + b; }
};
struct deepgen_smaller {
  auto operator()(auto a, auto b) const { return b < a ? b : a; }
};
struct deepgen_larger {
  auto operator()(auto a, auto b) const { return a < b ? b : a; }
};
template <class T>
T __reduce_add_sync(unsigned mask, T value, DEEPGEN_HERE) {
  return deepgen::emulation::reduce<T, deepgen_plus>("__reduce_add_sync", mask, value, where);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, DEEPGEN_HERE) {
  return deepgen::emulation::reduce<T, deepgen_smaller>("__reduce_min_sync", mask, value, where);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, DEEPGEN_HERE) {
  return deepgen::emulation::reduce<T, deepgen_larger>("__reduce_max_sync", mask, value, where);
}

inline void __threadfence() {
  deepgen::emulation::scheduler.maybe_suspend();
}
inline void __threadfence_block() {
  deepgen::emulation::scheduler.maybe_suspend();
}
inline void __threadfence_system() {
  deepgen::emulation::scheduler.maybe_suspend();
}
inline void __nanosleep(unsigned) {
  deepgen::emulation::scheduler.nap();
}
[[noreturn]] inline void __trap() {
  throw std::runtime_error("__trap() in a kernel");
}

// ---- atomics ----------------------------------------------------------------------------------

#define DEEPGEN_ATOMIC(name, expression)                                                          \
  template <class T>                                                                              \
  T name(T* address, std::type_identity_t<T> value) {                                             \
    return deepgen::emulation::exchange(address,                                                  \
                                        [&]([[maybe_unused]] T old) -> T { return expression; }); \
  }
DEEPGEN_ATOMIC(atomicAdd, old + value)
DEEPGEN_ATOMIC(atomicSub, old - value)
DEEPGEN_ATOMIC(atomicMax, old < value ? value : old)
DEEPGEN_ATOMIC(atomicMin, value < old ? value : old)
DEEPGEN_ATOMIC(atomicExch, value)
DEEPGEN_ATOMIC(atomicAnd, old& value)
DEEPGEN_ATOMIC(atomicOr, old | value)
DEEPGEN_ATOMIC(atomicXor, old ^ value)
DEEPGEN_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
#undef DEEPGEN_ATOMIC
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return deepgen::emulation::exchange(address,
                                      [&](T old) { return old == expected ? value : old; });
}
