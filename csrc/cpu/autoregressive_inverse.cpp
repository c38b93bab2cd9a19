// autoregressive_inverse on the CPU.
//
// A density pass multiplies samples x weights; this does the unmasked half of it, in the same order
// as a triangular solve: dimensions go in blocks. At the start of a block one product a layer
// (masked_product.h) adds what is known already to all units of the block; within the block, degree
// by degree, the short rest follows, layer upon layer, then the parameters, then x_i. A thread owns
// a tile of up to 32 samples, with activations unit-major, samples side by side: they stay in L2
// while every visible weight passes once from L3. The FMAs bound it from 16 samples on, the memory
// of the weights below. Not right-looking (a finished block added to all later units): that would
// walk down columns of row-major weights and read and write every sum once a block.
// Measured against one full forward of the same net (2 threads, hidden 512x2, float32; records of
// benchmarks/results, calls between those of other libraries): 784 dimensions, 64 samples 0.73, one
// sample 0.66; 64 dimensions, 64 samples 0.87. Called in a row, with weights and threads warm:
// 0.53, 0.5 and 0.6; float64 0.63, 0.47 and 0.55. The floor is 0.5: that forward multiplies the
// masked half too. Products run at 69 GFLOP/s a core. One sample (autoregressive_single.h) is bound
// by the chain from x_i to x_{i+1}, 50 us of 72, while its weights stream on the other thread.
#include "../autoregressive_inverse.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "../choice.h"
#include "autoregressive_single.h"

namespace deepgen::cpu {
namespace {

// How samples spread over tiles: as few as need be, but one for each thread, of whole vectors.
struct Tiling {
  int64_t count, lanes, samples;
};

template <class T>
Tiling tiles_of(int64_t batch) {
  constexpr int64_t vector = vector_lanes<T>, most = 32;
  const int64_t threads = at::get_num_threads();
  int64_t count = (batch + most - 1) / most;
  const int64_t useful = std::min(threads, (batch + vector - 1) / vector);
  count = (count + useful - 1) / useful * useful;
  const int64_t samples = (batch + count - 1) / count;
  return {(batch + samples - 1) / samples, (samples + vector - 1) / vector * vector, samples};
}

template <class T, class Problem, class Run>
void for_each_tile(const Problem& p, Run run) {
  if (p.net.batch == 0) return;
  note_choice("tiles of samples", "more than one sample, or a gradient");
  const Tiling tiling = tiles_of<T>(p.net.batch);
  const std::vector<Block> blocks = blocks_of(p.net);
  at::parallel_for(0, tiling.count, 1, [&](int64_t begin, int64_t end) {
    Room<T> room(p.net, blocks, tiling.lanes,
                 std::is_same_v<Problem, AutoregressiveInverseAdjoint>);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * tiling.samples;
      run(Tile<T>{p.net, blocks, room, tiling.lanes, first,
                  std::min(tiling.samples, p.net.batch - first)});
    }
  });
}

template <class T>
void solve(const AutoregressiveInverse& p) {
  const T* z = static_cast<const T*>(p.z);
  T *x = static_cast<T*>(p.x), *log_det = static_cast<T*>(p.log_det);
  if (p.net.batch == 1) return solve_one(p.net, z, x, log_det);
  for_each_tile<T>(p, [&](const Tile<T>& tile) { tile.solve(z, x, log_det); });
}

template <class T>
void solve_adjoint(const AutoregressiveInverseAdjoint& p) {
  for_each_tile<T>(p, [&](const Tile<T>& tile) {
    tile.evaluate(static_cast<const T*>(p.x));
    tile.solve_adjoint(p);
  });
}

}  // namespace

void autoregressive_inverse(const AutoregressiveInverse& p) {
  p.net.storage == Storage::f64 ? solve<double>(p) : solve<float>(p);
}

void autoregressive_inverse_adjoint(const AutoregressiveInverseAdjoint& p) {
  p.net.storage == Storage::f64 ? solve_adjoint<double>(p) : solve_adjoint<float>(p);
}

}  // namespace deepgen::cpu
