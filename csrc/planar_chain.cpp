// Glue of planar_chain; what it shares with the other chains is in flow_chain_glue.h.
#include "planar_chain.h"

#include "flow_chain_glue.h"

namespace deepgen {
namespace {

struct PlanarChain {
  static constexpr const char* name = "deepgen_ext::planar_chain";
  static constexpr const char* backward_name = "deepgen_ext::planar_chain_backward";
  static constexpr int vectors = PlanarStep::vectors;
  static constexpr auto on_cpu = DEEPGEN_CPU_KERNEL(planar_chain);
  static constexpr auto on_cuda = DEEPGEN_CUDA_KERNEL(planar_chain);
  static constexpr auto backward_on_cpu = DEEPGEN_CPU_KERNEL(planar_chain_backward);
  static constexpr auto backward_on_cuda = DEEPGEN_CUDA_KERNEL(planar_chain_backward);
  static ChainScratchOf* scratch() { return DEEPGEN_CUDA_KERNEL(planar_chain_scratch); }
};

void implement(torch::Library& library) {
  library.impl("planar_chain", flow_chain<PlanarChain>);
  library.impl("planar_chain_backward", flow_chain_backward<PlanarChain>);
}

}  // namespace

DEEPGEN_REGISTER(implement)
DEEPGEN_REGISTER_AUTOGRAD("planar_chain", differentiable_chain<PlanarChain>)

}  // namespace deepgen
