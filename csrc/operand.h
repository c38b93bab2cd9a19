// What kernels know of a tensor: a pointer, its storage type and its strides.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace deepgen {

// Storage types. Arithmetic and sums are in double for f64 and in float for the rest.
enum class Storage : int { f32, f64, bf16, f16 };

// A tensor seen as (batch, size[0], size[1], size[2]) with strides in elements; a broadcast
// dimension has stride 0.
struct Operand {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t stride[3] = {0, 0, 0};

  DEEPGEN_HD explicit operator bool() const { return data != nullptr; }
};

// The dimensions all operands of an elementwise op share: the batch, and the rest merged to at most
// three, innermost last, 1 where unused. A row is all elements of one sample.
struct Extent {
  int64_t batch = 0;
  int64_t size[3] = {1, 1, 1};

  DEEPGEN_HD int64_t row() const { return size[0] * size[1] * size[2]; }
};

// True where a row of the operand is one run of memory.
inline bool has_dense_rows(const Operand& operand, const Extent& extent) {
  const int64_t* size = extent.size;
  return (size[2] == 1 || operand.stride[2] == 1) &&
         (size[1] == 1 || operand.stride[1] == size[2]) &&
         (size[0] == 1 || operand.stride[0] == size[1] * size[2]);
}

// Images seen as (batch, channels, positions), strides in elements.
struct ImageOperand {
  void* data = nullptr;
  int64_t batch = 0, channel = 0, position = 0;
};

}  // namespace deepgen
