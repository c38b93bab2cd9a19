// Where an op chooses between algorithms, it says which and why to whoever profiles; nobody does,
// most of the time, and then it is one load and a branch. Free of torch: kernels say it too.
#pragma once

#include <atomic>

namespace deepgen {

using ChoiceListener = void (*)(const char* what, const char* why);
inline std::atomic<ChoiceListener> choice_listener{nullptr};

// Both are literals: they are kept by address.
inline void note_choice(const char* what, const char* why) {
  if (const ChoiceListener listener = choice_listener.load(std::memory_order_relaxed))
    listener(what, why);
}

}  // namespace deepgen
