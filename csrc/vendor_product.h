// Matrix products by torch's BLAS, for CPU kernels that cut a product into blocks of their own.
#pragma once

#include <cstdint>

#include "operand.h"

namespace deepgen {

// Of a larger matrix, any part, or its transpose.
struct MatrixOperand {
  const void* data;
  int64_t rows, columns, row_stride, column_stride;

  MatrixOperand transposed() const { return {data, columns, rows, column_stride, row_stride}; }
};

// c = a b, or c += a b. Float32 and float64. Runs on the calling thread alone in a parallel region.
void vendor_product(Storage, const MatrixOperand& a, const MatrixOperand& b, bool accumulate,
                    const MatrixOperand& c);

}  // namespace deepgen
