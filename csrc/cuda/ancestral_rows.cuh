// A linear step on the columns of a row: a product of (column, sample) pairs by output channels.
//
// The block takes 32 pairs and four panels of outputs at a time, and walks through the taps in
// pieces of 32 input channels: a piece of the sources and of the weights is copied to shared memory
// while the piece before it, in the other buffer, is multiplied. Four groups of 128 threads share
// the channels of a piece; in each a thread has a register tile of four pairs by 16 bytes of
// outputs, 64 multiply-adds for eight loads of 16 bytes. In the end the groups' sums are added in
// one order, which does not depend on how many columns or samples there are.
#pragma once

#include "ancestral_tile.cuh"

namespace deepgen::cuda::sampling {

constexpr int pairs_per_tile = 32;
constexpr int panels_per_tile = 4;
constexpr int channels_per_piece = 32;
constexpr int groups = 4;
constexpr int group_threads = threads / groups;

template <class T>
struct RowBuffers {
  static constexpr int outputs = panels_per_tile * panel<T>;
  // Rows are longer by 16 bytes than they need be: less conflicts of banks.
  struct Piece {
    T sources[pairs_per_tile][channels_per_piece + Vec<T>::size];
    T weights[channels_per_piece][outputs + Vec<T>::size];
  };
  union {
    Piece pieces[2];
    T partial[groups][pairs_per_tile][outputs];
  };
};

// Pixels (row, first + distance * i), i < count, of the step's dst.
struct Pixels {
  int row, first, distance, count;
};

// The pieces of a step, one after the other: taps that serve these pixels, 32 channels at a time.
struct Pieces {
  const Program* program;
  const Step* step;
  const Pixels* pixels;
  int term, tap, channel, source_row;

  __device__ Pieces(const Program& program, const Step& step, const Pixels& pixels)
      : program(&program),
        step(&step),
        pixels(&pixels),
        term(step.first_term - 1),
        tap(0),
        channel(0) {
    next_tap(true);
  }
  __device__ bool left() const { return term < step->first_term + step->terms; }
  __device__ const Term& current_term() const { return program->terms[term]; }
  __device__ void next() {
    channel += channels_per_piece;
    if (channel >= current_term().channels) next_tap(false);
  }

 private:
  __device__ void next_tap(bool begin) {
    channel = 0;
    const int phase = 2 * (pixels->row % 2) + pixels->first % 2;
    for (;;) {
      if (begin || ++tap == current_term().first_tap + current_term().taps) {
        begin = false;
        do {
          if (++term == step->first_term + step->terms) return;
        } while (current_term().taps == 0 || current_term().channels == 0);
        tap = current_term().first_tap;
      }
      const Tap& t = program->taps[tap];
      const int32_t ratio = current_term().ratio;
      source_row = t.dy + (ratio == static_cast<int32_t>(Ratio::finer)     ? 2 * pixels->row
                           : ratio == static_cast<int32_t>(Ratio::coarser) ? pixels->row / 2
                                                                           : pixels->row);
      if (source_row >= 0 && (t.phase < 0 || t.phase == phase)) return;
    }
  }
};

template <class T>
struct RowProduct {
  static constexpr int V = Vec<T>::size;
  static constexpr int per_panel = panel<T>;
  static constexpr int outputs = RowBuffers<T>::outputs;
  static constexpr int pairs_per_pass = threads / channels_per_piece;
  static constexpr int passes = pairs_per_tile / pairs_per_pass;

  const Tile<T>& tile;
  const Step& step;
  const Pixels& pixels;
  int first_pair, first_panel;
  // What this thread copies of the next piece: a channel of some pairs, and 16 bytes of weights.
  int columns[passes], samples[passes];
  T sources[passes];
  Vec<T> weights;

  __device__ int pairs() const { return pixels.count * tile.samples; }
  __device__ int panels() const { return (step.channels + per_panel - 1) / per_panel; }

  __device__ int column_of(int pair) const {
    return pixels.first + pixels.distance * (tile.samples == 1 ? pair : pair / tile.samples);
  }
  __device__ int sample_of(int pair) const { return tile.samples == 1 ? 0 : pair % tile.samples; }

  __device__ void begin_pairs(int first) {
    first_pair = first;
#pragma unroll
    for (int k = 0; k < passes; ++k) {
      const int pair = first + k * pairs_per_pass + threadIdx.x / channels_per_piece;
      columns[k] = pair < pairs() ? column_of(pair) : -1;
      samples[k] = sample_of(pair);
    }
  }

  __device__ void fetch(const Pieces& at) {
    const Term& term = at.current_term();
    const Tap& tap = at.program->taps[at.tap];
    const Plane<T> source = tile.plane(term.src);
    const bool finer = term.ratio == static_cast<int32_t>(Ratio::finer);
    const bool coarser = term.ratio == static_cast<int32_t>(Ratio::coarser);
    const int channel = at.channel + threadIdx.x % channels_per_piece;
    const T* const row = source.at(at.source_row, tap.dx) + term.src_channel + channel;
#pragma unroll
    for (int k = 0; k < passes; ++k) {
      const int from = finer ? 2 * columns[k] : coarser ? columns[k] / 2 : columns[k];
      const bool inside = columns[k] >= 0 && channel < term.channels;
      sources[k] =
          inside ? row[from * source.column_stride + samples[k] * source.sample_stride] : T(0);
    }
    // Four threads a line of a panel.
    const int c = at.channel + threadIdx.x / 4 % channels_per_piece;
    const int p = first_panel + threadIdx.x / group_threads;
    weights = Vec<T>{};
    if (c < term.channels && p < panels()) {
      weights = *reinterpret_cast<const Vec<T>*>(
          tile.weights + tap.weights + (static_cast<int64_t>(p) * term.channels + c) * per_panel +
          threadIdx.x % 4 * V);
    }
  }

  __device__ void store(typename RowBuffers<T>::Piece& piece) const {
    const int channel = threadIdx.x % channels_per_piece, pair = threadIdx.x / channels_per_piece;
#pragma unroll
    for (int k = 0; k < passes; ++k) piece.sources[k * pairs_per_pass + pair][channel] = sources[k];
    *reinterpret_cast<Vec<T>*>(
        &piece.weights[threadIdx.x / 4 % channels_per_piece]
                      [threadIdx.x / group_threads * per_panel + threadIdx.x % 4 * V]) = weights;
  }

  // The thread's group takes every fourth line of four channels.
  __device__ void multiply(const typename RowBuffers<T>::Piece& piece, int channels,
                           T (&sums)[4][V]) const {
    const int group = threadIdx.x / group_threads, t = threadIdx.x % group_threads;
    const int pair = t / 16 * 4, output = t % 16 * V;
    for (int c = 4 * group; c < channels; c += 4 * groups) {
      T x[4][4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int v = 0; v < 4; v += V) {
          const Vec<T> part = *reinterpret_cast<const Vec<T>*>(&piece.sources[pair + r][c + v]);
#pragma unroll
          for (int i = 0; i < V; ++i) x[r][v + i] = part.values[i];
        }
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Vec<T> w = *reinterpret_cast<const Vec<T>*>(&piece.weights[c + k][output]);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
          for (int v = 0; v < V; ++v) sums[r][v] += x[r][k] * w.values[v];
        }
      }
    }
  }

  __device__ void finish(RowBuffers<T>& buffers, const T (&sums)[4][V]) const {
    __syncthreads();
    const int group = threadIdx.x / group_threads, t = threadIdx.x % group_threads;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        buffers.partial[group][t / 16 * 4 + r][t % 16 * V + v] = sums[r][v];
      }
    }
    __syncthreads();
    const Plane<T> dst = tile.plane(step.dst);
    const Plane<T> start = step.a >= 0 ? tile.plane(step.a) : Plane<T>{};
    for (int i = threadIdx.x; i < pairs_per_tile * outputs; i += threads) {
      const int r = i / outputs, pair = first_pair + r, c = first_panel * per_panel + i % outputs;
      if (pair >= pairs() || c >= step.channels) continue;
      const int column = column_of(pair), s = sample_of(pair);
      T sum = 0;
      if (step.a >= 0) {
        sum = start.at(pixels.row, column)[s * start.sample_stride + step.a_channel + c];
      } else if (step.weights >= 0) {
        sum = tile.weights[step.weights + c];
      }
#pragma unroll
      for (int g = 0; g < groups; ++g) sum += buffers.partial[g][r][i % outputs];
      dst.at(pixels.row, column)[s * dst.sample_stride + step.dst_channel + c] = sum;
    }
    __syncthreads();
  }
};

template <class T>
__device__ DEEPGEN_NOINLINE void linear_on_pixels(Tile<T> tile, Program program, const Step& step,
                                                  Pixels pixels, RowBuffers<T>& buffers) {
  RowProduct<T> product{tile, step, pixels};
  for (int first = 0; first < product.pairs(); first += pairs_per_tile) {
    product.begin_pairs(first);
    for (product.first_panel = 0; product.first_panel < product.panels();
         product.first_panel += panels_per_tile) {
      T sums[4][Vec<T>::size] = {};
      Pieces pieces(program, step, pixels);
      if (pieces.left()) product.fetch(pieces);
      for (int buffer = 0; pieces.left(); buffer ^= 1) {
        const int rest = pieces.current_term().channels - pieces.channel;
        const int channels = rest < channels_per_piece ? rest : channels_per_piece;
        product.store(buffers.pieces[buffer]);
        __syncthreads();
        pieces.next();
        if (pieces.left()) product.fetch(pieces);
        product.multiply(buffers.pieces[buffer], channels, sums);
      }
      product.finish(buffers, sums);
    }
  }
}

// Any step but a draw, on the pixels (row, first + i), i < count; ends with a barrier.
template <class T>
__device__ void run_step(const Tile<T>& tile, const Program& program, const Step& step, int row,
                         int first, int count, RowBuffers<T>& buffers) {
  if (step.kind != static_cast<int32_t>(Kind::linear)) {
    elementwise(tile, step, row, first, count);
    __syncthreads();
    return;
  }
  // A transposed convolution has other taps at even and at odd columns.
  bool phases = false;
  for (int t = step.first_term; t < step.first_term + step.terms; ++t) {
    phases |= program.terms[t].ratio == static_cast<int32_t>(Ratio::coarser);
  }
  const int distance = phases && count > 1 ? 2 : 1;
  for (int i = 0; i < distance; ++i) {
    const Pixels pixels{row, first + i, distance, (count - i + distance - 1) / distance};
    linear_on_pixels(tile, program, step, pixels, buffers);
  }
}

}  // namespace deepgen::cuda::sampling
