// The pixel steps of one pixel, on values and weights in shared memory (ancestral_plan.cuh).
//
// A linear step is a product of a matrix and one vector a sample. Four threads read a line of a
// panel, 16 bytes each, so a warp eight lines, that is eight input channels; the sum is cut into
// slices for the warps, and in each over the lanes. What is added in which order depends on the
// step alone.
#pragma once

#include "ancestral_plan.cuh"

namespace deepgen::cuda::sampling {

// The sum over the eight lines of a warp. Lanes exchange halves of what they hold, so that each
// ends with one output: the line's thread's value number `value`, in the lanes that `keeps`.
template <class T>
struct LaneSum {
  static constexpr int V = Vec<T>::size;

  __device__ static T of(const T (&sums)[V]) {
    const int lane = threadIdx.x % 32;
    T part[V];
#pragma unroll
    for (int v = 0; v < V; ++v) part[v] = sums[v];
    int distance = 16;
#pragma unroll
    for (int held = V; held > 1; held /= 2, distance /= 2) {
      const bool upper = lane & distance;
#pragma unroll
      for (int v = 0; v < held / 2; ++v) {
        const T sent = upper ? part[v] : part[v + held / 2];
        const T kept = upper ? part[v + held / 2] : part[v];
        part[v] = kept + __shfl_xor_sync(0xffffffff, sent, distance);
      }
    }
    T sum = part[0];
#pragma unroll
    for (int d = 16 / V; d >= 4; d /= 2) sum += __shfl_xor_sync(0xffffffff, sum, d);
    return sum;
  }
  __device__ static int value() {
    const int lane = threadIdx.x % 32;
    return V == 4 ? lane / 16 * 2 + lane / 8 % 2 : lane / 16;
  }
  __device__ static bool keeps() { return threadIdx.x % 32 % (32 / V) < 4; }
};

template <class T>
struct Pixel;
template <int S, class T>
__device__ DEEPGEN_NOINLINE void linear_of_several(Pixel<T> pixel, const PixelStep& here, int first,
                                                   int count);

template <class T>
struct Pixel {
  static constexpr int V = Vec<T>::size;

  Tile<T> tile;
  Plan<T> plan;
  T* scratch;
  int y, x;

  // Where a segment's values are to be fetched from, null where there is nothing to fetch. Every
  // lane of a warp comes here; the place where the values will be is noted.
  __device__ const T* locate(Segment<T>& segment) const {
    const T* from = nullptr;
    int at = -1, sample_stride = segment.channels;
    const int stride = segment.stride;
    if (stride == 1 || (y % stride == 0 && x % stride == 0)) {
      int row = stride == 1 ? y : y / stride, column = stride == 1 ? x : x / stride;
      const bool serves = segment.phase < 0 || segment.phase == 2 * (row % 2) + column % 2;
      if (segment.ratio == static_cast<int32_t>(Ratio::finer)) row *= 2, column *= 2;
      if (segment.ratio == static_cast<int32_t>(Ratio::coarser)) row /= 2, column /= 2;
      row += segment.dy;
      column += segment.dx;
      if (serves && row >= 0) {
        const Plane<T>& source = tile.planes[segment.node];
        if (segment.ratio != ratio_refresh && source.mirror >= 0 && row * source.stride == y &&
            column * source.stride == x) {
          at = source.mirror + segment.channel;
          sample_stride = source.sample_stride;
        } else {
          at = segment.slot;
          from = source.at(row, column) + segment.channel;
        }
      }
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) segment.at = at, segment.sample_stride = sample_stride;
    return from;
  }

  // A warp fetches four segments at a time, so that it waits for memory once, not four times.
  __device__ void fetch(int begin, int end) const {
    constexpr int at_once = 4, halves = 2;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, samples = tile.samples;
    for (int k = begin + warp; k < end; k += at_once * warps) {
      const T* from[at_once];
      int count[at_once], most = 0;
#pragma unroll
      for (int u = 0; u < at_once; ++u) {
        from[u] = nullptr;
        count[u] = 0;
        if (k + u * warps >= end) continue;
        Segment<T>& segment = plan.segments[k + u * warps];
        from[u] = locate(segment);
        if (from[u]) count[u] = segment.channels * samples;
        most = count[u] > most ? count[u] : most;
      }
      for (int i = lane; i < most; i += 32 * halves) {
        T values[at_once][halves];
#pragma unroll
        for (int u = 0; u < at_once; ++u) {
#pragma unroll
          for (int h = 0; h < halves; ++h) {
            const int e = i + 32 * h;
            values[u][h] = 0;
            if (e >= count[u]) continue;
            int offset = e;
            if (samples > 1) {
              const Segment<T>& segment = plan.segments[k + u * warps];
              offset = e / segment.channels * tile.planes[segment.node].sample_stride +
                       e % segment.channels;
            }
            values[u][h] = from[u][offset];
          }
        }
#pragma unroll
        for (int u = 0; u < at_once; ++u) {
#pragma unroll
          for (int h = 0; h < halves; ++h) {
            const int e = i + 32 * h;
            if (e < count[u]) plan.values[plan.segments[k + u * warps].slot + e] = values[u][h];
          }
        }
      }
    }
  }

  __device__ T operand(int segment, int s, int c) const {
    const Segment<T>& from = plan.segments[segment];
    return from.at < 0 ? T(0) : plan.values[from.at + s * from.sample_stride + c];
  }

  __device__ T start(const Step& step, int segment, int s, int c) const {
    if (segment >= 0) return operand(segment, s, c);
    return step.weights >= 0 ? tile.weights[step.weights + c] : T(0);
  }

  // Into the mirror and into the caches.
  struct Target {
    T *mirror, *cached;
    int sample_stride;

    __device__ void put(int s, int c, T value) const {
      mirror[s * sample_stride + c] = value;
      cached[s * sample_stride + c] = value;
    }
  };
  __device__ Target target(const PixelStep& here) const {
    const Plane<T>& dst = tile.planes[here.step.dst];
    return {plan.values + here.mirror + here.step.dst_channel,
            dst.at(dst.row, here.stride == 1 ? x : x / here.stride) + here.step.dst_channel,
            dst.sample_stride};
  }

  // Adds chunks [begin, end) of the segment to the sums, `from` and `weights` being the lane's.
  template <int S>
  __device__ void add(const Segment<T>& segment, const T* weights, const T* from, int count,
                      int begin, int end, T (&sums)[S][V]) const {
    constexpr int at_once = S == 1 ? 8 : 4;
    const int line = threadIdx.x % 32 / 4;
    for (int chunk = begin; chunk < end; chunk += at_once) {
      Vec<T> w[at_once];
#pragma unroll
      for (int u = 0; u < at_once; ++u) {
        const int c = (chunk + u) * lines_per_chunk + line;
        w[u] = Vec<T>{};
        if (chunk + u < end && c < segment.channels) {
          w[u] = *reinterpret_cast<const Vec<T>*>(weights + c * panel<T>);
        }
      }
#pragma unroll
      for (int u = 0; u < at_once; ++u) {
        const int c = (chunk + u) * lines_per_chunk + line;
        if (chunk + u >= end || c >= segment.channels) continue;
#pragma unroll
        for (int s = 0; s < S; ++s) {
          const T value = s < count ? from[s * segment.sample_stride + c] : T(0);
#pragma unroll
          for (int v = 0; v < V; ++v) sums[s][v] += value * w[u].values[v];
        }
      }
    }
  }

  // Samples [first, first + count) of the tile, count <= S.
  template <int S>
  __device__ void linear(const PixelStep& here, int first, int count) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int panels = here.panels, slices = here.slices, outputs = panels * panel<T>;
    const Target to = target(here);
    for (int unit = warp; unit < panels * slices; unit += warps) {
      const int slice = here.by_panels.divide(unit), p = unit - slice * panels;
      const int from = here.by_slices.divide(here.chunks * slice);
      const int until = here.by_slices.divide(here.chunks * (slice + 1));
      T sums[S][V] = {};
      for (int k = here.first; k < here.end; ++k) {
        const Segment<T>& segment = plan.segments[k];
        const int chunks = (segment.channels + lines_per_chunk - 1) / lines_per_chunk;
        const int begin = from > segment.first_chunk ? from - segment.first_chunk : 0;
        const int end = until - segment.first_chunk < chunks ? until - segment.first_chunk : chunks;
        if (begin >= end || segment.at < 0) continue;
        add<S>(
            segment,
            segment.weights + static_cast<int64_t>(p) * segment.channels * panel<T> + lane % 4 * V,
            plan.values + segment.at + first * segment.sample_stride, count, begin, end, sums);
      }
#pragma unroll
      for (int s = 0; s < S; ++s) {
        const T sum = LaneSum<T>::of(sums[s]);
        const int c = p * panel<T> + lane % 4 * V + LaneSum<T>::value();
        if (!LaneSum<T>::keeps() || s >= count) continue;
        if (slices > 1) {
          scratch[(s * slices + slice) * outputs + c] = sum;
        } else if (c < here.step.channels) {
          to.put(first + s, c, start(here.step, here.a, first + s, c) + sum);
        }
      }
    }
    if (slices == 1) return;
    __syncthreads();
    // The same thread for a (sample, channel) as in steps channel by channel, see same_threads.
    const int channels = here.step.channels, begin = first * channels;
    for (int i = threadIdx.x; i < (first + count) * channels; i += threads) {
      if (i < begin) continue;
      const int s = here.by_channels.divide(i), c = i - s * channels;
      T sum = start(here.step, here.a, s, c);
      for (int k = 0; k < slices; ++k) sum += scratch[((s - first) * slices + k) * outputs + c];
      to.put(s, c, sum);
    }
  }

  __device__ void elementwise(const PixelStep& here) const {
    const Step& step = here.step;
    const Target to = target(here);
    const bool outside = plan.segments[here.a].at < 0;
    for (int i = threadIdx.x; i < tile.samples * step.channels; i += threads) {
      const int s = here.by_channels.divide(i), c = i - s * step.channels;
      T right = 0, scale = 0, shift = 0;
      if (here.b >= 0) right = operand(here.b, s, c);
      if (step.kind == static_cast<int32_t>(Kind::affine)) {
        scale = tile.weights[step.weights + c];
        shift = tile.weights[step.weights + step.channels + c];
      }
      to.put(s, c, outside ? T(0) : apply(step.kind, operand(here.a, s, c), right, scale, shift));
    }
  }

  __device__ void run(const PixelStep& here) const {
    if (here.fetch_end >= 0) {
      __syncthreads();
      fetch(here.fetch_begin, here.fetch_end);
      __syncthreads();
    } else if (here.barrier) {
      __syncthreads();
    }
    if (here.stride > 1 && (y % here.stride || x % here.stride)) return;
    if (is_draw(here.step)) {
      const Segment<T>& parameters = plan.segments[here.a];
      draw(tile, here.step, y, x, plan.values + parameters.at, parameters.sample_stride,
           plan.values + here.mirror, scratch);
    } else if (!is_linear(here.step)) {
      elementwise(here);
    } else if (tile.samples == 1) {
      linear<1>(here, 0, 1);
    } else {
      constexpr int at_once = 4;
      for (int first = 0; first < tile.samples; first += at_once) {
        if (first > 0) __syncthreads();
        const int rest = tile.samples - first;
        linear_of_several<at_once>(*this, here, first, rest < at_once ? rest : at_once);
      }
    }
  }
};

template <int S, class T>
__device__ DEEPGEN_NOINLINE void linear_of_several(Pixel<T> pixel, const PixelStep& here, int first,
                                                   int count) {
  pixel.template linear<S>(here, first, count);
}

}  // namespace deepgen::cuda::sampling
