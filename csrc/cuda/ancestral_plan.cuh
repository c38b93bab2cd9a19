// The pixel steps as a block runs them: laid out in shared memory once a launch.
//
// A segment is one run of channels that a step reads: a tap's source, or an operand. Most of what a
// pixel reads was there before it: left neighbours, sums of row steps, conditions. All of that is
// fetched at once when the pixel begins, so that its latency is paid once and not at every step.
// What the pixel's own steps write is also kept in shared memory, the mirror. And as many of the
// weights as still fit stay there for the whole launch. Networks with more to fetch than has room
// do it in several goes.
#pragma once

#include "ancestral_tile.cuh"

namespace deepgen::cuda::sampling {

constexpr int lines_per_chunk = 8;    // of a panel, that a warp multiplies at once
constexpr int largest_partial = 64;   // panels times slices of a sum that is finished by others
constexpr int32_t ratio_refresh = 3;  // a segment that brings a node's pixel into the mirror

template <class T>
struct Segment {
  const T* weights;  // of panel 0, in global or in shared memory; null where it is an operand
  int32_t node, channel, channels;
  int16_t dy, dx, stride;  // stride: of the step's dst
  int8_t ratio, phase;
  int32_t slot;           // where values are put that are fetched
  int32_t first_chunk;    // of the step
  int32_t at;             // where this pixel's values are, -1 if there are none
  int32_t sample_stride;  // there
};

struct PixelStep {
  Step step;
  int32_t a, b, first, end;        // segments: of operands, -1 none; of terms
  int32_t fetch_begin, fetch_end;  // segments to be fetched before this step; -1 none
  int32_t chunks, panels, slices;  // a sum is cut into slices, each a warp's
  Divisor by_panels, by_slices, by_channels;
  int32_t mirror, stride;  // of dst
  int32_t barrier;         // whether it needs one before
};

template <class T>
struct Plan {
  PixelStep* steps;
  Segment<T>* segments;
  T* values;  // the mirror, then what is fetched
  int32_t n_segments;
  bool fits;
};

__device__ inline bool is_draw(const Step& step) {
  return step.kind >= static_cast<int32_t>(Kind::categorical);
}
__device__ inline bool is_linear(const Step& step) {
  return step.kind == static_cast<int32_t>(Kind::linear);
}

// Of a sum over `chunks` for `panels`, the number of slices that keeps the warps busiest.
__device__ inline int choose_slices(int chunks, int panels) {
  int best = 1, least = INT32_MAX;
  for (int slices = 1; slices <= warps && slices <= chunks; ++slices) {
    if (slices > 1 && slices * panels > largest_partial) break;
    const int rounds = (panels * slices + warps - 1) / warps;
    const int cost = rounds * ((chunks + slices - 1) / slices + 3);
    if (cost < least) least = cost, best = slices;
  }
  return best;
}

// Whether every thread finds what `now` reads written by itself and overwrites nothing that others
// still read, given that `before` ran since the last barrier. Elements of a step go to threads by
// (sample, channel of the step).
__device__ inline bool same_threads(const PixelStep& before, const Step& now,
                                    const Program& program) {
  const Step& old = before.step;
  const bool owned = !is_draw(old) && (!is_linear(old) || before.slices > 1);
  const auto clash = [&](int node, int channel, int other, int other_channel, bool safe) {
    return node >= 0 && node == other &&
           !(safe && channel == other_channel && now.channels == old.channels);
  };
  if (clash(now.a, now.a_channel, old.dst, old.dst_channel, owned) ||
      clash(now.b, now.b_channel, old.dst, old.dst_channel, owned) ||
      clash(now.dst, now.dst_channel, old.dst, old.dst_channel, owned) ||
      clash(now.dst, now.dst_channel, old.a, old.a_channel, owned) ||
      clash(now.dst, now.dst_channel, old.b, old.b_channel, owned)) {
    return false;
  }
  if (!is_linear(old)) return true;
  for (int t = old.first_term; t < old.first_term + old.terms; ++t) {
    if (program.terms[t].src == now.dst) return false;
  }
  return true;
}

// Whether what a step reads there is always the current pixel, in the mirror: no room to fetch it.
template <class T>
__device__ bool is_current(const Plane<T>* planes, const Step& step, int node, int ratio, int dy,
                           int dx) {
  return planes[node].mirror >= 0 && dy == 0 && dx == 0 &&
         (ratio == static_cast<int32_t>(Ratio::finer) ||
          (ratio == static_cast<int32_t>(Ratio::same) &&
           planes[node].stride == planes[step.dst].stride));
}

// Channels of the operands of a step. Draws read as many as their distribution has parameters.
template <class T>
__device__ int operand_channels(const Plane<T>* planes, const Step& step) {
  return is_draw(step) ? planes[step.a].sample_stride - step.a_channel : step.channels;
}

// a of steps channel by channel may be taken elsewhere; the words mean something else in others.
__device__ inline bool is_shifted(const Step& step) {
  return !is_linear(step) && !is_draw(step) && (step.dy != 0 || step.dx != 0);
}

// Thread 0 alone: counts first, then writes. Planes' mirror is -1 (no pixel step writes the node),
// 0, or 1 where row steps leave values in it too, which have to be brought into the mirror.
template <class T>
__device__ DEEPGEN_NOINLINE void write_plan(Tile<T> tile, Program program, Plane<T>* planes,
                                            Arena& arena, Plan<T>& plan) {
  const int samples = tile.samples, n_steps = program.header.pixel_steps;
  int n_segments = 0, mirror = 0;
  int64_t all_fetched = 0, most_fetched = 0;
  for (int i = 0; i < program.header.nodes; ++i) {
    if (planes[i].mirror >= 0) mirror += planes[i].sample_stride * samples;
    n_segments += planes[i].mirror == 1;
  }
  for (int i = 0; i < n_steps; ++i) {
    const Step& step = program.pixel_steps[i];
    int64_t fetched = 0;
    n_segments += (step.a >= 0) + (step.b >= 0);
    if (step.a >= 0 && !is_current(planes, step, step.a, 0, is_shifted(step), 0)) {
      fetched += operand_channels(planes, step);
    }
    if (step.b >= 0 && !is_current(planes, step, step.b, 0, 0, 0)) fetched += step.channels;
    for (int t = 0; t < step.terms; ++t) {
      const Term& term = program.terms[step.first_term + t];
      n_segments += term.taps;
      for (int k = term.first_tap; k < term.first_tap + term.taps; ++k) {
        const Tap& tap = program.taps[k];
        if (!is_current(planes, step, term.src, term.ratio, tap.dy, tap.dx)) {
          fetched += term.channels;
        }
      }
    }
    fetched *= samples;
    all_fetched += fetched;
    most_fetched = fetched > most_fetched ? fetched : most_fetched;
  }
  const int64_t room = 64 * 1024 / sizeof(T);
  const int64_t fetched_at_once =
      all_fetched <= room ? all_fetched : (most_fetched > room ? most_fetched : room);
  plan.fits = false;
  if (!arena.has<PixelStep>(n_steps)) return;
  plan.steps = arena.take<PixelStep>(n_steps);
  if (!arena.has<Segment<T>>(n_segments)) return;
  plan.segments = arena.take<Segment<T>>(n_segments);
  if (!arena.has<T>(mirror + fetched_at_once)) return;
  plan.values = arena.take<T>(mirror + fetched_at_once);
  plan.n_segments = n_segments;
  plan.fits = true;

  const int first_slot = mirror;
  int next = 0;
  mirror = 0;
  for (int i = 0; i < program.header.nodes; ++i) {
    if (planes[i].mirror < 0) continue;
    const int channels = planes[i].sample_stride;
    if (planes[i].mirror == 1) {
      plan.segments[next++] = {
          nullptr,       i,  0,      channels, 0,  0,       static_cast<int16_t>(planes[i].stride),
          ratio_refresh, -1, mirror, 0,        -1, channels};
    }
    planes[i].mirror = mirror;
    mirror += channels * samples;
  }
  int slot = first_slot, group = 0, group_begin = 0, since_barrier = 0;
  for (int i = 0; i < n_steps; ++i) {
    PixelStep& here = plan.steps[i];
    const Step& step = here.step = program.pixel_steps[i];
    const auto stride = static_cast<int16_t>(planes[step.dst].stride);
    const int begin = next, slot_before = slot;
    const auto add = [&](const T* weights, int node, int channel, int channels, int dy, int dx,
                         int ratio, int phase, int chunk) {
      plan.segments[next] = {weights,
                             node,
                             channel,
                             channels,
                             static_cast<int16_t>(dy),
                             static_cast<int16_t>(dx),
                             stride,
                             static_cast<int8_t>(ratio),
                             static_cast<int8_t>(phase),
                             slot,
                             chunk,
                             -1,
                             0};
      if (!is_current(planes, step, node, ratio, dy, dx)) slot += channels * samples;
      return next++;
    };
    const bool shifted = is_shifted(step);
    const int operand = step.a >= 0 ? operand_channels(planes, step) : 0;
    here.a = here.b = -1;
    if (step.a >= 0) {
      here.a = add(nullptr, step.a, step.a_channel, operand, shifted ? step.dy : 0,
                   shifted ? step.dx : 0, 0, -1, 0);
    }
    if (step.b >= 0) here.b = add(nullptr, step.b, step.b_channel, operand, 0, 0, 0, -1, 0);
    here.first = next;
    here.chunks = 0;
    for (int t = 0; t < step.terms; ++t) {
      const Term& term = program.terms[step.first_term + t];
      for (int k = term.first_tap; k < term.first_tap + term.taps; ++k) {
        const Tap& tap = program.taps[k];
        add(tile.weights + tap.weights, term.src, term.src_channel, term.channels, tap.dy, tap.dx,
            term.ratio, tap.phase, here.chunks);
        here.chunks += (term.channels + lines_per_chunk - 1) / lines_per_chunk;
      }
    }
    here.end = next;
    here.panels = (step.channels + panel<T> - 1) / panel<T>;
    here.slices = is_linear(step) ? choose_slices(here.chunks, here.panels) : 1;
    here.by_panels = Divisor(here.panels);
    here.by_slices = Divisor(here.slices);
    here.by_channels = Divisor(step.channels);
    here.mirror = planes[step.dst].mirror;
    here.stride = stride;
    here.fetch_begin = here.fetch_end = -1;
    if (i > 0 && slot - first_slot > fetched_at_once) {
      // No room: this step begins a new group, from the first slot on.
      plan.steps[group].fetch_begin = group_begin;
      plan.steps[group].fetch_end = begin;
      for (int k = begin; k < next; ++k) plan.segments[k].slot -= slot_before - first_slot;
      slot -= slot_before - first_slot;
      group = i;
      group_begin = begin;
    }
    here.barrier = is_linear(step) || is_draw(step) || group == i;
    for (int k = since_barrier; k < i && !here.barrier; ++k) {
      here.barrier = !same_threads(plan.steps[k], step, program);
    }
    if (here.barrier) since_barrier = i;
  }
  if (n_steps > 0) {
    plan.steps[group].fetch_begin = group_begin;
    plan.steps[group].fetch_end = next;
  }
}

}  // namespace deepgen::cuda::sampling
