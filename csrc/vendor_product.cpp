#include "vendor_product.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/from_blob.h>

namespace deepgen {
namespace {

at::Tensor tensor_of(Storage storage, const MatrixOperand& m) {
  return at::from_blob(const_cast<void*>(m.data), {m.rows, m.columns},
                       {m.row_stride, m.column_stride},
                       storage == Storage::f64 ? at::kDouble : at::kFloat);
}

}  // namespace

void vendor_product(Storage storage, const MatrixOperand& a, const MatrixOperand& b,
                    bool accumulate, const MatrixOperand& c) {
  // A worker thread has none of the caller's thread-local state.
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  at::Tensor result = tensor_of(storage, c);
  at::cpu::addmm_out(result, result, tensor_of(storage, a), tensor_of(storage, b),
                     accumulate ? 1 : 0, 1);
}

}  // namespace deepgen
