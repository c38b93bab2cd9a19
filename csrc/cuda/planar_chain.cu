// planar_chain on the GPU.
// A step of a sample is one sum over D by shuffles, a tanh, an exp, a log and 2 D multiply-adds:
// memory is touched at the ends only (8 bytes an element), so arithmetic and latency bound it.
// Backward also writes and reads the states, from L2. Not a thread a sample with its elements in
// registers: that serves small D only, and groups serve all. Built for sm_80 and sm_90, run in the
// emulation; its speed on a GPU has not been measured yet.
#include "../planar_chain.h"
#include "flow_chain.cuh"

namespace deepgen::cuda {

void planar_chain(const FlowChain& p, void* stream) {
  with_storage(p.storage, [&](auto type) {
    launch_chain<PlanarStep, decltype(type)>(p, static_cast<cudaStream_t>(stream));
  });
}

void planar_chain_backward(const FlowChainBackward& p, void* stream) {
  with_storage(p.storage, [&](auto type) {
    launch_chain_backward<PlanarStep, decltype(type)>(p, static_cast<cudaStream_t>(stream));
  });
}

ChainScratch planar_chain_scratch(Storage storage, int64_t batch, int64_t features) {
  return storage == Storage::f64 ? chain_scratch<PlanarStep, double>(batch, features)
                                 : chain_scratch<PlanarStep, float>(batch, features);
}

}  // namespace deepgen::cuda
