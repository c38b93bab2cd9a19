// autoregressive_inverse on the GPU.
//
// Samples are independent: a thread block owns 8 of them and walks through all dimensions with
// nothing but __syncthreads; the weights, read by all blocks at about the same time, stream from
// L2. Dimensions go in blocks of 16: what is known at the start of one is added by all warps at
// once, the rest degree by degree. A warp takes rows, its lanes 8 samples x 4 parts of the columns,
// joined by shuffles. Activations lie in shared memory, unit-major, or in global scratch where they
// do not fit. The chain of dependent steps, 4 a dimension for two hidden layers, bounds small
// batches; a block an SM at batch 1024 leaves room for 8 warps' arithmetic beside it.
#include "autoregressive_tile.cuh"

namespace deepgen::cuda {
namespace {

// The tile of this block.
template <class T, class Problem>
__device__ Tile<T> tile_of(const Problem& p, const Layout& layout, T* shared) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * samples;
  const int lane = threadIdx.x % 32;
  T* memory = p.scratch ? static_cast<T*>(p.scratch) + blockIdx.x * p.scratch_per_block : shared;
  return {p.net,
          layout,
          memory,
          first,
          smaller(samples, p.net.batch - first),
          static_cast<int>(threadIdx.x / 32),
          lane / samples,
          lane % samples};
}

template <class T>
__global__ void __launch_bounds__(threads)
    solve_kernel(const __grid_constant__ AutoregressiveInverse p) {
  DEEPGEN_DYNAMIC_SHARED(T, shared);
  const Layout layout(p.net, false);
  const Tile<T> tile = tile_of<T>(p, layout, shared);
  const SplineConstants<T> spline = constants_of<T>(p.net);
  T* const x = tile.memory + layout.x;
  tile.load(p.z, p.net.dimensions, x);
  __syncthreads();
  double log_det = 0;
  tile.walk(false, [&](int64_t i, T* parameters) {
    log_det += tile.invert_element(spline, parameters, x + i * samples + threadIdx.x);
  });
  tile.store(x, p.net.dimensions, p.x);
  if (threadIdx.x < tile.count)
    static_cast<T*>(p.log_det)[tile.first + threadIdx.x] = static_cast<T>(log_det);
}

template <class T>
__global__ void __launch_bounds__(threads)
    adjoint_kernel(const __grid_constant__ AutoregressiveInverseAdjoint p) {
  DEEPGEN_DYNAMIC_SHARED(T, shared);
  const Layout layout(p.net, true);
  const Tile<T> tile = tile_of<T>(p, layout, shared);
  const SplineConstants<T> spline = constants_of<T>(p.net);
  const int64_t dimensions = p.net.dimensions;
  T* const memory = tile.memory;
  tile.load(p.x, dimensions, memory + layout.x);
  tile.load(p.z, dimensions, memory + layout.z);
  tile.load(p.grad_x, dimensions, memory + layout.of_x);
  __syncthreads();
  tile.walk(true, [](int64_t, const T*) {});
  T grad_log_det = 0;
  if (threadIdx.x < tile.count)
    grad_log_det = static_cast<const T*>(p.grad_log_det)[tile.first + threadIdx.x];
  tile.walk_back(spline, grad_log_det);
  tile.store(memory + layout.of_x, dimensions, p.grad_z);
  for (int l = 0; l <= p.net.hidden; ++l) {
    tile.store(memory + layout.cotangents[l], p.net.layer[l].units, p.cotangents[l]);
    if (l < p.net.hidden) tile.store(memory + layout.values[l], p.net.layer[l].units, p.values[l]);
  }
}

template <class T, class Problem>
void launch_tiles(void (*kernel)(Problem), const Problem& p, bool adjoint, void* stream) {
  const unsigned blocks = static_cast<unsigned>((p.net.batch + samples - 1) / samples);
  const size_t bytes = p.scratch ? 0 : Layout(p.net, adjoint).size * sizeof(T);
  launch(kernel, dim3(blocks), dim3(threads), bytes, static_cast<cudaStream_t>(stream), p);
}

}  // namespace

int64_t autoregressive_inverse_scratch(const MaskedNetwork& net, bool adjoint) {
  const int64_t size = Layout(net, adjoint).size;
  const int64_t bytes = size * (net.storage == Storage::f64 ? 8 : 4);
  return bytes <= most_shared_bytes ? 0 : size;
}

void autoregressive_inverse(const AutoregressiveInverse& p, void* stream) {
  p.net.storage == Storage::f64 ? launch_tiles<double>(solve_kernel<double>, p, false, stream)
                                : launch_tiles<float>(solve_kernel<float>, p, false, stream);
}

void autoregressive_inverse_adjoint(const AutoregressiveInverseAdjoint& p, void* stream) {
  p.net.storage == Storage::f64 ? launch_tiles<double>(adjoint_kernel<double>, p, true, stream)
                                : launch_tiles<float>(adjoint_kernel<float>, p, true, stream);
}

}  // namespace deepgen::cuda
