// glow_conv_net on the CPU. It has no CUDA kernel: there the op is the vendor's convolutions,
// called by its glue.
//
// Both 3x3 convolutions have few channels on their outer side, so that the taps go there: what the
// input layer reads is spread into 9 in_channels columns, what the output layer's product gives, 9
// numbers for each channel, is folded, and all that is left of either, and of the 1x1 layer, is one
// matrix product by torch's BLAS. Their gradients are the same products transposed, six more, with
// spread and fold changing places. A thread owns a chunk of samples of 256 positions, or one sample
// (measured: 256 to 1024 alike on 16x16 images, 1024 slower by 10 % on 8x8 ones): its activations,
// (hidden, positions) each, stay in L2 from product to product, and are written once where a
// gradient will need them; columns are spread again rather than kept. Everything between products
// is a loop over a row of positions, whatever the images' size: a tap is an offset and a mask of
// the positions at which it lies inside the image, so that 4x4 images fill vectors too. What bounds
// it is the products: 0.41 ms forward and backward where these alone take 0.33 (64 images of 2x4x4,
// 64 hidden channels, one thread). Sums over positions are added chunk by chunk within 16 groups of
// chunks at most, then over the groups: in an order that does not depend on the threads. So a
// gradient uses 16 threads at most, and no direction more threads than there are chunks.
#include "../glow_conv_net.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "../vendor_product.h"
#include "glow_conv_loops.h"

namespace deepgen::cpu {
namespace {

constexpr int64_t most_groups = 16;  // of chunks, each with its own sums

template <class T>
class Net {
 public:
  explicit Net(const GlowConvNet& p)
      : p_(p),
        samples_(p.samples_a_chunk()),
        mask_stride_(samples_ * p.positions()),
        masks_(new Mask<T>[taps * mask_stride_]),
        scale_(p.out_channels) {
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
    const int64_t chunks = p_.chunks(), groups = std::min(chunks, most_groups);
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
      add(sums(), partial.get() + group * sums(), partial.get());
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
      // y is linear in the output layer: y dy = sum of w dw and b db, each before its scale.
      const int64_t row = taps * p_.hidden;
      const T* const w = static_cast<const T*>(p_.w_out) + o * row;
      const T sum = inner_product(row, w_out + o * row, w);
      static_cast<T*>(g.log_scale)[o] = 3 * (sum + b_out[o] * static_cast<const T*>(p_.b_out)[o]);
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
  int64_t sums() const { return biases() + w_in_size() + p_.hidden * p_.hidden + w_out_size(); }

  int64_t samples(int64_t chunk) const { return std::min(samples_, p_.batch - chunk * samples_); }
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

  Taps<T> of_input(int64_t n) const {
    return {n, p_.width, p_.in_channels * n, n, masks_.get(), mask_stride_};
  }
  Taps<T> of_output(int64_t n) const {
    return {n, p_.width, n, taps * n, masks_.get(), mask_stride_};
  }

  void forward(int64_t chunk, const Room& room, T* own) const {
    const int64_t n = samples(chunk) * p_.positions(), hidden = p_.hidden;
    T* const a = own ? own : activations(chunk);
    T* const b = a + hidden * n;
    gather(p_.x, p_.in_channels, chunk, room.planes);
    spread(of_input(n), p_.in_channels, false, room.planes, room.columns);
    product(matrix(p_.w_in, hidden, taps * p_.in_channels),
            matrix(room.columns, taps * p_.in_channels, n), a);
    const T* context = nullptr;
    if (p_.context.data) {
      gather(p_.context, hidden, chunk, b);
      context = b;
    }
    activate(hidden, n, static_cast<const T*>(p_.b_in), context, a);
    product(matrix(p_.w_hidden, hidden, hidden), matrix(a, hidden, n), b);
    activate(hidden, n, static_cast<const T*>(p_.b_hidden), nullptr, b);
    product(matrix(p_.w_out, p_.out_channels * taps, hidden), matrix(b, hidden, n), room.columns);
    fold(of_output(n), p_.out_channels, false, room.columns, room.planes);
    finish(p_.out_channels, n, static_cast<const T*>(p_.b_out), scale_.data(), room.planes);
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
    scale(p_.out_channels, n, scale_.data(), room.planes, b_out);
    spread(of_output(n), p_.out_channels, true, room.planes, room.columns);
    const MatrixOperand by_z = matrix(room.columns, out, n);
    product(matrix(p_.w_out, out, hidden).transposed(), by_z, by_b);
    if (g.w_out) product(by_z, matrix(b, hidden, n).transposed(), w_out, accumulate);
    mask(hidden, n, b, by_b, b_hidden);
    product(matrix(p_.w_hidden, hidden, hidden).transposed(), matrix(by_b, hidden, n), by_a);
    if (g.w_hidden)
      product(matrix(by_b, hidden, n), matrix(a, hidden, n).transposed(), w_hidden, accumulate);
    mask(hidden, n, a, by_a, b_in);
    if (g.grad_context.data) scatter(g.grad_context, hidden, chunk, by_a);
    if (g.w_in) {
      gather(p_.x, p_.in_channels, chunk, room.planes);
      spread(of_input(n), p_.in_channels, false, room.planes, room.columns);
      product(matrix(by_a, hidden, n), matrix(room.columns, in, n).transposed(), w_in, accumulate);
    }
    if (!g.grad_x.data) return;
    product(matrix(p_.w_in, hidden, in).transposed(), matrix(by_a, hidden, n), room.columns);
    fold(of_input(n), p_.in_channels, true, room.columns, room.planes);
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

}  // namespace deepgen::cpu
