// In which order the threads of a block, and the blocks of a grid, take their turns.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace deepgen::emulation {

// A race that one order hides shows in another.
struct Order {
  enum Kind { ascending, descending, random } kind = ascending;
  uint64_t seed = 0;
};

inline std::string chosen_order;  // by deepgen_emulation_set_order; empty: the environment decides

inline Order read_order() {
  const char* variable = std::getenv("DEEPGEN_EMULATION_ORDER");
  const std::string text = !chosen_order.empty() ? chosen_order : variable ? variable : "ascending";
  if (text == "ascending" || text.empty()) return {Order::ascending, 0};
  if (text == "descending") return {Order::descending, 0};
  if (text == "random") return {Order::random, 0};
  if (text.rfind("random:", 0) == 0) {
    return {Order::random, std::strtoull(text.c_str() + 7, nullptr, 10)};
  }
  throw std::runtime_error(
      "DEEPGEN_EMULATION_ORDER: expected ascending, descending or "
      "random:SEED, got " +
      text);
}

}  // namespace deepgen::emulation

// Overrides the environment's DEEPGEN_EMULATION_ORDER in this library; null or "" lets it decide
// again.
extern "C" __attribute__((used, visibility("default"))) inline void deepgen_emulation_set_order(
    const char* order) {
  deepgen::emulation::chosen_order = order ? order : "";
}
