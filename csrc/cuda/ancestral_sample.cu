// ancestral_sample on the GPU: one launch draws whole rows of pixels, as many as are asked for.
//
// Who owns what: samples do not meet, so a thread block takes one tile of samples (one sample,
// where they are few) through all pixels, and waits for nobody. Its 512 threads meet at
// __syncthreads alone: there is no grid to be resident, so no launch that could fail and no order
// of blocks to wait for. Activations that later rows read are in the caches, in global memory, that
// is in L2.
//
// Row steps (ancestral_rows.cuh) are products of width * tile rows, tiled in registers. Pixel steps
// (ancestral_plan.cuh, ancestral_pixels.cuh) are products of a matrix and a vector. There what
// costs is latency: so all that a pixel reads of earlier ones is fetched at its beginning, in one
// go; what its own steps hand on stays in shared memory; a step channel by channel behind a linear
// one needs no barrier; and weights stay in the shared memory that is left, 160 KB of 227 on an
// H100, whose other half streams from L2. Networks whose plan does not fit take the same kernel's
// other path: every step as a row step of one column.
//
// What bounds it, for seven layers of 64 channels with 7x7 kernels at 28x28: a pixel uses 400 KB of
// weights, of which 160 KB are in shared memory; the rest at 64 bytes a clock, all that an SM gets
// from L2, is 2 us. Its share of the row steps, 0.5 million multiply-adds, is 2.4 us at full speed
// of one SM and about 4 at what such tiles reach. Twenty barriers and the draw: 2 to 3 us. Together
// 8 to 10 us a pixel, for one sample and for as many as there are SMs. These are estimates: the
// kernel has run in the emulation alone, and all measurements on a GPU are owed.
//
// Why not clusters, or a grid that synchronises: 16 samples leave 116 of 132 SMs idle, and eight
// SMs a sample would hold all weights in shared memory and divide both products by eight. But each
// step then pays a barrier of the cluster (about 0.2 us, twice a layer) instead of one of the
// block, and such a launch can be refused. The row steps alone, which need only few barriers, would
// gain 3 us a pixel: the first thing to try. Tensor cores would serve the row steps too, in TF32,
// which would draw other levels than the CPU.
//
// Sums are added in an order that depends on the step alone: a sample draws the same alone, in any
// batch and in any tile.
#include "ancestral_pixels.cuh"
#include "ancestral_prepare.cuh"
#include "ancestral_rows.cuh"

namespace deepgen::cuda {
namespace sampling {
namespace {

template <class T>
__global__ void __launch_bounds__(threads, 1)
    ancestral_sample_kernel(const __grid_constant__ Problem problem) {
  DEEPGEN_DYNAMIC_SHARED(unsigned char, memory);
  DEEPGEN_SHARED(Plan<T>, plan, 1);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * problem.tile;
  const int64_t rest = problem.n - first;
  Tile<T> tile{&problem,
               problem.program,
               nullptr,
               static_cast<const T*>(problem.weights),
               first,
               rest < problem.tile ? static_cast<int>(rest) : problem.tile,
               problem.first_row};
  Arena arena{memory, 0, problem.shared_bytes};
  auto& buffers = *arena.take<RowBuffers<T>>(1);
  T* const scratch = reinterpret_cast<T*>(&buffers);
  Plane<T>* const planes = prepare(tile, arena, plan[0]);
  const Program program(tile.words);
  const Plan<T> planned = plan[0];

  for (int y = problem.first_row; y < problem.last_row; ++y) {
    __syncthreads();
    tile.y = y;
    if (planes) {
      for (int i = threadIdx.x; i < program.header.nodes; i += threads) planes[i].begin_row(y);
      __syncthreads();
    }
    for (int i = 0; i < program.header.row_steps; ++i) {
      const Step& step = program.row_steps[i];
      const int stride = tile.plane(step.dst).stride;
      if (y % stride) continue;
      run_step(tile, program, step, y / stride, 0, (problem.width + stride - 1) / stride, buffers);
    }
    for (int x = 0; x < problem.width; ++x) {
      if (planned.fits) {
        const Pixel<T> pixel{tile, planned, scratch, y, x};
        for (int i = 0; i < program.header.pixel_steps; ++i) pixel.run(planned.steps[i]);
        continue;
      }
      for (int i = 0; i < program.header.pixel_steps; ++i) {
        const Step& step = program.pixel_steps[i];
        if (is_draw(step)) {
          const Plane<T> parameters = tile.plane(step.a);
          draw(tile, step, y, x, parameters.at(y, x) + step.a_channel, parameters.sample_stride,
               static_cast<T*>(nullptr), scratch);
          __syncthreads();
          continue;
        }
        const int stride = tile.plane(step.dst).stride;
        if (y % stride == 0 && x % stride == 0) {
          run_step(tile, program, step, y / stride, x / stride, 1, buffers);
        }
      }
    }
  }
}

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  const cudaError_t status = cudaDeviceGetAttribute(&value, which, device);
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
  return value;
}

template <class T>
void sample(const AncestralSample& p, cudaStream_t stream) {
  Problem problem{};
  problem.program = p.program;
  problem.weights = p.weights;
  for (int64_t i = 0; i < p.n_conditions; ++i) problem.conditions[i] = p.conditions[i];
  problem.n = p.n;
  problem.channels = static_cast<int32_t>(p.channels);
  problem.height = static_cast<int32_t>(p.height);
  problem.width = static_cast<int32_t>(p.width);
  problem.n_levels = static_cast<int32_t>(p.n_levels);
  problem.tile = static_cast<int32_t>(p.tile < p.n ? p.tile : p.n);
  problem.first_row = static_cast<int32_t>(p.first_row);
  problem.last_row = static_cast<int32_t>(p.last_row);
  problem.temperature = p.temperature;
  problem.uniforms = p.uniforms;
  problem.known = p.known;
  problem.levels = p.levels;
  problem.values = p.values;
  problem.caches = p.caches;
  if (p.n == 0) return;
  if (reinterpret_cast<uintptr_t>(p.weights) % 16) {
    throw std::runtime_error("ancestral_sample: weights must begin at a multiple of 16 bytes");
  }
  // All shared memory there is: one block a multiprocessor, and its weights at hand.
  const auto blocks = static_cast<unsigned>((p.n + problem.tile - 1) / problem.tile);
  constexpr int of_statics = 1024;
  const int bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - of_statics;
  problem.shared_bytes = static_cast<uint32_t>(bytes);
  launch(ancestral_sample_kernel<T>, dim3(blocks), dim3(threads), bytes, stream, problem);
}

}  // namespace
}  // namespace sampling

void ancestral_sample(const AncestralSample& p, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  p.storage == Storage::f64 ? sampling::sample<double>(p, on) : sampling::sample<float>(p, on);
}

}  // namespace deepgen::cuda
