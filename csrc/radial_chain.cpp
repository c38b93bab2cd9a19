// Glue of radial_chain; what it shares with the other chains is in flow_chain_glue.h.
#include "radial_chain.h"

#include "flow_chain_glue.h"

namespace deepgen {
namespace {

struct RadialChain {
  static constexpr const char* name = "deepgen_ext::radial_chain";
  static constexpr const char* backward_name = "deepgen_ext::radial_chain_backward";
  static constexpr int vectors = RadialStep::vectors;
  static constexpr auto on_cpu = DEEPGEN_CPU_KERNEL(radial_chain);
  static constexpr auto on_cuda = DEEPGEN_CUDA_KERNEL(radial_chain);
  static constexpr auto backward_on_cpu = DEEPGEN_CPU_KERNEL(radial_chain_backward);
  static constexpr auto backward_on_cuda = DEEPGEN_CUDA_KERNEL(radial_chain_backward);
  static ChainScratchOf* scratch() { return DEEPGEN_CUDA_KERNEL(radial_chain_scratch); }
};

void implement(torch::Library& library) {
  library.impl("radial_chain", flow_chain<RadialChain>);
  library.impl("radial_chain_backward", flow_chain_backward<RadialChain>);
}

}  // namespace

DEEPGEN_REGISTER(implement)
DEEPGEN_REGISTER_AUTOGRAD("radial_chain", differentiable_chain<RadialChain>)

}  // namespace deepgen
