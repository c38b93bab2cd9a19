// discretized_logistic_mixture on the GPU.
//
// Forward reads the parameters once (400 bytes a position for 10 mixtures of 3 channels), backward
// reads and writes them; with 100 elementary functions a position forward and 200 backward, memory
// and arithmetic bound it about equally. A block owns 32 positions, a warp one component of all of
// them, so that reads and writes of neighbouring lanes lie side by side and the parameters of one
// position are spread over up to 16 threads: a thread a position would leave most of the device
// idle at the batches of training. What the sum over components needs goes through shared memory,
// and one warp adds it in the order of the components. Backward evaluates each component a second
// time, its parameters still in L1, rather than keep intermediate values in memory. A draw is
// sequential (a component, then channel after channel): a thread a position.
#include "../discretized_logistic_mixture.h"
#include "rows.cuh"

namespace deepgen::cuda {
namespace {

constexpr int positions_per_block = 32;
constexpr int most_components_at_once = 16;

// One position of the batch.
template <class S>
struct Pixel {
  using T = Compute<S>;

  __device__ Pixel(const LogisticMixture& p, int64_t index) : p(p) {
    const int64_t sample = index / p.positions, position = index % p.positions;
    parameters = static_cast<const S*>(p.parameters.data) + sample * p.parameters.batch +
                 position * p.parameters.position;
    level_offset = sample * p.layout.channels * p.positions + position;
    last = static_cast<T>(p.n_levels - 1);
  }

  __device__ T parameter(int64_t row) const {
    return to_compute(parameters[row * p.parameters.channel]);
  }
  __device__ T level(int64_t c) const {
    const int64_t index = level_offset + c * p.positions;
    const int64_t value = p.levels_are_bytes ? static_cast<const uint8_t*>(p.levels)[index]
                                             : static_cast<const int64_t*>(p.levels)[index];
    const T given = static_cast<T>(value < 0 ? 0 : value);
    return given < last ? given : last;
  }
  __device__ T x(int64_t c) const { return T(2) * level(c) / last - T(1); }

  const LogisticMixture& p;
  const S* parameters;
  int64_t level_offset;
  T last;
};

// One channel of a pixel under one component.
template <class S>
struct Bin {
  using T = Compute<S>;

  __device__ Bin(const Pixel<S>& pixel, int64_t c, int64_t k) {
    const MixtureLayout& layout = pixel.p.layout;
    T mean = pixel.parameter(layout.mean(c) + k);
    for (int64_t j = 0; j < c; ++j) {
      mean += tanh_of(pixel.parameter(layout.coefficient(c, j) + k)) * pixel.x(j);
    }
    log_scale = pixel.parameter(layout.log_scale(c) + k);
    r = inverse_scale(log_scale);
    half_width = r / pixel.last;
    t = tanh_of(half_width);
    const T level = pixel.level(c), centre = (pixel.x(c) - mean) * r;
    b = upper_edge(level, pixel.last, centre, half_width);
    a = lower_edge(level, centre, half_width);
    inner = level != T(0) && level != pixel.last;
  }
  __device__ T log_probability() const {
    return bin_exponent(a, b, log_scale, inner) + log_of(bin_ratio(a, b, r, t, inner));
  }

  T log_scale, r, half_width, t, a, b;
  bool inner;
};

// What all components of a position add up to.
template <class T>
struct Sums {
  T top, weights;    // of the logits: the largest, and the sum of e^(logit - top)
  T largest, terms;  // of logit - top + log P likewise

  __device__ T log_likelihood() const { return largest + log_of(terms) - log_of(weights); }
};

// Fills joint[k][lane] with logit - top + log P, and finds the sums; in the first warp only.
template <class S>
__device__ Sums<Compute<S>> evaluate(const Pixel<S>& pixel, Compute<S>* logits, Compute<S>* joint) {
  using T = Compute<S>;
  const int64_t mixtures = pixel.p.layout.mixtures;
  const int lane = threadIdx.x;
  for (int64_t k = threadIdx.y; k < mixtures; k += blockDim.y) {
    T log_probability = 0;
    for (int64_t c = 0; c < pixel.p.layout.channels; ++c) {
      log_probability += Bin<S>(pixel, c, k).log_probability();
    }
    logits[k * positions_per_block + lane] = pixel.parameter(k);
    joint[k * positions_per_block + lane] = log_probability;
  }
  __syncthreads();
  Sums<T> sums = {logits[lane], 0, T(-3e38), 0};
  if (threadIdx.y != 0) return sums;
  for (int64_t k = 1; k < mixtures; ++k) {
    const T logit = logits[k * positions_per_block + lane];
    sums.top = logit > sums.top ? logit : sums.top;
  }
  for (int64_t k = 0; k < mixtures; ++k) {
    const int64_t at = k * positions_per_block + lane;
    const T logit = logits[at] - sums.top, value = logit + joint[at];
    sums.weights += decay_of(logit);
    joint[at] = value;
    sums.largest = value > sums.largest ? value : sums.largest;
  }
  for (int64_t k = 0; k < mixtures; ++k) {
    sums.terms += decay_of(joint[k * positions_per_block + lane] - sums.largest);
  }
  return sums;
}

template <class S>
__global__ void forward_kernel(LogisticMixture p) {
  using T = Compute<S>;
  DEEPGEN_DYNAMIC_SHARED(T, shared);
  const int64_t count = p.batch * p.positions;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * positions_per_block + threadIdx.x;
  const bool exists = index < count;
  const Pixel<S> pixel(p, exists ? index : count - 1);
  const Sums<T> sums = evaluate(pixel, shared, shared + p.layout.mixtures * positions_per_block);
  if (exists && threadIdx.y == 0) static_cast<T*>(p.log_likelihood)[index] = sums.log_likelihood();
}

template <class S>
__global__ void backward_kernel(LogisticMixtureBackward problem) {
  using T = Compute<S>;
  DEEPGEN_DYNAMIC_SHARED(T, shared);
  const LogisticMixture& p = problem.forward;
  const MixtureLayout& layout = p.layout;
  const int lane = threadIdx.x;
  const int64_t count = p.batch * p.positions;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * positions_per_block + lane;
  const bool exists = index < count;
  const Pixel<S> pixel(p, exists ? index : count - 1);
  T* const logits = shared;
  T* const joint = shared + layout.mixtures * positions_per_block;
  T* const sums = shared + 2 * layout.mixtures * positions_per_block;
  const Sums<T> own = evaluate(pixel, logits, joint);
  if (threadIdx.y == 0) {
    sums[lane] = own.top;
    sums[positions_per_block + lane] = own.weights;
    sums[2 * positions_per_block + lane] = own.largest;
    sums[3 * positions_per_block + lane] = own.terms;
  }
  __syncthreads();
  if (!exists) return;
  const T grad_output = static_cast<const T*>(problem.grad_output)[index];
  S* const gradients = static_cast<S*>(problem.grad_parameters.data) +
                       index / p.positions * problem.grad_parameters.batch +
                       index % p.positions * problem.grad_parameters.position;
  const int64_t stride = problem.grad_parameters.channel;
  for (int64_t k = threadIdx.y; k < layout.mixtures; k += blockDim.y) {
    const int64_t at = k * positions_per_block + lane;
    const T share = decay_of(joint[at] - sums[2 * positions_per_block + lane]) /
                    sums[3 * positions_per_block + lane];
    const T prior = decay_of(logits[at] - sums[lane]) / sums[positions_per_block + lane];
    const T responsibility = share * grad_output;
    gradients[k * stride] = to_storage<S>(responsibility - prior * grad_output);
    for (int64_t c = 0; c < layout.channels; ++c) {
      const Bin<S> bin(pixel, c, k);
      const T by_mean = responsibility * gradient_by_mean(bin.a, bin.b, bin.r);
      const T by_log_scale =
          responsibility *
          gradient_by_log_scale(bin.a, bin.b, bin.half_width, bin.t, bin.log_scale, bin.inner);
      gradients[(layout.mean(c) + k) * stride] = to_storage<S>(by_mean);
      gradients[(layout.log_scale(c) + k) * stride] = to_storage<S>(by_log_scale);
      for (int64_t j = 0; j < c; ++j) {
        const int64_t row = layout.coefficient(c, j) + k;
        const T coupling = tanh_of(pixel.parameter(row));
        gradients[row * stride] =
            to_storage<S>(by_mean * pixel.x(j) * (T(1) - coupling * coupling));
      }
    }
  }
}

template <class S>
__global__ void __launch_bounds__(block_threads) draw_kernel(LogisticMixtureDraw p) {
  using T = Compute<S>;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  if (i >= p.batch * p.positions) return;
  const int64_t sample = i / p.positions, position = i % p.positions;
  const int64_t pixel = sample * p.layout.channels * p.positions + position;
  draw_from_logistic_mixture<T>(
      static_cast<const S*>(p.parameters.data) + sample * p.parameters.batch +
          position * p.parameters.position,
      p.parameters.channel, p.layout, p.n_levels, static_cast<T>(p.temperature),
      static_cast<const T*>(p.uniforms) + pixel, p.positions, p.levels + pixel, p.positions);
}

unsigned blocks_for(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

template <class S, class Problem>
void launch_tiles(void (*kernel)(Problem), const Problem& problem, const LogisticMixture& p,
                  int rows_of_sums, cudaStream_t stream) {
  const int64_t mixtures = p.layout.mixtures;
  const int components =
      static_cast<int>(mixtures < most_components_at_once ? mixtures : most_components_at_once);
  const size_t shared_bytes =
      (2 * mixtures + rows_of_sums) * positions_per_block * sizeof(Compute<S>);
  launch(kernel, dim3(blocks_for(p.batch * p.positions, positions_per_block)),
         dim3(positions_per_block, components), shared_bytes, stream, problem);
}

}  // namespace

void discretized_logistic_mixture(const LogisticMixture& p, void* stream) {
  with_storage(p.storage, [&](auto type) {
    using S = decltype(type);
    launch_tiles<S>(forward_kernel<S>, p, p, 0, static_cast<cudaStream_t>(stream));
  });
}

void discretized_logistic_mixture_backward(const LogisticMixtureBackward& p, void* stream) {
  with_storage(p.forward.storage, [&](auto type) {
    using S = decltype(type);
    launch_tiles<S>(backward_kernel<S>, p, p.forward, 4, static_cast<cudaStream_t>(stream));
  });
}

void discretized_logistic_mixture_draw(const LogisticMixtureDraw& p, void* stream) {
  with_storage(p.storage, [&](auto type) {
    launch(draw_kernel<decltype(type)>, dim3(blocks_for(p.batch * p.positions, block_threads)),
           dim3(block_threads), 0, static_cast<cudaStream_t>(stream), p);
  });
}

}  // namespace deepgen::cuda
