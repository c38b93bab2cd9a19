// planar_chain on the CPU.
// Floor: z in, the result out, 8 bytes an element in float32; all between, K tanh, K e^-2|a| and
// 2 K D multiply-adds a sample, is done in cache, and bounds it. Eager torch with as few kernels as
// it has for this (addmv, tanh, log1p, addr) reads the samples twice and writes them once a step.
// Measured with one thread of an EPYC (AVX2), ms, forward and forward + backward, ours / eager:
//   (65536, 2), K = 32: 6.3 / 45 and 21 / 101         (4096, 64), K = 32: 2.7 / 8.0 and 11 / 30
// A copy of the same bytes takes 0.1: in the plane a step of a sample costs 3 ns of arithmetic. A
// product of the slopes, its exponent kept apart, takes the place of K logarithms. Not done: to
// keep a tile in registers for small D, and to transpose the samples by blocks for large D.
#include "../planar_chain.h"

#include "flow_chain.h"

namespace deepgen::cpu {
namespace {

DEEPGEN_CHAIN_TILES(PlanarStep, float)
DEEPGEN_CHAIN_TILES(PlanarStep, double)

}  // namespace

void planar_chain(const FlowChain& p) {
  with_chain_storage(p.storage, [&](auto type) {
    run_forward<decltype(type)>(p, [](auto... arguments) { forward_tile(arguments...); });
  });
}

void planar_chain_backward(const FlowChainBackward& p) {
  with_chain_storage(p.storage, [&](auto type) {
    run_backward<decltype(type)>(p, PlanarStep::vectors * p.features + 2,
                                 [](auto... arguments) { backward_tile(arguments...); });
  });
}

}  // namespace deepgen::cpu
