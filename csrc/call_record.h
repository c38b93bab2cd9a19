// The calls of our ops while somebody profiles (deepgen_ext/profiling): by the dispatcher's own
// hook, the one that torch's profiler uses, so that an op that is not watched runs no line of ours.
#pragma once

#include <ATen/core/function_schema.h>

#include <array>
#include <cstdint>
#include <map>
#include <vector>

namespace deepgen::recording {

// What tells one way of calling an op from another: the op, its arguments and results as words (see
// Tag), and what it chose.
enum Tag : int64_t { none, tensor, indices, list, integer, real, boolean, text };
using Words = std::vector<int64_t>;

// Where a vector of integers lies, its length, and the bytes of one.
using Address = std::array<int64_t, 3>;

struct Signature {
  const c10::FunctionSchema* schema;
  Words arguments, results;
  std::vector<const char*> choices;  // what, why, what, why, ...
  bool operator==(const Signature&) const = default;
};

struct Call {
  int64_t signature;  // index
  uint64_t thread;
  int64_t start;       // ns of the steady clock
  int64_t total;       // ns, of the call
  int64_t self;        // ns, without the calls of other ops of ours inside
  double device_time;  // s between two events on the GPU's stream; -1 on the CPU, NaN where unknown
};

struct Record {
  std::vector<Signature> signatures;
  std::map<Address, Words> vectors;  // what `indices` refers to
  std::vector<Call> calls;
};

// Recording lasts from the first start() to the last stop(). stop() returns the calls since its
// start(); it waits for those on GPUs.
int64_t start();
Record stop(int64_t token);

// Whether anything is recorded, and whether the dispatcher has any hook at all.
bool is_on();
bool is_hooked();

}  // namespace deepgen::recording
