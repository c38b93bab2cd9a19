// A tile of samples on its way through a masked network, by one thread block: what
// autoregressive_inverse and its adjoint share. All activations are unit-major: value u of sample s
// lies at [u * samples + s].
#pragma once

#include "masked_elements.cuh"
#include "tile_product.cuh"

namespace deepgen::cuda {
namespace {

static_assert(samples == masked_samples);

constexpr int64_t dimensions_per_block = 16;

// Units of a tile's memory, in front of which each array begins; the host sizes it, blocks use it.
struct Layout {
  int64_t x = 0, z = 0, stream = 0, parameters = 0, bins = 0, of_x = 0, size = 0;
  int64_t values[most_masked_layers], cotangents[most_masked_layers];

  __host__ __device__ Layout(const MaskedNetwork& net, bool adjoint) {
    const int64_t d = net.dimensions;
    x = take(d);
    stream = take(net.residual ? net.layer[0].units : 0);
    const int64_t width = d < dimensions_per_block ? d : dimensions_per_block;
    parameters = take((adjoint ? d : width) * net.parameters);
    bins = take(2 * net.bins);
    for (int l = 0; l < net.hidden; ++l) values[l] = take(net.layer[l].units);
    if (!adjoint) return;
    z = take(d);
    of_x = take(d);
    for (int l = 0; l <= net.hidden; ++l) cotangents[l] = take(net.layer[l].units);
  }

 private:
  __host__ __device__ int64_t take(int64_t units) {
    const int64_t at = size;
    size += units * samples;
    return at;
  }
};

template <class T>
struct Tile {
  const MaskedNetwork& net;
  const Layout& layout;
  T* memory;
  int64_t first, count;
  int warp, part, sample;

  __device__ T* values_below(int l) const {
    return memory + (l == 0 ? layout.x : layout.values[l - 1]);
  }

  __device__ T bias_of(int l, int64_t row) const {
    const MaskedLayer& layer = net.layer[l];
    if (layer.bias_stride != 0 && sample >= count) return T(0);
    const int64_t at = layer.bias_stride == 0 ? row : (first + sample) * layer.bias_stride + row;
    return static_cast<const T*>(layer.bias)[at];
  }

  // Calls done(row, sum) in one lane a sample, for rows [begin, end): sum over columns [from, to)
  // of w(row, column) values[column].
  template <int R, class Done>
  __device__ void multiply_rows(bool transposed, int l, int64_t begin, int64_t end, int64_t from,
                                int64_t to, const T* values, Done done) const {
    const T* weight = static_cast<const T*>(net.layer[l].weight);
    const int64_t stride = net.layer[l].weight_stride;
    const int64_t row_step = transposed ? 1 : stride, column_step = transposed ? stride : 1;
    for (int64_t row = begin + warp * R; row < end; row += warps * R) {
      const int rows = static_cast<int>(smaller(R, end - row));
      const Sums<T, R> sums = sums_of<R>(weight + row * row_step + (from + part) * column_step,
                                         row_step, parts * column_step, rows, to - from - part,
                                         values + (from + part) * samples + sample);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const T total = joined_parts(sums.of[r]);
        if (r < rows && part == 0) done(row + r, total);
      }
    }
  }

  template <bool Transposed, class Done>
  __device__ void multiply(int l, int64_t begin, int64_t end, int64_t from, int64_t to,
                           const T* values, Done done) const {
    if (end - begin > 2 * warps) {
      multiply_rows<4>(Transposed, l, begin, end, from, to, values, done);
    } else {
      multiply_rows<1>(Transposed, l, begin, end, from, to, values, done);
    }
  }

  __device__ void load(const void* from, int64_t units, T* to) const {
    for (int64_t i = threadIdx.x; i < units * samples; i += threads) {
      const int64_t s = i / units, u = i % units;
      to[u * samples + s] = s < count ? static_cast<const T*>(from)[(first + s) * units + u] : T(0);
    }
  }
  __device__ void store(const T* from, int64_t units, void* to) const {
    for (int64_t i = threadIdx.x; i < units * count; i += threads) {
      const int64_t s = i / units, u = i % units;
      static_cast<T*>(to)[(first + s) * units + u] = from[u * samples + s];
    }
  }

  // Each dimension's parameters, then element(i, parameters) by one thread a sample.
  template <class Element>
  __device__ void walk(bool keep_parameters, Element element) const {
    const int64_t width = net.parameters;
    const int last = net.hidden;
    for (int64_t begin = 0; begin < net.dimensions; begin += dimensions_per_block) {
      const int64_t end = smaller(begin + dimensions_per_block, net.dimensions);
      T* const parameters =
          memory + layout.parameters - (keep_parameters ? 0 : begin * width * samples);
      for (int l = 0; l <= last; ++l) {
        T* sums = l == last ? parameters : memory + layout.values[l];
        multiply<false>(l, net.rows_below(l, begin), net.rows_below(l, end), 0, net.known(l, begin),
                        values_below(l), [&](int64_t row, T sum) {
                          sums[row * samples + sample] = sum + bias_of(l, row);
                        });
      }
      __syncthreads();
      for (int64_t i = begin; i < end; ++i) {
        for (int l = 0; l < last; ++l) {
          const int64_t from = net.first_unit(l, i), to = net.first_unit(l, i + 1);
          if (from == to) continue;
          multiply<false>(l, from, to, net.known(l, begin), net.seen(l, i), values_below(l),
                          [&](int64_t u, T sum) { finish_unit(l, u, sum); });
          __syncthreads();
        }
        multiply<false>(last, i * width, (i + 1) * width, net.known(last, begin), net.seen(last, i),
                        values_below(last),
                        [&](int64_t row, T sum) { parameters[row * samples + sample] += sum; });
        __syncthreads();
        if (threadIdx.x < samples) element(i, parameters + i * width * samples + threadIdx.x);
        __syncthreads();
      }
    }
  }

  __device__ void finish_unit(int l, int64_t u, T sum) const {
    const int64_t at = u * samples + sample;
    T* value = memory + layout.values[l] + at;
    sum += *value;
    if (net.on_stream(l)) {
      T* stream = memory + layout.stream + at;
      if (l > 0) sum += *stream;
      *stream = sum;
    }
    *value = net.passes_raw(l) ? sum : activated(net.activation, sum);
  }

  __device__ void soften(T* p) const {
    if (net.element == ElementMap::softclip_spline)
      soften_spline<T>(static_cast<T>(net.clamp), net.bins, StridedValues<T>{p, samples});
  }

  // x holds z and becomes x; the parameters may be written to; returns the log of dx/dz.
  __device__ DEEPGEN_NOINLINE T invert_element(const SplineConstants<T>& spline, T* p, T* x) const {
    T log_derivative = 0;
    if (net.element == ElementMap::affine) {
      with_scale_map(net.scale_map, [&]<ScaleMap M>() {
        invert_affine<M>(p[0], p[samples], static_cast<T>(net.clamp), x, &log_derivative);
      });
    } else {
      soften(p);
      spline_of_one<true>(spline, net.bins, *x, p, samples, memory + layout.bins + threadIdx.x,
                          samples, x, &log_derivative);
    }
    return log_derivative;
  }

  __device__ DEEPGEN_NOINLINE void adjoint_element(const SplineConstants<T>& spline, T* p, T z, T x,
                                                   T grad_log_det, T* of_x,
                                                   T* of_parameters) const {
    if (net.element == ElementMap::affine) {
      with_scale_map(net.scale_map, [&]<ScaleMap M>() {
        adjoint_affine<M>(p[0], x, grad_log_det, static_cast<T>(net.clamp), of_x, of_parameters,
                          of_parameters + samples);
      });
      return;
    }
    soften(p);
    const int64_t bins = net.bins, step = bins * samples;
    const StridedValues<const T> raw_widths{p, samples}, raw_heights{p + step, samples},
        derivatives{p + 2 * step, samples};
    T* room = memory + layout.bins + threadIdx.x;
    const StridedValues<T> widths{room, samples}, heights{room + step, samples};
    const StridedValues<T> of_widths{of_parameters, samples},
        of_heights{of_parameters + step, samples},
        of_derivatives{of_parameters + 2 * step, samples};
    const T width_sum = spline_exponentials<T>(bins, raw_widths, widths);
    const T height_sum = spline_exponentials<T>(bins, raw_heights, heights);
    *of_x = spline_gradient<true>(spline, bins, z, *of_x, grad_log_det, widths, width_sum, heights,
                                  height_sum, derivatives, of_widths, of_heights, of_derivatives);
    if (net.element == ElementMap::softclip_spline)
      soften_gradients<T>(static_cast<T>(net.clamp), bins, raw_widths,
                          StridedValues<T>{of_parameters, samples});
  }

  // What rows [from, to) of layer l pass back to values [begin, end) of the layer below.
  template <class Done>
  __device__ void pass_back(int l, int64_t begin, int64_t end, int64_t from, int64_t to,
                            Done done) const {
    multiply<true>(l, begin, end, from, to, memory + layout.cotangents[l], done);
  }

  __device__ void finish_cotangent(int l, int64_t u, T sum) const {
    const int64_t at = u * samples + sample;
    T* cotangent = memory + layout.cotangents[l] + at;
    sum += *cotangent;
    if (!net.passes_raw(l)) {
      sum *= activation_slope(net.activation, memory[layout.values[l] + at]);
      if (net.on_stream(l)) sum += memory[layout.cotangents[l + 2] + at];
    }
    *cotangent = sum;
  }

  __device__ void walk_back(const SplineConstants<T>& spline, T grad_log_det) const {
    const int64_t width = net.parameters;
    const int last = net.hidden;
    T* const of_x = memory + layout.of_x;
    T* const of_parameters = memory + layout.cotangents[last];
    int64_t begin = (net.dimensions - 1) / dimensions_per_block * dimensions_per_block;
    for (; begin >= 0; begin -= dimensions_per_block) {
      const int64_t end = smaller(begin + dimensions_per_block, net.dimensions);
      pass_back(0, begin, end, net.rows_below(0, end), net.layer[0].units,
                [&](int64_t i, T sum) { of_x[i * samples + sample] += sum; });
      for (int l = 1; l <= last; ++l) {
        T* cotangents = memory + layout.cotangents[l - 1];
        pass_back(l, net.first_unit(l - 1, begin), net.first_unit(l - 1, end),
                  net.rows_below(l, end), net.layer[l].units,
                  [&](int64_t u, T sum) { cotangents[u * samples + sample] = sum; });
      }
      __syncthreads();
      for (int64_t i = end - 1; i >= begin; --i) {
        pass_back(0, i, i + 1, net.rows_below(0, i + 1), net.rows_below(0, end),
                  [&](int64_t, T sum) { of_x[i * samples + sample] += sum; });
        __syncthreads();
        if (threadIdx.x < samples) {
          const int64_t at = i * samples + threadIdx.x, of = i * width * samples + threadIdx.x;
          adjoint_element(spline, memory + layout.parameters + of, memory[layout.z + at],
                          memory[layout.x + at], grad_log_det, of_x + at, of_parameters + of);
        }
        __syncthreads();
        for (int l = last; l > 0; --l) {
          const int64_t from = net.first_unit(l - 1, i), to = net.first_unit(l - 1, i + 1);
          if (from == to) continue;
          pass_back(l, from, to, net.rows_below(l, i), net.rows_below(l, end),
                    [&](int64_t u, T sum) { finish_cotangent(l - 1, u, sum); });
          __syncthreads();
        }
      }
    }
  }
};

}  // namespace
}  // namespace deepgen::cuda
