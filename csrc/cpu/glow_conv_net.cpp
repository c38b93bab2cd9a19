#include "../glow_conv_net.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "../vendor_product.h"
#include "simd.h"

namespace deepgen {

int64_t GlowConvNet::samples_a_chunk() const {
  static const int64_t wanted = std::getenv("GCN_P") ? std::atoll(std::getenv("GCN_P")) : 256;
  return std::clamp<int64_t>(wanted / std::max<int64_t>(1, positions()), 1,
                             std::max<int64_t>(1, batch));
}

namespace cpu {
namespace {

constexpr int taps = 9;

template <class T>
using Mask = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// to[i] = from[i + offset] where the tap lies inside the image, else 0.
template <class T>
DEEPGEN_INLINE void shift_row(int64_t n, int64_t offset, const Mask<T>* __restrict mask,
                              const T* __restrict from, T* __restrict to) {
  const T* __restrict source = from + offset;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T value = source[i];
    to[i] = mask[i] ? value : T(0);
  }
}

template <class T>
DEEPGEN_INLINE void add_shifted_row(int64_t n, int64_t offset, const Mask<T>* __restrict mask,
                                    const T* __restrict from, T* __restrict to) {
  const T* __restrict source = from + offset;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T value = source[i];
    to[i] += mask[i] ? value : T(0);
  }
}

template <class T>
DEEPGEN_INLINE void activate_row(int64_t n, T bias, const T* __restrict context,
                                 T* __restrict values) {
  if (context) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const T v = values[i] + bias + context[i];
      values[i] = v < T(0) ? T(0) : v;  // NaN stays
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const T v = values[i] + bias;
      values[i] = v < T(0) ? T(0) : v;
    }
  }
}

// gradient = 0 where the activation is not above 0; the sum of what is left.
template <class T>
DEEPGEN_INLINE T mask_row(int64_t n, const T* __restrict activation, T* __restrict gradient) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const T v = gradient[i];
    const T kept = activation[i] <= T(0) ? T(0) : v;
    gradient[i] = kept;
    sum += kept;
  }
  return sum;
}

template <class T>
DEEPGEN_INLINE T scale_row(int64_t n, T scale, T* __restrict values) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const T v = values[i] * scale;
    values[i] = v;
    sum += v;
  }
  return sum;
}

// The loops over a chunk's positions n, in the best instructions there are. Planes are (channels,
// n); columns (taps, channels, n) or, of the output, (channels, taps, n).
template <class T>
struct Strides {
  int64_t n, width, tap, channel;  // of columns
  const Mask<T>* masks;            // (taps, n)
  int64_t mask_stride;

  DEEPGEN_INLINE int64_t offset(int t) const { return (t / 3 - 1) * width + t % 3 - 1; }
};

template <class T>
DEEPGEN_INLINE void spread_planes(const Strides<T>& s, int64_t channels, bool flipped,
                                  const T* planes, T* columns) {
  for (int t = 0; t < taps; ++t) {
    const int from = flipped ? taps - 1 - t : t;
    for (int64_t c = 0; c < channels; ++c)
      shift_row<T>(s.n, s.offset(from), s.masks + from * s.mask_stride, planes + c * s.n,
                   columns + t * s.tap + c * s.channel);
  }
}

template <class T>
DEEPGEN_INLINE void fold_columns(const Strides<T>& s, int64_t channels, bool flipped,
                                 const T* columns, T* planes) {
  for (int64_t c = 0; c < channels; ++c) {
    T* const to = planes + c * s.n;
    for (int t = 0; t < taps; ++t) {
      const int from = flipped ? taps - 1 - t : t;
      const T* const row = columns + t * s.tap + c * s.channel;
      if (t == 0) {
        shift_row<T>(s.n, s.offset(from), s.masks + from * s.mask_stride, row, to);
      } else {
        add_shifted_row<T>(s.n, s.offset(from), s.masks + from * s.mask_stride, row, to);
      }
    }
  }
}

#define GLOW_LOOPS(T, suffix)                                                                    \
  DEEPGEN_SIMD void spread_##suffix(const Strides<T>& s, int64_t channels, bool flipped,         \
                                    const T* planes, T* columns) {                               \
    spread_planes<T>(s, channels, flipped, planes, columns);                                     \
  }                                                                                              \
  DEEPGEN_SIMD void fold_##suffix(const Strides<T>& s, int64_t channels, bool flipped,           \
                                  const T* columns, T* planes) {                                 \
    fold_columns<T>(s, channels, flipped, columns, planes);                                      \
  }                                                                                              \
  DEEPGEN_SIMD void activate_##suffix(int64_t rows, int64_t n, const T* bias, const T* context,  \
                                      T* values) {                                               \
    for (int64_t r = 0; r < rows; ++r)                                                           \
      activate_row<T>(n, bias[r], context ? context + r * n : nullptr, values + r * n);          \
  }                                                                                              \
  DEEPGEN_SIMD void mask_##suffix(int64_t rows, int64_t n, const T* activation, T* gradient,     \
                                  T* sums) {                                                     \
    for (int64_t r = 0; r < rows; ++r)                                                           \
      sums[r] += mask_row<T>(n, activation + r * n, gradient + r * n);                           \
  }                                                                                              \
  DEEPGEN_SIMD void scale_##suffix(int64_t rows, int64_t n, const T* scale, T* values,           \
                                   T* sums) {                                                    \
    for (int64_t r = 0; r < rows; ++r) sums[r] += scale_row<T>(n, scale[r], values + r * n);     \
  }                                                                                              \
  DEEPGEN_SIMD void finish_##suffix(int64_t rows, int64_t n, const T* bias, const T* scale,      \
                                    T* values) {                                                 \
    for (int64_t r = 0; r < rows; ++r) {                                                         \
      T* __restrict row = values + r * n;                                                        \
      for (int64_t i = 0; i < n; ++i) row[i] = (row[i] + bias[r]) * scale[r];                    \
    }                                                                                            \
  }

GLOW_LOOPS(float, f32)
GLOW_LOOPS(double, f64)

#define GLOW_CALL(name, ...)                 \
  if constexpr (sizeof(T) == 4) {            \
    name##_f32(__VA_ARGS__);                 \
  } else {                                   \
    name##_f64(__VA_ARGS__);                 \
  }

template <class T>
class Net {
 public:
  explicit Net(const GlowConvNet& p)
      : p_(p), samples_(p.samples_a_chunk()), mask_stride_(samples_ * p.positions()),
        masks_(new Mask<T>[taps * mask_stride_]), scale_(p.out_channels) {
    for (int t = 0; t < taps; ++t) {
      Mask<T>* to = masks_.get() + t * mask_stride_;
      for (int64_t h = 0; h < p.height; ++h) {
        const int64_t y = h + t / 3 - 1;
        for (int64_t w = 0; w < p.width; ++w) {
          const int64_t x = w + t % 3 - 1;
          *to++ = y >= 0 && y < p.height && x >= 0 && x < p.width ? -1 : 0;
        }
      }
      const int64_t n = p.positions();
      Mask<T>* const first = masks_.get() + t * mask_stride_;
      for (int64_t s = 1; s < samples_; ++s) std::copy_n(first, n, first + s * n);
    }
    for (int64_t o = 0; o < p.out_channels; ++o)
      scale_[o] = std::exp(3 * static_cast<const T*>(p.log_scale)[o]);
  }

  void forward() const {
    at::parallel_for(0, p_.chunks(), 1, [&](int64_t first, int64_t last) {
      const Room room(*this);
      std::unique_ptr<T[]> own;
      if (!p_.activations) own.reset(new T[2 * p_.hidden * mask_stride_]);
      for (int64_t chunk = first; chunk < last; ++chunk) forward(chunk, room, own.get());
    });
  }

  void backward(const GlowConvNetBackward& g) const {
    const int64_t chunks = p_.chunks(), groups = std::min<int64_t>(chunks, 16);
    std::unique_ptr<T[]> partial(new T[groups * sums()]);
    at::parallel_for(0, groups, 1, [&](int64_t first, int64_t last) {
      const Room room(*this);
      std::unique_ptr<T[]> gradients(new T[2 * p_.hidden * mask_stride_]);
      for (int64_t group = first; group < last; ++group) {
        const int64_t begin = group * chunks / groups, end = (group + 1) * chunks / groups;
        T* const into = partial.get() + group * sums();
        std::fill_n(into, biases(), T(0));
        for (int64_t chunk = begin; chunk < end; ++chunk)
          backward(g, chunk, room, gradients.get(), into, chunk > begin);
      }
    });
    if (!g.w_in) return;
    for (int64_t group = 1; group < groups; ++group) {
      const T* __restrict from = partial.get() + group * sums();
      T* __restrict to = partial.get();
      for (int64_t i = 0; i < sums(); ++i) to[i] += from[i];
    }
    const T* from = partial.get();
    const auto take = [&](void* to, int64_t count) {
      std::copy_n(from, count, static_cast<T*>(to));
      from += count;
    };
    const T* const b_out = from + 2 * p_.hidden;
    take(g.b_in, p_.hidden);
    take(g.b_hidden, p_.hidden);
    take(g.b_out, p_.out_channels);
    take(g.w_in, w_in_size());
    take(g.w_hidden, p_.hidden * p_.hidden);
    const T* const w_out = from;
    take(g.w_out, w_out_size());
    for (int64_t o = 0; o < p_.out_channels; ++o) {
      T sum = b_out[o] * static_cast<const T*>(p_.b_out)[o];
      const int64_t row = taps * p_.hidden;
      const T* const w = static_cast<const T*>(p_.w_out) + o * row;
      for (int64_t i = 0; i < row; ++i) sum += w_out[o * row + i] * w[i];
      static_cast<T*>(g.log_scale)[o] = 3 * sum;
    }
  }

 private:
  // What a thread works on: planes and columns of either end, with room for the taps' reach.
  struct Room {
    explicit Room(const Net& net) {
      const auto& p = net.p_;
      const int64_t reach = p.width + 1, n = net.mask_stride_;
      const int64_t wide = std::max(p.in_channels, p.out_channels);
      const int64_t plane = wide * n + 2 * reach;
      all.reset(new T[plane + taps * wide * n + 2 * reach]);
      planes = all.get() + reach;
      columns = all.get() + plane + reach;
    }
    std::unique_ptr<T[]> all;
    T *planes, *columns;
  };

  int64_t w_in_size() const { return p_.hidden * taps * p_.in_channels; }
  int64_t w_out_size() const { return p_.out_channels * taps * p_.hidden; }
  int64_t biases() const { return 2 * p_.hidden + p_.out_channels; }
  int64_t sums() const {
    return biases() + w_in_size() + p_.hidden * p_.hidden + w_out_size();
  }

  int64_t samples(int64_t chunk) const {
    return std::min(samples_, p_.batch - chunk * samples_);
  }
  T* activations(int64_t chunk) const {
    return static_cast<T*>(p_.activations) + chunk * 2 * p_.hidden * mask_stride_;
  }

  // (channels, samples of the chunk, height, width), dense.
  void gather(const PixelOperand& image, int64_t channels, int64_t chunk, T* to) const {
    const int64_t h = p_.height, w = p_.width, first = chunk * samples_, count = samples(chunk);
    const bool dense =
        (w == 1 || image.column == 1) && (h == 1 || image.row == w * (w == 1 ? 1 : image.column));
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t s = 0; s < count; ++s, to += h * w) {
        const T* const from = static_cast<const T*>(image.data) + image.offset(first + s, c, 0, 0);
        if (dense) {
          std::memcpy(to, from, h * w * sizeof(T));
          continue;
        }
        for (int64_t i = 0; i < h; ++i)
          for (int64_t j = 0; j < w; ++j) to[i * w + j] = from[i * image.row + j * image.column];
      }
    }
  }
  void scatter(const PixelOperand& image, int64_t channels, int64_t chunk, const T* from) const {
    const int64_t n = p_.positions(), first = chunk * samples_, count = samples(chunk);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t s = 0; s < count; ++s, from += n)
        std::memcpy(static_cast<T*>(image.data) + image.offset(first + s, c, 0, 0), from,
                    n * sizeof(T));
  }

  void product(const MatrixOperand& a, const MatrixOperand& b, const T* to,
               bool accumulate = false) const {
    vendor_product(p_.storage, a, b, accumulate, {to, a.rows, b.columns, b.columns, 1});
  }
  static MatrixOperand matrix(const void* data, int64_t rows, int64_t columns) {
    return {data, rows, columns, columns, 1};
  }

  Strides<T> of_input(int64_t n) const {
    return {n, p_.width, p_.in_channels * n, n, masks_.get(), mask_stride_};
  }
  Strides<T> of_output(int64_t n) const {
    return {n, p_.width, n, taps * n, masks_.get(), mask_stride_};
  }

  void forward(int64_t chunk, const Room& room, T* own) const {
    const int64_t n = samples(chunk) * p_.positions(), hidden = p_.hidden;
    T* const a = own ? own : activations(chunk);
    T* const b = a + hidden * n;
    gather(p_.x, p_.in_channels, chunk, room.planes);
    GLOW_CALL(spread, of_input(n), p_.in_channels, false, room.planes, room.columns);
    product(matrix(p_.w_in, hidden, taps * p_.in_channels),
            matrix(room.columns, taps * p_.in_channels, n), a);
    const T* context = nullptr;
    if (p_.context.data) {
      gather(p_.context, hidden, chunk, b);
      context = b;
    }
    GLOW_CALL(activate, hidden, n, static_cast<const T*>(p_.b_in), context, a);
    product(matrix(p_.w_hidden, hidden, hidden), matrix(a, hidden, n), b);
    GLOW_CALL(activate, hidden, n, static_cast<const T*>(p_.b_hidden), nullptr, b);
    product(matrix(p_.w_out, p_.out_channels * taps, hidden), matrix(b, hidden, n), room.columns);
    GLOW_CALL(fold, of_output(n), p_.out_channels, false, room.columns, room.planes);
    GLOW_CALL(finish, p_.out_channels, n, static_cast<const T*>(p_.b_out), scale_.data(),
              room.planes);
    scatter(p_.y, p_.out_channels, chunk, room.planes);
  }

  void backward(const GlowConvNetBackward& g, int64_t chunk, const Room& room, T* gradients,
                T* into, bool accumulate) const {
    const int64_t n = samples(chunk) * p_.positions(), hidden = p_.hidden;
    const int64_t in = taps * p_.in_channels, out = taps * p_.out_channels;
    const T *const a = activations(chunk), *const b = a + hidden * n;
    T *const by_a = gradients, *const by_b = gradients + hidden * n;
    T *const b_in = into, *const b_hidden = into + hidden, *const b_out = b_hidden + hidden;
    T *const w_in = into + biases(), *const w_hidden = w_in + w_in_size(),
             *const w_out = w_hidden + hidden * hidden;

    gather(p_.y, p_.out_channels, chunk, room.planes);
    GLOW_CALL(scale, p_.out_channels, n, scale_.data(), room.planes, b_out);
    GLOW_CALL(spread, of_output(n), p_.out_channels, true, room.planes, room.columns);
    const MatrixOperand by_z = matrix(room.columns, out, n);
    product(matrix(p_.w_out, out, hidden).transposed(), by_z, by_b);
    if (g.w_out) product(by_z, matrix(b, hidden, n).transposed(), w_out, accumulate);
    GLOW_CALL(mask, hidden, n, b, by_b, b_hidden);
    product(matrix(p_.w_hidden, hidden, hidden).transposed(), matrix(by_b, hidden, n), by_a);
    if (g.w_hidden)
      product(matrix(by_b, hidden, n), matrix(a, hidden, n).transposed(), w_hidden, accumulate);
    GLOW_CALL(mask, hidden, n, a, by_a, b_in);
    if (g.grad_context.data) scatter(g.grad_context, hidden, chunk, by_a);
    if (g.w_in) {
      gather(p_.x, p_.in_channels, chunk, room.planes);
      GLOW_CALL(spread, of_input(n), p_.in_channels, false, room.planes, room.columns);
      product(matrix(by_a, hidden, n), matrix(room.columns, in, n).transposed(), w_in, accumulate);
    }
    if (!g.grad_x.data) return;
    product(matrix(p_.w_in, hidden, in).transposed(), matrix(by_a, hidden, n), room.columns);
    GLOW_CALL(fold, of_input(n), p_.in_channels, true, room.columns, room.planes);
    scatter(g.grad_x, p_.in_channels, chunk, room.planes);
  }

  const GlowConvNet& p_;
  const int64_t samples_, mask_stride_;
  std::unique_ptr<Mask<T>[]> masks_;
  std::vector<T> scale_;
};

}  // namespace

void glow_conv_net(const GlowConvNet& p) {
  if (p.storage == Storage::f64) return Net<double>(p).forward();
  Net<float>(p).forward();
}

void glow_conv_net_backward(const GlowConvNetBackward& p) {
  if (p.forward.storage == Storage::f64) return Net<double>(p.forward).backward(p);
  Net<float>(p.forward).backward(p);
}

}  // namespace cpu
}  // namespace deepgen
