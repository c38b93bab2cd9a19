// fixed_point_mlp on the GPU.
//
// A thread block iterates 8 samples until all of them are done, with nothing but __syncthreads
// between layers; the host learns nothing before the end and launches once. Activations and history
// lie in shared memory, unit-major, or in global scratch where they do not fit; so do the weights
// where all of them fit beside, else all blocks read them at about the same time from L2. The chain
// of layers times evaluations bounds small batches, the products large ones. A sample that is done
// keeps its lane until the block ends.
#include "../fixed_point_mlp.h"
#include "tile_product.cuh"

namespace deepgen::cuda {
namespace {

static_assert(samples == fixed_point_samples);

constexpr int norms = 5;  // of StepSums
// Beside what the kernel has of its own.
constexpr int64_t most_tile_bytes = most_shared_bytes - 12 * 1024;

// Units of a tile's memory, in front of which each array begins.
struct MlpLayout {
  int64_t x = 0, y = 0, values[2], images = 0, residuals = 0, size = 0;
  int64_t weights = 0;  // numbers of all of them, which may follow

  __host__ __device__ explicit MlpLayout(const FixedPointMlp& p) {
    x = take(p.features);
    y = take(p.features);
    for (int i = 0; i < 2; ++i) values[i] = take(p.widest());
    images = take(p.slots() * p.features);
    residuals = take(p.slots() * p.features);
    for (int l = 0; l < p.layers; ++l) weights += p.layer[l].units * p.inputs(l);
  }

  __host__ __device__ bool holds_tile(int64_t bytes_each) const {
    return size * bytes_each <= most_tile_bytes;
  }
  __host__ __device__ bool holds_weights(int64_t bytes_each) const {
    return (size + weights) * bytes_each <= most_tile_bytes;
  }

 private:
  __host__ __device__ int64_t take(int64_t units) {
    const int64_t at = size;
    size += units * samples;
    return at;
  }
};

template <class T>
__device__ T activated(MlpActivation activation, T v, T beta) {
  switch (activation) {
    case MlpActivation::relu:
      return activation_of<Activation::relu>(v);
    case MlpActivation::elu:
      return v < T(0) ? beta * activation_of<Activation::elu>(v) : v;
    case MlpActivation::tanh:
      return activation_of<Activation::tanh>(v);
    case MlpActivation::lipswish:
      return T(1 / 1.1) * v * sigmoid_of(beta * v, decay_of(beta * v));
    case MlpActivation::silu:
      return v * sigmoid_of(v, decay_of(v));
    case MlpActivation::sin:
      return T(0.31830988618379067154) * sin_pi_of(v);
    case MlpActivation::softplus:
      return softplus_of(v, beta * v, decay_of(beta * v), beta);
    case MlpActivation::leaky_relu:
      return v < T(0) ? beta * v : v;
    default:
      return sigmoid_of(v, decay_of(v));
  }
}

// values of layer l, of those below.
template <class T>
__device__ void apply_layer(const FixedPointMlp& p, int l, const T* weight, int64_t stride,
                            const T* below, T* values) {
  constexpr int rows_at_once = 4;
  const int lane = threadIdx.x % 32, part = lane / samples, sample = lane % samples;
  const MlpLayer& layer = p.layer[l];
  const T* const bias = static_cast<const T*>(layer.bias);
  const bool hidden = l < p.layers - 1;
  const T beta = hidden ? static_cast<const T*>(p.betas)[l] : T(0);
  const int64_t columns = p.inputs(l);
  for (int64_t row = threadIdx.x / 32 * rows_at_once; row < layer.units;
       row += warps * rows_at_once) {
    const int rows = static_cast<int>(smaller(rows_at_once, layer.units - row));
    const Sums<T, rows_at_once> sums =
        sums_of<rows_at_once>(weight + row * stride + part, stride, parts, rows, columns - part,
                              below + part * samples + sample);
#pragma unroll
    for (int r = 0; r < rows_at_once; ++r) {
      const T total = joined_parts(sums.of[r]);
      if (r < rows && part == 0) {
        const T v = total + bias[row + r];
        values[(row + r) * samples + sample] = hidden ? activated(p.activation, v, beta) : v;
      }
    }
  }
}

// The scalar products of one iteration: number q of sample s at [q * samples + s].
template <class T>
__device__ void measure(const FixedPointMlp& p, const MlpLayout& layout, const T* memory, int slot,
                        double* sums) {
  const int lane = threadIdx.x % 32, part = lane / samples, sample = lane % samples;
  const int64_t d = p.features;
  const int m = p.slots(), last = (slot + m - 1) % m;
  const T *x = memory + layout.x, *y = memory + layout.y;
  const T *images = memory + layout.images, *residuals = memory + layout.residuals;
  const T *image = images + slot * d * samples, *residual = residuals + slot * d * samples;
  for (int q = threadIdx.x / 32; q < norms + p.memory; q += warps) {
    double sum = 0;
    for (int64_t u = part; u < d; u += parts) {
      const int64_t i = u * samples + sample;
      const int64_t before = last * d * samples + i;
      double a = residual[i], b = a;
      if (q == 1) a = b = x[i];
      if (q == 2) a = b = y[i];
      if (q == 3) a = b = x[i] - (static_cast<double>(images[before]) - residuals[before]);
      if (q == 4) a = b = static_cast<double>(image[i]) - images[before];
      if (q >= norms) b = residuals[(q - norms) * d * samples + i];
      sum += a * b;
    }
    sum = joined_parts(sum);
    if (part == 0) sums[q * samples + sample] = sum;
  }
}

// One thread a sample: judges it, and sets the weights with which x is mixed. False where x stays.
template <class T>
__device__ bool decide(const FixedPointMlp& p, int64_t sample, int slot, const double* sums,
                       double* gram, T* weights) {
  const int m = p.slots(), s = threadIdx.x;
  int32_t* const state = p.state + sample * iteration::words;
  const StepSums found = {sums[s], sums[samples + s], sums[2 * samples + s], sums[3 * samples + s],
                          sums[4 * samples + s]};
  const Next to = judge(found, p.lipschitz, p.rounding, p.memory, slot,
                        p.record + sample * iteration::numbers, state);
  for (int j = 0; j < m; ++j) weights[j * samples + s] = T(0);
  const int32_t valid = state[iteration::valid];
  int from = slot;
  if (to == Next::keep) {
    if (!valid) return false;
    from = state[iteration::newest];
  } else if (state[iteration::status] != iteration::converged) {
    if (to == Next::back || (p.memory && state[iteration::evaluations] >= p.max_iterations))
      from = state[iteration::newest];
    if (valid >> slot & 1) {
      for (int j = 0; j < m; ++j)
        gram[slot * m + j] = gram[j * m + slot] =
            j == slot ? found.r : sums[(norms + j) * samples + s];
    }
    if (to == Next::mixture && state[iteration::evaluations] < p.max_iterations) {
      double all[most_memory];
      anderson_weights(gram, m, valid, slot, all);
      for (int j = 0; j < m; ++j) weights[j * samples + s] = static_cast<T>(all[j]);
      return true;
    }
  }
  weights[from * samples + s] = T(1);
  return true;
}

template <class T>
__global__ void __launch_bounds__(threads) solve_kernel(const __grid_constant__ FixedPointMlp p) {
  DEEPGEN_DYNAMIC_SHARED(T, shared);
  DEEPGEN_SHARED(double, sums, (norms + most_memory) * samples);
  DEEPGEN_SHARED(double, grams, samples * most_memory * most_memory);
  DEEPGEN_SHARED(double, mixture, most_memory* samples);  // of T: room for either
  DEEPGEN_SHARED(int32_t, runs, samples);                 // 1: runs; 0: done
  DEEPGEN_SHARED(int32_t, moves, samples);
  const MlpLayout layout(p);
  T* const memory =
      p.scratch ? static_cast<T*>(p.scratch) + blockIdx.x * p.scratch_per_block : shared;
  T* const weights = reinterpret_cast<T*>(mixture);
  T *const x = memory + layout.x, *const y = memory + layout.y;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * samples, d = p.features;
  const int64_t count = smaller(samples, p.batch - first);
  const int m = p.slots();
  for (int64_t i = threadIdx.x; i < layout.size; i += threads) memory[i] = T(0);
  __syncthreads();
  for (int64_t i = threadIdx.x; i < count * d; i += threads) {
    const int64_t at = i % d * samples + i / d;
    x[at] = static_cast<const T*>(p.x0)[first * d + i];
    y[at] = static_cast<const T*>(p.y)[first * d + i];
  }
  const bool keeps_weights = !p.scratch && layout.holds_weights(sizeof(T));
  if (keeps_weights) {
    T* to = shared + layout.size;
    for (int l = 0; l < p.layers; ++l) {
      const int64_t columns = p.inputs(l), all = p.layer[l].units * columns;
      const T* const from = static_cast<const T*>(p.layer[l].weight);
      for (int64_t i = threadIdx.x; i < all; i += threads)
        to[i] = from[i / columns * p.layer[l].weight_stride + i % columns];
      to += all;
    }
  }
  if (threadIdx.x < samples) {
    runs[threadIdx.x] = threadIdx.x < count;
    if (threadIdx.x < count) start_sample(p, first + threadIdx.x);
  }
  __syncthreads();

  for (int slot = 0;; slot = (slot + 1) % m) {
    const T* below = x;
    const T* kept = shared + layout.size;
    for (int l = 0; l < p.layers; ++l) {
      T* const values = memory + layout.values[l % 2];
      const int64_t columns = p.inputs(l);
      apply_layer(p, l, keeps_weights ? kept : static_cast<const T*>(p.layer[l].weight),
                  keeps_weights ? columns : p.layer[l].weight_stride, below, values);
      kept += p.layer[l].units * columns;
      below = values;
      __syncthreads();
    }
    T *const image = memory + layout.images + slot * d * samples, *const residual =
                                                                      memory + layout.residuals +
                                                                      slot * d * samples;
    for (int64_t i = threadIdx.x; i < d * samples; i += threads) {
      image[i] = y[i] - below[i];
      residual[i] = image[i] - x[i];
    }
    __syncthreads();
    measure(p, layout, memory, slot, sums);
    __syncthreads();
    if (threadIdx.x < samples) {
      const int64_t sample = first + threadIdx.x;
      moves[threadIdx.x] = 0;
      if (runs[threadIdx.x]) {
        moves[threadIdx.x] =
            decide(p, sample, slot, sums, grams + threadIdx.x * most_memory * most_memory, weights);
        const int32_t* const state = p.state + sample * iteration::words;
        runs[threadIdx.x] = state[iteration::status] == iteration::running &&
                            state[iteration::evaluations] < p.max_iterations;
      }
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < d * samples; i += threads) {
      const int s = i % samples;
      if (!moves[s]) continue;
      T sum = 0;
      for (int age = 1; age <= m; ++age) {
        const int j = (slot + age) % m;
        // What a weight of 0 belongs to may not be finite.
        const T weight = weights[j * samples + s];
        if (weight != T(0)) sum += weight * memory[layout.images + j * d * samples + i];
      }
      x[i] = sum;
    }
    bool any = false;
    for (int s = 0; s < samples; ++s) any = any || runs[s];
    __syncthreads();
    if (!any) break;
  }
  if (threadIdx.x < count) end_sample(p, first + threadIdx.x);
  for (int64_t i = threadIdx.x; i < count * d; i += threads)
    static_cast<T*>(p.x)[first * d + i] = x[i % d * samples + i / d];
}

template <class T>
void solve(const FixedPointMlp& p, void* stream) {
  const MlpLayout layout(p);
  int64_t bytes = 0;
  if (!p.scratch)
    bytes = (layout.size + (layout.holds_weights(sizeof(T)) ? layout.weights : 0)) * sizeof(T);
  const unsigned blocks = static_cast<unsigned>((p.batch + samples - 1) / samples);
  launch(solve_kernel<T>, dim3(blocks), dim3(threads), static_cast<size_t>(bytes),
         static_cast<cudaStream_t>(stream), p);
}

}  // namespace

int64_t fixed_point_mlp_scratch(const FixedPointMlp& p) {
  const MlpLayout layout(p);
  return layout.holds_tile(p.storage == Storage::f64 ? 8 : 4) ? 0 : layout.size;
}

void fixed_point_mlp(const FixedPointMlp& p, void* stream) {
  p.storage == Storage::f64 ? solve<double>(p, stream) : solve<float>(p, stream);
}

}  // namespace deepgen::cuda
