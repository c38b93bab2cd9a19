// categorical_draw on the GPU.
//
// A thread a draw: neighbouring threads take neighbouring positions, so that each level is one
// coalesced read where positions lie side by side. The logits are read twice and a block of 16 once
// more (largest, sums, the level), the later times from L2, where the 256 KiB of a thread block
// stay; so the floor is the 4 bytes of a logit once, from memory. Sums of blocks are kept in local
// memory, which is L1. A warp a draw would read channels-last logits better and waste most of its
// lanes in the search; networks put out positions side by side.
#include "../categorical_draw.h"
#include "rows.cuh"

namespace deepgen::cuda {
namespace {

template <class S>
__global__ void __launch_bounds__(block_threads) draw_kernel(CategoricalDraw p, int64_t count) {
  using T = Compute<S>;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  if (i >= count) return;
  const int64_t image = i / p.positions, position = i % p.positions;
  const S* logits = static_cast<const S*>(p.logits.data) + image / p.channels * p.logits.batch +
                    image % p.channels * p.n_levels * p.logits.channel +
                    position * p.logits.position;
  p.levels[i] =
      draw_category<T>(logits, p.logits.channel, p.n_levels, static_cast<T>(p.temperature),
                       static_cast<const T*>(p.uniforms)[i]);
}

template <class S>
void draw(const CategoricalDraw& p, cudaStream_t stream) {
  const int64_t count = p.batch * p.channels * p.positions;
  launch(draw_kernel<S>, dim3(static_cast<unsigned>((count + block_threads - 1) / block_threads)),
         dim3(block_threads), 0, stream, p, count);
}

}  // namespace

void categorical_draw(const CategoricalDraw& p, void* stream) {
  with_storage(p.storage,
               [&](auto type) { draw<decltype(type)>(p, static_cast<cudaStream_t>(stream)); });
}

}  // namespace deepgen::cuda
