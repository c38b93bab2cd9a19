// channel_affine on the CPU.
//
// Forward moves 8 bytes an element, backward 12 (g, x in, dx out) and finds both sums of each
// channel in the same pass; the vendor's way is three kernels forward and five backward. Memory
// bounds it. Work goes run by run, a run being the positions of one channel (images) or the
// channels of one position (vectors, channels-last), so that the innermost loop is always dense.
// Sums of runs are kept per piece of the batch, in double, and added in a fixed order: they do not
// depend on the number of threads.
#include "../channel_affine.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <vector>

#include "simd.h"

namespace deepgen::cpu {
namespace {

template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

constexpr int64_t grain_elements = 16384;
// Longest run summed in one go by SIMD lanes of float.
constexpr int64_t longest_run = 1024;

// The scale of each channel in the direction asked for.
template <class T>
struct Channels {
  std::vector<T> scale, shift;
};

// ---- One run. `step` is 0 where the run lies in one channel, 1 where it goes over the channels.

template <int Step, class S, class T>
DEEPGEN_INLINE void map_run_of(int64_t n, const S* __restrict x, const T* __restrict scale,
                               const T* __restrict shift, bool inverse, S* __restrict y) {
  if (inverse) {
    for (int64_t i = 0; i < n; ++i) {
      y[i] = static_cast<S>((static_cast<T>(x[i]) - shift[i * Step]) * scale[i * Step]);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      y[i] = static_cast<S>(static_cast<T>(x[i]) * scale[i * Step] + shift[i * Step]);
    }
  }
}

// dx = g * scale over a run in one channel; adds the sums of g x and of g.
template <class S, class T>
DEEPGEN_INLINE void gradient_run_in_channel(int64_t n, const S* __restrict g, const S* __restrict x,
                                            T scale, S* __restrict grad_input, double* sum_gx,
                                            double* sum_g) {
  for (int64_t begin = 0; begin < n; begin += longest_run) {
    const int64_t end = begin + longest_run < n ? begin + longest_run : n;
    T gx = 0, gs = 0;
#pragma omp simd reduction(+ : gx, gs)
    for (int64_t i = begin; i < end; ++i) {
      const T gradient = static_cast<T>(g[i]);
      grad_input[i] = static_cast<S>(gradient * scale);
      gx += gradient * static_cast<T>(x[i]);
      gs += gradient;
    }
    *sum_gx += gx;
    *sum_g += gs;
  }
}

// The same over the channels of one position.
template <class S, class T>
DEEPGEN_INLINE void gradient_run_over_channels(int64_t n, const S* __restrict g,
                                               const S* __restrict x, const T* __restrict scale,
                                               S* __restrict grad_input, double* __restrict sum_gx,
                                               double* __restrict sum_g) {
  for (int64_t i = 0; i < n; ++i) {
    const T gradient = static_cast<T>(g[i]);
    grad_input[i] = static_cast<S>(gradient * scale[i]);
    sum_gx[i] += gradient * static_cast<T>(x[i]);
    sum_g[i] += gradient;
  }
}

#define DEEPGEN_RUNS(S, T)                                                                         \
  DEEPGEN_SIMD void map_run(int64_t n, const S* x, const T* scale, const T* shift, bool inverse,   \
                            S* y, bool over_channels) {                                            \
    over_channels ? map_run_of<1, S, T>(n, x, scale, shift, inverse, y)                            \
                  : map_run_of<0, S, T>(n, x, scale, shift, inverse, y);                           \
  }                                                                                                \
  DEEPGEN_SIMD void gradient_run(int64_t n, const S* g, const S* x, const T* scale, S* grad_input, \
                                 double* sum_gx, double* sum_g, bool over_channels) {              \
    over_channels ? gradient_run_over_channels<S, T>(n, g, x, scale, grad_input, sum_gx, sum_g)    \
                  : gradient_run_in_channel<S, T>(n, g, x, *scale, grad_input, sum_gx, sum_g);     \
  }
DEEPGEN_RUNS(float, float)
DEEPGEN_RUNS(double, double)
DEEPGEN_RUNS(c10::BFloat16, float)
DEEPGEN_RUNS(c10::Half, float)
#undef DEEPGEN_RUNS

// ---- Walking over the runs.

// Whether runs go over the channels: where those lie side by side in all operands.
bool over_channels(const ChannelExtent& extent, std::initializer_list<ChannelOperand> operands) {
  if (extent.channels == 1) return false;
  bool channels_dense = true, positions_dense = true;
  for (const ChannelOperand& operand : operands) {
    channels_dense = channels_dense && operand.channel == 1;
    positions_dense = positions_dense && (operand.inner == 1 || extent.inner == 1);
  }
  return channels_dense && (!positions_dense || extent.inner < extent.channels);
}

// Calls run(sample, channel, position offset terms...) for each run of samples [first, last).
template <class Run>
void for_each_run(const ChannelExtent& extent, bool across, int64_t first, int64_t last, Run run) {
  for (int64_t n = first; n < last; ++n) {
    if (across) {
      for (int64_t o = 0; o < extent.outer; ++o) {
        for (int64_t i = 0; i < extent.inner; ++i) run(n, 0, o, i, extent.channels);
      }
    } else {
      for (int64_t c = 0; c < extent.channels; ++c) {
        for (int64_t o = 0; o < extent.outer; ++o) run(n, c, o, 0, extent.inner);
      }
    }
  }
}

template <class S>
S* at(const ChannelOperand& operand, int64_t n, int64_t c, int64_t o, int64_t i) {
  return static_cast<S*>(operand.data) + n * operand.batch + c * operand.channel +
         o * operand.outer + i * operand.inner;
}

// A run whose elements do not lie side by side (a transposed view) is gathered into a buffer and
// scattered back.
template <class S>
struct Run {
  explicit Run(int64_t length) : buffer(length) {}

  const S* gather(const S* from, int64_t stride, int64_t length) {
    if (stride == 1 || length == 1) return from;
    for (int64_t i = 0; i < length; ++i) buffer[i] = from[i * stride];
    return buffer.data();
  }
  S* target(S* to, int64_t stride, int64_t length) {
    return stride == 1 || length == 1 ? to : buffer.data();
  }
  void scatter(S* to, int64_t stride, int64_t length) {
    if (stride == 1 || length == 1) return;
    for (int64_t i = 0; i < length; ++i) to[i * stride] = buffer[i];
  }

  std::vector<S> buffer;
};

int64_t run_stride(const ChannelOperand& operand, bool across) {
  return across ? operand.channel : operand.inner;
}

bool strided(const ChannelExtent& extent, bool across,
             std::initializer_list<ChannelOperand> operands) {
  if ((across ? extent.channels : extent.inner) == 1) return false;
  for (const ChannelOperand& operand : operands) {
    if (run_stride(operand, across) != 1) return true;
  }
  return false;
}

// Samples of a piece of the batch: whole samples, about as many elements as make a thread worth
// waking.
int64_t samples_per_piece(const ChannelExtent& extent) {
  const int64_t sample = std::max<int64_t>(1, extent.channels * extent.positions());
  return std::max<int64_t>(1, grain_elements / sample);
}

template <class S>
std::vector<Compute<S>> values_of(const void* data, int64_t n) {
  const S* from = static_cast<const S*>(data);
  return {from, from + n};
}

template <class S>
std::vector<Compute<S>> scales_of(const void* log_scale, int64_t channels, bool inverse) {
  std::vector<Compute<S>> scale = values_of<S>(log_scale, channels);
  for (auto& value : scale) value = std::exp(inverse ? -value : value);
  return scale;
}

template <class S>
void forward(const ChannelAffine& p) {
  using T = Compute<S>;
  const ChannelExtent& extent = p.extent;
  const std::vector<T> scale = scales_of<S>(p.log_scale, extent.channels, p.inverse);
  const std::vector<T> shift = values_of<S>(p.shift, extent.channels);
  double sum = 0;
  for (const T value : values_of<S>(p.log_scale, extent.channels)) sum += value;
  const T log_det =
      static_cast<T>((p.inverse ? -sum : sum) * static_cast<double>(extent.positions()));
  std::fill_n(static_cast<T*>(p.log_det), extent.batch, log_det);

  const bool across = over_channels(extent, {p.x, p.y});
  const int64_t length = across ? extent.channels : extent.inner;
  const int64_t x_stride = run_stride(p.x, across), y_stride = run_stride(p.y, across);
  const bool gathers = strided(extent, across, {p.x, p.y});
  at::parallel_for(0, extent.batch, samples_per_piece(extent), [&](int64_t first, int64_t last) {
    Run<S> x_run(gathers ? length : 0), y_run(gathers ? length : 0);
    for_each_run(extent, across, first, last,
                 [&](int64_t n, int64_t c, int64_t o, int64_t i, int64_t) {
                   const S* x = x_run.gather(at<S>(p.x, n, c, o, i), x_stride, length);
                   S* y = y_run.target(at<S>(p.y, n, c, o, i), y_stride, length);
                   map_run(length, x, scale.data() + c, shift.data() + c, p.inverse, y, across);
                   y_run.scatter(at<S>(p.y, n, c, o, i), y_stride, length);
                 });
  });
}

template <class S>
void backward(const ChannelAffineBackward& p) {
  using T = Compute<S>;
  const ChannelExtent& extent = p.extent;
  const std::vector<T> scale = scales_of<S>(p.log_scale, extent.channels, p.inverse);
  const bool across = over_channels(extent, {p.x, p.grad_output, p.grad_input});
  const int64_t length = across ? extent.channels : extent.inner;
  const bool gathers = strided(extent, across, {p.x, p.grad_output, p.grad_input});
  const int64_t samples = samples_per_piece(extent);
  const int64_t pieces = (extent.batch + samples - 1) / samples;
  // (pieces, 2, channels): sums of g x and of g.
  std::vector<double> sums(pieces * 2 * extent.channels);
  at::parallel_for(0, pieces, 1, [&](int64_t first_piece, int64_t last_piece) {
    Run<S> g_run(gathers ? length : 0), x_run(gathers ? length : 0), out_run(gathers ? length : 0);
    for (int64_t piece = first_piece; piece < last_piece; ++piece) {
      double* sum_gx = sums.data() + piece * 2 * extent.channels;
      double* sum_g = sum_gx + extent.channels;
      const int64_t last = std::min(extent.batch, (piece + 1) * samples);
      for_each_run(
          extent, across, piece * samples, last,
          [&](int64_t n, int64_t c, int64_t o, int64_t i, int64_t) {
            const S* g = g_run.gather(at<S>(p.grad_output, n, c, o, i),
                                      run_stride(p.grad_output, across), length);
            const S* x = x_run.gather(at<S>(p.x, n, c, o, i), run_stride(p.x, across), length);
            S* out = at<S>(p.grad_input, n, c, o, i);
            const int64_t out_stride = run_stride(p.grad_input, across);
            gradient_run(length, g, x, scale.data() + c, out_run.target(out, out_stride, length),
                         sum_gx + c, sum_g + c, across);
            out_run.scatter(out, out_stride, length);
          });
    }
  });

  double grad_log_det = 0;
  for (int64_t n = 0; n < extent.batch; ++n)
    grad_log_det += static_cast<const T*>(p.grad_log_det)[n];
  grad_log_det *= static_cast<double>(extent.positions());
  for (int64_t c = 0; c < extent.channels; ++c) {
    double gx = 0, g = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      gx += sums[piece * 2 * extent.channels + c];
      g += sums[(piece * 2 + 1) * extent.channels + c];
    }
    const double by_log_scale = p.inverse ? -gx - grad_log_det : gx * scale[c] + grad_log_det;
    static_cast<S*>(p.grad_log_scale)[c] = static_cast<S>(static_cast<T>(by_log_scale));
    static_cast<S*>(p.grad_shift)[c] =
        static_cast<S>(static_cast<T>(p.inverse ? -g * scale[c] : g));
  }
}

}  // namespace

void channel_affine(const ChannelAffine& p) {
  switch (p.storage) {
    case Storage::f32:
      return forward<float>(p);
    case Storage::f64:
      return forward<double>(p);
    case Storage::bf16:
      return forward<c10::BFloat16>(p);
    case Storage::f16:
      return forward<c10::Half>(p);
  }
}

void channel_affine_backward(const ChannelAffineBackward& p) {
  switch (p.storage) {
    case Storage::f32:
      return backward<float>(p);
    case Storage::f64:
      return backward<double>(p);
    case Storage::bf16:
      return backward<c10::BFloat16>(p);
    case Storage::f16:
      return backward<c10::Half>(p);
  }
}

}  // namespace deepgen::cpu
