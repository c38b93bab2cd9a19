// What a block does once a launch: it fills its shared memory with the program, the nodes' planes,
// the plan of the pixel steps, and with weights as far as there is room.
#pragma once

#include "ancestral_plan.cuh"

namespace deepgen::cuda::sampling {

// All threads; what is left of the arena takes weights.
template <class T>
__device__ void keep_weights(const Plan<T>& plan, const Program& program, Arena& arena) {
  for (int i = 0; i < program.header.pixel_steps; ++i) {
    const PixelStep& step = plan.steps[i];
    for (int k = step.first; k < step.end; ++k) {
      Segment<T>& segment = plan.segments[k];
      const int64_t lines = static_cast<int64_t>(step.panels) * segment.channels;
      if (!arena.has<T>(lines * panel<T>)) continue;
      const auto* const from = reinterpret_cast<const Vec<T>*>(segment.weights);
      auto* const to = arena.take<Vec<T>>(lines * 4);
      for (int64_t v = threadIdx.x; v < lines * 4; v += threads) to[v] = from[v];
      __syncthreads();
      if (threadIdx.x == 0) segment.weights = reinterpret_cast<const T*>(to);
    }
  }
}

// All threads: planes, program and plan, as far as they fit. Returns the planes, null if there is
// no room even for them.
template <class T>
__device__ Plane<T>* prepare(Tile<T>& tile, Arena& arena, Plan<T>& plan) {
  const Header header = Program(tile.words).header;
  const int64_t words =
      sizeof(Header) / 4 + (header.nodes * sizeof(Node) +
                            (int64_t{header.row_steps} + header.pixel_steps) * sizeof(Step) +
                            header.terms * sizeof(Term) + header.taps * sizeof(Tap)) /
                               4;
  if (threadIdx.x == 0) plan.fits = false;
  if (!arena.has<Plane<T>>(header.nodes)) {
    __syncthreads();
    return nullptr;
  }
  auto* const planes = arena.take<Plane<T>>(header.nodes);
  if (words <= 16 * 1024 && arena.has<int32_t>(words)) {
    auto* const copy = arena.take<int32_t>(words);
    for (int64_t i = threadIdx.x; i < words; i += threads) copy[i] = tile.words[i];
    tile.words = copy;
  }
  __syncthreads();
  const Program program(tile.words);
  for (int i = threadIdx.x; i < header.nodes; i += threads) {
    Plane<T> plane = tile.make_plane(program.nodes[i], header);
    int written = 0;
    bool by_rows = false;
    for (int k = 0; k < header.pixel_steps; ++k) {
      const Step& step = program.pixel_steps[k];
      if (step.dst != i) continue;
      written += !is_draw(step)                                         ? step.channels
                 : step.kind == static_cast<int32_t>(Kind::categorical) ? 1
                                                                        : tile.problem->channels;
    }
    for (int k = 0; k < header.row_steps; ++k) by_rows |= program.row_steps[k].dst == i;
    if (written > 0) plane.mirror = by_rows || written < program.nodes[i].channels;
    planes[i] = plane;
  }
  tile.planes = planes;
  __syncthreads();
  // Every thread continues with what thread 0 has left of the arena.
  DEEPGEN_SHARED(uint32_t, used, 1);
  if (threadIdx.x == 0) {
    write_plan(tile, program, planes, arena, plan);
    used[0] = arena.used;
  }
  __syncthreads();
  arena.used = used[0];
  if (!plan.fits) return planes;
  // Channels that no step has written yet meet weights of zero, so they only must be finite.
  for (int i = 0; i < header.nodes; ++i) {
    if (planes[i].mirror < 0) continue;
    T* const values = plan.values + planes[i].mirror;
    for (int k = threadIdx.x; k < planes[i].sample_stride * tile.samples; k += threads)
      values[k] = 0;
  }
  keep_weights(plan, program, arena);
  __syncthreads();
  return planes;
}

}  // namespace deepgen::cuda::sampling
