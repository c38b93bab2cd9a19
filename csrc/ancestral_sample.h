// ancestral_sample: draws images pixel by pixel from a causal network, computing each activation
// once.
//
// The network is a program: a short list of steps on nodes. A node is one feature map; of it the
// caches keep only as many rows as later steps still read. Steps come in two lists. Row steps need
// nothing of the row that is being drawn and run once a row, on all its columns at once; pixel
// steps run at each pixel, draws among them. nn.AncestralSampler writes such programs: it gives
// every convolution whose upper taps are known before the row begins to a row step, and leaves to
// the pixel only what its left neighbours have just decided.
//
// The program is one int32 tensor: the Header, then nodes, row steps, pixel steps, terms and taps,
// each a struct below. Both kernels read it as it stands.
#pragma once

#include "elementary.h"
#include "operand.h"

namespace deepgen::sampling {

// Where a node's values live. Cached: `rows` rows in a ring, each `pad` zeros, the columns, `pad`
// zeros; of a tile of S samples the element (row, column, sample, channel) stands at offset * S +
// (((row % rows) * (columns + 2 pad) + pad + column) * S + sample) * channels + channel. Map: a
// condition, (rows of the image, columns, n, channels), number `offset` of the list. Vector: a
// condition (n, channels), the same at every pixel.
enum class Place : int32_t { cached, map, vector };

// Its pixel (i, j) belongs to the pixel (stride * i, stride * j) of the image: it has
// ceil(height / stride) rows, and steps that write it run only where stride divides row and column.
// A vector has stride 0.
struct Node {
  int32_t place, channels, stride, rows, pad, offset;
};

// linear        dst = start + sum over terms and taps of W x; start = a, or else the bias
// the rest      dst = f(a), f(a, b), channel by channel, a taken at (row + dy, column + dx), 0
// outside
// categorical   draws the level of the image's channel `image_channel` from logits a, writes it to
// dst
// mixture       draws all channels of the image from the logistic mixture a of `mixtures`
// gaussian      draws all channels of the image, real numbers, from [means][log scales] a. A
// program draws levels or real numbers, never both
enum class Kind : int32_t {
  linear,
  copy,
  relu,
  elu,
  negative_elu,  // elu(-a)
  tanh,
  sigmoid,
  affine,  // weights[c] * a + weights[channels + c]
  add,
  subtract,
  multiply,
  gate,          // tanh(a) * sigmoid(b)
  sigmoid_gate,  // a * sigmoid(b)
  categorical,
  mixture,
  gaussian,
};

// Channels [dst_channel, dst_channel + channels) of dst. Of a and b, -1 is none. `weights` is where
// the bias (linear, of whole panels) or the factors (affine) begin in the packed weights, or -1.
struct Step {
  int32_t kind, dst, dst_channel, channels, a, a_channel, b, b_channel, weights, first_term, terms;
  union {
    struct {
      int32_t dy, dx;
    };
    int32_t image_channel, mixtures;
  };
};

// Channels [src_channel, src_channel + channels) of src, under taps. same: src pixel = pixel + tap;
// finer: 2 pixel + tap (a convolution of stride 2); coarser: pixel / 2 + tap, where the tap serves
// only pixels of its phase, 2 * (row % 2) + column % 2 (a transposed one).
enum class Ratio : int32_t { same, finer, coarser };

struct Term {
  int32_t src, src_channel, channels, ratio, first_tap, taps;
};

// `weights` is where its matrix begins: panels of `panel` output channels, in each the input
// channels, in each the panel's weights; the last panel is filled up with zeros. It is a multiple
// of `panel`, like `weights` of a step.
struct Tap {
  int32_t dy, dx, phase, weights;
};

struct Header {
  int32_t nodes, row_steps, pixel_steps, terms, taps;
  int32_t image;             // the node that holds the drawn pixels, as 2 level / (levels - 1) - 1,
                             // or as they are where they are real numbers
  int32_t cache_per_sample;  // elements
  int32_t reserved;
};

// Output channels of a panel: 64 bytes.
template <class T>
constexpr int panel = 64 / sizeof(T);

// The program, unpacked.
struct Program {
  Header header;
  const Node* nodes;
  const Step *row_steps, *pixel_steps;
  const Term* terms;
  const Tap* taps;

  DEEPGEN_HD explicit Program(const int32_t* words) {
    header = *reinterpret_cast<const Header*>(words);
    nodes = reinterpret_cast<const Node*>(words + sizeof(Header) / 4);
    row_steps = reinterpret_cast<const Step*>(nodes + header.nodes);
    pixel_steps = row_steps + header.row_steps;
    terms = reinterpret_cast<const Term*>(pixel_steps + header.pixel_steps);
    taps = reinterpret_cast<const Tap*>(terms + header.terms);
  }

  // Whether pixels are real numbers and not levels.
  DEEPGEN_HD bool draws_real() const {
    bool real = false;
    for (int32_t i = 0; i < header.pixel_steps; ++i) {
      real |= pixel_steps[i].kind == static_cast<int32_t>(Kind::gaussian);
    }
    return real;
  }
};

// e^7 is as far from 1 as a scale goes: a network in its first steps draws no infinities.
template <class T>
DEEPGEN_HD T gaussian_draw(T mean, T log_scale, T temperature, T noise) {
  const T above = log_scale < T(-7) ? T(-7) : log_scale;
  return mean + temperature * exp_of(above > T(7) ? T(7) : above) * noise;
}

}  // namespace deepgen::sampling

namespace deepgen {

struct AncestralSample {
  Storage storage;         // f32 or f64: of weights, conditions, uniforms and caches
  const int32_t* program;  // on the kernel's device
  const void* weights;
  const void* const* conditions;  // on the host; at most max_conditions
  int64_t n_conditions;
  int64_t n, channels, height, width;
  int64_t n_levels;
  double temperature;
  const void* uniforms;  // (n, channels, height, width); normal numbers of a gaussian
  const bool* known;     // likewise, or null: where true, levels are given; of a mixture's or a
                         // gaussian's pixel the first channel says it for all
  int64_t* levels;       // likewise, or null
  void* values;          // what is drawn where the program draws real numbers, or null
  void* caches;          // n * cache_per_sample, the pads zero
  int64_t tile;          // samples that share one stretch of the caches
  int64_t first_row, last_row;

  static constexpr int max_conditions = 64;
};

namespace cpu {
void ancestral_sample(const AncestralSample&);
}
namespace cuda {
void ancestral_sample(const AncestralSample&, void* stream);
}

}  // namespace deepgen
