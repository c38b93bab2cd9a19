// One linear step of ancestral_sample on a run of pixels: dst = start + sum over taps of W x.
//
// A product of small matrices whose left rows are (pixel, sample) pairs, read where they lie in the
// caches, and whose right matrix is packed in panels of 64 bytes of output channels. A register
// tile is up to six rows by one panel, or fewer rows by more panels, so that at least eight
// independent sums hide the latency of the multiply-add also where there is a single sample. Each
// output adds its terms in one order, whatever the tile: a batch draws what its samples draw alone.
#pragma once

#include <algorithm>
#include <cstring>

#include "../ancestral_sample.h"
#include "simd.h"

namespace deepgen::cpu {

// A node of one tile of samples: where row `row` stands, and how far apart columns and samples are.
template <class T>
struct Plane {
  T* data;
  int64_t row_stride, column_stride, sample_stride;
  int32_t rows;  // of the ring; all where it is a map
  int32_t channels, stride, pad;

  DEEPGEN_INLINE T* at(int64_t row, int64_t column) const {
    return data + (row % rows) * row_stride + column * column_stride;
  }
};

// Pixels (row, first + step * i), i < count, of the step's dst.
struct Pixels {
  int64_t row, first, step, count;
};

namespace linear {

// A vector of `Bytes`, loaded and stored without alignment.
template <class T, int Bytes>
struct Vector {
  typedef T type __attribute__((vector_size(Bytes)));
  typedef T unaligned __attribute__((vector_size(Bytes), aligned(alignof(T)), may_alias));
};

// Where the rows of a register tile are: offsets of the source's rows from its first one.
template <int Rows>
struct Offsets {
  int64_t of[Rows];
};

// Everything about a step that does not depend on the register tile.
template <class T>
struct Work {
  const sampling::Program* program;
  const sampling::Step* step;
  const Plane<T>* planes;
  const T* weights;
  Pixels pixels;
  int64_t samples;
};

// The first pixel and the distance of pixels of a term's source, at no tap.
DEEPGEN_INLINE Pixels source_pixels(int32_t ratio, const Pixels& p) {
  if (ratio == static_cast<int32_t>(sampling::Ratio::finer)) {
    return {2 * p.row, 2 * p.first, 2 * p.step, p.count};
  }
  if (ratio == static_cast<int32_t>(sampling::Ratio::coarser)) {
    return {p.row / 2, p.first / 2, (p.step + 1) / 2, p.count};
  }
  return p;
}

template <int Bytes, int Rows, int Panels, class T>
DEEPGEN_INLINE void tile(const Work<T>& work, int64_t first_row, int32_t first_panel) {
  using V = typename Vector<T, Bytes>::type;
  using U = typename Vector<T, Bytes>::unaligned;
  constexpr int lanes = Bytes / sizeof(T);
  constexpr int vectors = Panels * sampling::panel<T> / lanes;
  constexpr int panel = sampling::panel<T>;
  const sampling::Step& step = *work.step;
  const Pixels& pixels = work.pixels;
  const int32_t phase = static_cast<int32_t>(2 * (pixels.row % 2) + pixels.first % 2);
  const Plane<T>& dst = work.planes[step.dst];
  const int32_t begin = first_panel * panel;
  const int32_t valid = std::min<int32_t>(step.channels - begin, Panels * panel);

  T* out[Rows];
  int64_t pixel[Rows], sample[Rows];
  for (int r = 0; r < Rows; ++r) {
    pixel[r] = (first_row + r) / work.samples;
    sample[r] = (first_row + r) % work.samples;
    out[r] = dst.at(pixels.row, pixels.first + pixels.step * pixel[r]) +
             sample[r] * dst.sample_stride + step.dst_channel + begin;
  }
  V sum[Rows][vectors];
  if (step.a >= 0) {
    const Plane<T>& start = work.planes[step.a];
    for (int r = 0; r < Rows; ++r) {
      alignas(64) T buffer[Panels * panel] = {};
      std::memcpy(buffer,
                  start.at(pixels.row, pixels.first + pixels.step * pixel[r]) +
                      sample[r] * start.sample_stride + step.a_channel + begin,
                  valid * sizeof(T));
      for (int v = 0; v < vectors; ++v) {
        sum[r][v] = *reinterpret_cast<const U*>(buffer + v * lanes);
      }
    }
  } else {
    for (int v = 0; v < vectors; ++v) {
      V bias = {};
      if (step.weights >= 0) {
        bias = *reinterpret_cast<const U*>(work.weights + step.weights + begin + v * lanes);
      }
      for (int r = 0; r < Rows; ++r) sum[r][v] = bias;
    }
  }

  for (int32_t t = step.first_term; t < step.first_term + step.terms; ++t) {
    const sampling::Term& term = work.program->terms[t];
    const Plane<T>& src = work.planes[term.src];
    const Pixels at = source_pixels(term.ratio, pixels);
    const T* row[Rows];
    int64_t offset[Rows];
    for (int r = 0; r < Rows; ++r) {
      offset[r] = (at.first + at.step * pixel[r]) * src.column_stride +
                  sample[r] * src.sample_stride + term.src_channel;
    }
    for (int32_t k = term.first_tap; k < term.first_tap + term.taps; ++k) {
      const sampling::Tap& tap = work.program->taps[k];
      if (at.row + tap.dy < 0 || (tap.phase >= 0 && tap.phase != phase)) continue;
      const T* base = src.at(at.row + tap.dy, tap.dx);
      for (int r = 0; r < Rows; ++r) row[r] = base + offset[r];
      const T* w = work.weights + tap.weights + static_cast<int64_t>(begin) * term.channels;
      const int64_t to_next_panel = static_cast<int64_t>(panel) * term.channels;
      for (int32_t c = 0; c < term.channels; ++c) {
        V weight[vectors];
        for (int v = 0; v < vectors; ++v) {
          weight[v] = *reinterpret_cast<const U*>(w + (v * lanes / panel) * to_next_panel +
                                                  v * lanes % panel);
        }
        for (int r = 0; r < Rows; ++r) {
          const T x = row[r][c];
          for (int v = 0; v < vectors; ++v) sum[r][v] += x * weight[v];
        }
        w += panel;
      }
    }
  }

  for (int r = 0; r < Rows; ++r) {
    alignas(64) T buffer[Panels * panel];
    for (int v = 0; v < vectors; ++v) *reinterpret_cast<U*>(buffer + v * lanes) = sum[r][v];
    std::memcpy(out[r], buffer, valid * sizeof(T));
  }
}

// All rows under `Panels` panels, in register tiles of `Rows` rows and what is left.
template <int Bytes, int Panels, class T>
DEEPGEN_INLINE void rows_under(const Work<T>& work, int32_t panel, int64_t rows) {
  constexpr int most = Panels == 1 ? 6 : Panels == 2 ? 3 : 1;
  // As even as possible: eight rows are 4 + 4, not 6 + 2.
  const int64_t tiles = (rows + most - 1) / most;
  for (int64_t t = 0, row = 0; t < tiles; ++t) {
    const int64_t here = (rows - row + tiles - t - 1) / (tiles - t);
    switch (here) {
      case 1:
        tile<Bytes, 1, Panels>(work, row, panel);
        break;
      case 2:
        if constexpr (most >= 2) tile<Bytes, 2, Panels>(work, row, panel);
        break;
      case 3:
        if constexpr (most >= 3) tile<Bytes, 3, Panels>(work, row, panel);
        break;
      case 4:
        if constexpr (most >= 4) tile<Bytes, 4, Panels>(work, row, panel);
        break;
      case 5:
        if constexpr (most >= 5) tile<Bytes, 5, Panels>(work, row, panel);
        break;
      default:
        if constexpr (most >= 6) tile<Bytes, 6, Panels>(work, row, panel);
    }
    row += here;
  }
}

template <int Bytes, class T>
DEEPGEN_INLINE void all(const Work<T>& work) {
  const int64_t rows = work.pixels.count * work.samples;
  const int32_t panels = (work.step->channels + sampling::panel<T> - 1) / sampling::panel<T>;
  int32_t p = 0;
  if (rows == 1) {
    for (; p + 4 <= panels; p += 4) rows_under<Bytes, 4>(work, p, rows);
  }
  if (rows <= 3) {
    for (; p + 2 <= panels; p += 2) rows_under<Bytes, 2>(work, p, rows);
  }
  for (; p < panels; ++p) rows_under<Bytes, 1>(work, p, rows);
}

}  // namespace linear
}  // namespace deepgen::cpu
