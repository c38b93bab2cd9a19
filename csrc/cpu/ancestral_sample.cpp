// ancestral_sample on the CPU.
//
// Who owns what: samples do not meet, so each thread takes tiles of samples through the whole image
// and waits for nobody; a tile's activations stand together, and one fetch of a weight serves all
// of its samples. With fewer samples than threads the columns of row steps are shared out instead.
//
// Work: every unmasked weight is used once a pixel and sample, 25 of the 49 taps of a 7x7 kernel;
// of these the 21 upper ones go to row steps, products of width * samples rows, which run at the
// speed of a large matrix product; the rest are products of as many rows as there are samples. What
// bounds it: arithmetic from eight samples on; for a single one the weights of the pixel steps,
// which come from L2 at every pixel. A framework's convolution at every pixel would instead spend
// its time on overhead: a pixel of a layer is a few thousand multiply-adds.
//
// Floor: the unmasked work of one dense pass, 0.52 of it for 7 layers of 64 channels and 7x7
// kernels. Measured (2 threads, AVX2, 28x28): 0.57 of a pass for 16 images, 0.80 for one. For 16
// the rest are the products of eight rows at each pixel, which read their weights twice, and the
// draws; for one it is the pixel steps, half of the time on one thread while the others wait.
// (Summing the next row's older rows on a waiting thread would hide a third of the row steps: not
// done.)
#include "../ancestral_sample.h"

#include <ATen/Parallel.h>

#include <vector>

#include "../choice.h"
#include "ancestral_steps.h"
#include "shared_work.h"

namespace deepgen::cpu {
namespace {

using sampling::Header;
using sampling::Kind;
using sampling::Node;
using sampling::Place;
using sampling::Program;
using sampling::Step;

// ---------------------------------------------------------------- a tile of samples

template <class T>
class Tile {
 public:
  Tile(const AncestralSample& problem, int64_t first_sample)
      : problem_(problem),
        program_(problem.program),
        first_(first_sample),
        samples_(std::min(problem.tile, problem.n - first_sample)),
        weights_(static_cast<const T*>(problem.weights)) {
    T* const caches = static_cast<T*>(problem.caches) + first_ * program_.header.cache_per_sample;
    planes_.reserve(program_.header.nodes);
    for (int32_t i = 0; i < program_.header.nodes; ++i) {
      planes_.push_back(plane(program_.nodes[i], caches));
    }
    waves_ = waves();
  }

  // `in_parts` calls its argument with (part, parts) for all parts, perhaps in parallel.
  template <class InParts>
  void draw_row(int64_t y, InParts in_parts) {
    for (const Wave& wave : waves_) {
      in_parts([&, this](int64_t part, int64_t parts) {
        for (int32_t i = wave.begin; i < wave.end; ++i) {
          const Step& step = program_.row_steps[i];
          const int64_t stride = planes_[step.dst].stride;
          if (y % stride) continue;
          // The same share of the image's columns at every resolution.
          const int64_t first = first_of(part, parts, stride);
          run(step, y / stride, first, first_of(part + 1, parts, stride) - first);
        }
      });
    }
    for (int64_t x = 0; x < problem_.width; ++x) {
      for (int32_t i = 0; i < program_.header.pixel_steps; ++i) {
        const Step& step = program_.pixel_steps[i];
        if (step.kind >= static_cast<int32_t>(Kind::categorical)) {
          draw(step, y, x);
          continue;
        }
        const int64_t stride = planes_[step.dst].stride;
        if (y % stride == 0 && x % stride == 0) run(step, y / stride, x / stride, 1);
      }
    }
  }

 private:
  // Row steps that threads can run on their own columns without waiting for one another.
  struct Wave {
    int32_t begin, end;
  };

  std::vector<Wave> waves() const {
    std::vector<Wave> found;
    std::vector<int32_t> written(program_.header.nodes, -1);  // in which wave
    for (int32_t i = 0; i < program_.header.row_steps; ++i) {
      const Step& step = program_.row_steps[i];
      const int32_t wave = static_cast<int32_t>(found.size()) - 1;
      bool waits = false;
      for (int32_t t = step.first_term; t < step.first_term + step.terms; ++t) {
        const sampling::Term& term = program_.terms[t];
        if (written[term.src] != wave) continue;
        waits |= term.ratio != static_cast<int32_t>(sampling::Ratio::same);
        for (int32_t k = term.first_tap; k < term.first_tap + term.taps; ++k) {
          waits |= program_.taps[k].dx != 0;
        }
      }
      if (step.kind != static_cast<int32_t>(Kind::linear)) {
        waits |= step.dx != 0 && written[step.a] == wave;
      }
      if (waits || found.empty()) found.push_back({i, i});
      found.back().end = i + 1;
      written[step.dst] = static_cast<int32_t>(found.size()) - 1;
    }
    return found;
  }

  int64_t first_of(int64_t part, int64_t parts, int64_t stride) const {
    return (part * problem_.width / parts + stride - 1) / stride;
  }

  Plane<T> plane(const Node& node, T* caches) const {
    const int64_t stride = std::max(node.stride, 1);
    const int64_t columns = (problem_.width + stride - 1) / stride;
    const int64_t c = node.channels;
    switch (static_cast<Place>(node.place)) {
      case Place::cached: {
        const int64_t column = c * samples_;
        return {caches + node.offset * samples_ + node.pad * column,
                (columns + 2 * node.pad) * column,
                column,
                c,
                node.rows,
                node.channels,
                node.stride,
                node.pad};
      }
      case Place::map: {
        T* const data = static_cast<T*>(const_cast<void*>(problem_.conditions[node.offset]));
        return {data + first_ * c, columns * problem_.n * c,
                problem_.n * c,    c,
                INT32_MAX,         node.channels,
                node.stride,       0};
      }
      default: {
        T* const data = static_cast<T*>(const_cast<void*>(problem_.conditions[node.offset]));
        return {data + first_ * c, 0, 0, c, 1, node.channels, node.stride, 0};
      }
    }
  }

  void run(const Step& step, int64_t row, int64_t first, int64_t count) const {
    if (count <= 0) return;
    if (step.kind != static_cast<int32_t>(Kind::linear)) {
      for (int64_t x = first; x < first + count; ++x) pointwise(step, row, x);
      return;
    }
    // A transposed convolution has other taps at even and at odd columns.
    bool phases = false;
    for (int32_t t = step.first_term; t < step.first_term + step.terms; ++t) {
      phases |= program_.terms[t].ratio == static_cast<int32_t>(sampling::Ratio::coarser);
    }
    const int64_t distance = phases && count > 1 ? 2 : 1;
    for (int64_t x = first; x < std::min(first + distance, first + count); ++x) {
      const Pixels pixels{row, x, distance, (first + count - x + distance - 1) / distance};
      linear_step(linear::Work<T>{&program_, &step, planes_.data(), weights_, pixels, samples_});
    }
  }

  void pointwise(const Step& step, int64_t row, int64_t x) const {
    const Plane<T>& dst = planes_[step.dst];
    const Plane<T>& a = planes_[step.a];
    T* const out = dst.at(row, x) + step.dst_channel;
    const int64_t from = row + step.dy;
    const bool outside = from < 0;
    const T* const in = outside ? nullptr : a.at(from, x + step.dx) + step.a_channel;
    const T* other = nullptr;
    int64_t other_stride = 0;
    if (step.b >= 0) {
      other = planes_[step.b].at(row, x) + step.b_channel;
      other_stride = planes_[step.b].sample_stride;
    }
    const T* const factors = step.weights >= 0 ? weights_ + step.weights : nullptr;
    const Kind kind = static_cast<Kind>(step.kind);
    const int64_t n = step.channels;
    if (outside) {
      for (int64_t s = 0; s < samples_; ++s) std::fill_n(out + s * dst.sample_stride, n, T(0));
    } else if (n == dst.sample_stride && n == a.sample_stride && (!other || n == other_stride)) {
      elementwise(kind, out, in, other, factors, n, n * samples_);
    } else {
      for (int64_t s = 0; s < samples_; ++s) {
        elementwise(kind, out + s * dst.sample_stride, in + s * a.sample_stride,
                    other ? other + s * other_stride : nullptr, factors, n, n);
      }
    }
  }

  // A drawn level, or number, enters the network at once.
  void draw(const Step& step, int64_t y, int64_t x) const {
    const AncestralSample& p = problem_;
    const Plane<T>& image = planes_[step.dst];
    const Plane<T>& parameters = planes_[step.a];
    const int64_t area = p.height * p.width;
    const auto kind = static_cast<Kind>(step.kind);
    const int64_t begin = kind == Kind::categorical ? step.image_channel : 0;
    const int64_t end = kind == Kind::categorical ? begin + 1 : p.channels;
    T* const values = static_cast<T*>(p.values);
    for (int64_t s = 0; s < samples_; ++s) {
      const int64_t at = ((first_ + s) * p.channels + begin) * area + y * p.width + x;
      if (!(p.known && p.known[at])) {
        const T* const logits = parameters.at(y, x) + s * parameters.sample_stride + step.a_channel;
        const T* const uniforms = static_cast<const T*>(p.uniforms) + at;
        const T temperature = static_cast<T>(p.temperature);
        if (kind == Kind::mixture) {
          draw_mixture(logits, {p.channels, step.mixtures}, p.n_levels, temperature, uniforms, area,
                       p.levels + at);
        } else if (kind == Kind::gaussian) {
          draw_gaussian(logits, p.channels, temperature, uniforms, area, values + at);
        } else {
          p.levels[at] = draw_level(logits, p.n_levels, temperature, *uniforms);
        }
      }
      T* const pixel = image.at(y, x) + s * image.sample_stride;
      for (int64_t c = begin; c < end; ++c) {
        if (values) {
          pixel[c] = values[at + c * area];
          continue;
        }
        const T level = static_cast<T>(p.levels[at + (c - begin) * area]);
        pixel[c] = 2 * level / static_cast<T>(p.n_levels - 1) - 1;
      }
    }
  }

  const AncestralSample& problem_;
  const Program program_;
  const int64_t first_, samples_;
  const T* const weights_;
  std::vector<Plane<T>> planes_;
  std::vector<Wave> waves_;
};

// With fewer samples than threads the columns of the row steps are shared out; otherwise tiles are.
template <class T>
void sample(const AncestralSample& p) {
  const int64_t tiles = (p.n + p.tile - 1) / p.tile;
  const auto rows_of = [&p](int64_t t, auto in_parts) {
    Tile<T> tile(p, t * p.tile);
    for (int64_t y = p.first_row; y < p.last_row; ++y) tile.draw_row(y, in_parts);
  };
  const int64_t threads = at::get_num_threads();
  if (tiles < threads) {
    note_choice("threads share columns", "fewer tiles of samples than threads");
    const uint32_t parts = static_cast<uint32_t>(std::max<int64_t>(1, p.width / 7));
    SharedWork::run(std::min<int64_t>(threads, parts), [&](SharedWork& work) {
      for (int64_t t = 0; t < tiles; ++t) {
        rows_of(t,
                [&](auto body) { work.share(parts, [&](uint32_t part) { body(part, parts); }); });
      }
    });
  } else {
    note_choice("a tile of samples a thread", "as many tiles as threads, or more");
    at::parallel_for(0, tiles, 1, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) {
        rows_of(t, [](auto body) { body(0, 1); });
      }
    });
  }
}

}  // namespace

void ancestral_sample(const AncestralSample& p) {
  p.storage == Storage::f64 ? sample<double>(p) : sample<float>(p);
}

}  // namespace deepgen::cpu
