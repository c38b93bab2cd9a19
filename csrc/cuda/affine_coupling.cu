// affine_coupling on the GPU.
//
// One pass: x, raw scale and shift in, y out, 16 bytes an element in float32 (backward: 20),
// nothing kept in between; the copy bandwidth is the floor. A group of threads owns a piece of a
// sample (rows.cuh), sums its log s in registers and shuffles. Pieces of long samples leave partial
// sums which a second, tiny kernel adds in a fixed order: atomics would make log det differ from
// run to run. The scale map is a uniform switch, not a template: the arithmetic hides under the
// loads, and a dozen instantiations instead of a hundred keep the build short.
#include "../affine_coupling.h"
#include "rows.cuh"

namespace deepgen::cuda {
namespace {

// log s, s or 1/s, and the slope of log s, of one element.
template <class T>
struct Scale {
  T log, factor, slope;
};

template <ScaleMap M, class T>
__device__ __forceinline__ Scale<T> scale_of(T raw, T clamp, bool inverse) {
  const T log = log_scale_of<M>(raw, clamp);
  return {log, factor_of<M>(raw, log, inverse), slope_of<M>(raw, log, clamp)};
}

template <class T>
__device__ __forceinline__ Scale<T> scale_of(ScaleMap map, T raw, T clamp, bool inverse) {
  switch (map) {
    case ScaleMap::exp:
      return scale_of<ScaleMap::exp>(raw, clamp, inverse);
    case ScaleMap::tanh:
      return scale_of<ScaleMap::tanh>(raw, clamp, inverse);
    case ScaleMap::sigmoid:
      return scale_of<ScaleMap::sigmoid>(raw, clamp, inverse);
    case ScaleMap::softclip:
      return scale_of<ScaleMap::softclip>(raw, clamp, inverse);
    case ScaleMap::softplus:
      return scale_of<ScaleMap::softplus>(raw, clamp, inverse);
    case ScaleMap::floored_sigmoid:
      return scale_of<ScaleMap::floored_sigmoid>(raw, clamp, inverse);
    case ScaleMap::reciprocal_sigmoid:
      return scale_of<ScaleMap::reciprocal_sigmoid>(raw, clamp, inverse);
    default:
      return scale_of<ScaleMap::atan>(raw, clamp, inverse);
  }
}

__device__ __forceinline__ bool transformed(const Operand& mask, int64_t offset) {
  return static_cast<const bool*>(mask.data)[offset];
}

template <class S, int V>
__global__ void __launch_bounds__(block_threads) forward_kernel(AffineCoupling p, Plan plan) {
  using T = Compute<S>;
  const Piece piece(p.extent, plan);
  const T clamp = static_cast<T>(p.clamp);
  T sum = 0;
  for (int64_t i = piece.begin + piece.lane * V; i < piece.end; i += plan.group * V) {
    const auto x = read<S, V>(p.x, offset_of<V>(p.x, p.extent, piece.row, i));
    const auto raw = read<S, V>(p.raw_scale, offset_of<V>(p.raw_scale, p.extent, piece.row, i));
    const auto shift = read<S, V>(p.shift, offset_of<V>(p.shift, p.extent, piece.row, i));
    Pack<S, V> y;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (p.mask && !transformed(p.mask, offset_of<V>(p.mask, p.extent, piece.row, i) + v)) {
        y.values[v] = x.values[v];
        continue;
      }
      const Scale<T> s = scale_of<T>(p.scale_map, to_compute(raw.values[v]), clamp, p.inverse);
      const T in = to_compute(x.values[v]), t = to_compute(shift.values[v]);
      y.values[v] = to_storage<S>(p.inverse ? (in - t) * s.factor : in * s.factor + t);
      sum += p.inverse ? -s.log : s.log;
    }
    write(p.y, offset_of<V>(p.y, p.extent, piece.row, i), y);
    if (p.kept) {
      write(p.kept_copy, offset_of<V>(p.kept_copy, p.extent, piece.row, i),
            read<S, V>(p.kept, offset_of<V>(p.kept, p.extent, piece.row, i)));
    }
  }
  sum = group_sum(sum, plan.group);
  if (piece.exists() && piece.lane == 0) {
    T* sums = static_cast<T*>(plan.pieces == 1 ? p.log_det : p.partial_sums);
    sums[piece.row * plan.pieces + piece.index] = sum;
  }
}

template <class S, int V>
__global__ void __launch_bounds__(block_threads)
    backward_kernel(AffineCouplingBackward p, Plan plan) {
  using T = Compute<S>;
  const Piece piece(p.extent, plan);
  if (!piece.exists()) return;
  const T clamp = static_cast<T>(p.clamp);
  const T grad_log_det = static_cast<const T*>(p.grad_log_det)[piece.row * p.grad_log_det_stride];
  for (int64_t i = piece.begin + piece.lane * V; i < piece.end; i += plan.group * V) {
    const auto grad =
        read<S, V>(p.grad_output, offset_of<V>(p.grad_output, p.extent, piece.row, i));
    const auto x = read<S, V>(p.x, offset_of<V>(p.x, p.extent, piece.row, i));
    const auto raw = read<S, V>(p.raw_scale, offset_of<V>(p.raw_scale, p.extent, piece.row, i));
    Pack<S, V> grad_input, grad_raw, grad_shift;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (p.mask && !transformed(p.mask, offset_of<V>(p.mask, p.extent, piece.row, i) + v)) {
        grad_input.values[v] = grad.values[v];
        grad_raw.values[v] = grad_shift.values[v] = to_storage<S>(T(0));
        continue;
      }
      const T g = to_compute(grad.values[v]), r = to_compute(raw.values[v]);
      const Scale<T> s = scale_of<T>(p.scale_map, r, clamp, p.inverse);
      const T gs = g * s.factor;
      const T in = to_compute(x.values[v]);
      grad_input.values[v] = to_storage<S>(gs);
      grad_raw.values[v] =
          to_storage<S>((p.inverse ? -(g * in + grad_log_det) : gs * in + grad_log_det) * s.slope);
      grad_shift.values[v] = to_storage<S>(p.inverse ? -gs : g);
    }
    write(p.grad_input, offset_of<V>(p.grad_input, p.extent, piece.row, i), grad_input);
    write(p.grad_raw_scale, offset_of<V>(p.grad_raw_scale, p.extent, piece.row, i), grad_raw);
    if (p.grad_shift)
      write(p.grad_shift, offset_of<V>(p.grad_shift, p.extent, piece.row, i), grad_shift);
  }
}

template <class S, int V>
void forward_with_packs(const AffineCoupling& p, cudaStream_t stream) {
  const Plan plan = plan_rows(p.extent, V);
  launch(forward_kernel<S, V>, dim3(plan.blocks), dim3(block_threads), 0, stream, p, plan);
  if (plan.pieces > 1) {
    launch_add_pieces<Compute<S>>(p.partial_sums, p.extent.batch, plan.pieces, p.log_det, stream);
  }
}

template <class S>
void forward(const AffineCoupling& p, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(S);
  bool packs = allows_packs<bool, V>(p.mask, p.extent);
  for (const Operand& operand : {p.x, p.raw_scale, p.shift, p.y, p.kept, p.kept_copy}) {
    packs = packs && allows_packs<S, V>(operand, p.extent);
  }
  note_packs(packs);
  packs ? forward_with_packs<S, V>(p, stream) : forward_with_packs<S, 1>(p, stream);
}

template <class S, int V>
void backward_with_packs(const AffineCouplingBackward& p, cudaStream_t stream) {
  const Plan plan = plan_rows(p.extent, V);
  launch(backward_kernel<S, V>, dim3(plan.blocks), dim3(block_threads), 0, stream, p, plan);
}

template <class S>
void backward(const AffineCouplingBackward& p, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(S);
  bool packs = allows_packs<bool, V>(p.mask, p.extent);
  for (const Operand& operand :
       {p.grad_output, p.x, p.raw_scale, p.grad_input, p.grad_raw_scale, p.grad_shift}) {
    packs = packs && allows_packs<S, V>(operand, p.extent);
  }
  note_packs(packs);
  packs ? backward_with_packs<S, V>(p, stream) : backward_with_packs<S, 1>(p, stream);
}

}  // namespace

int64_t affine_coupling_pieces(const Extent& extent) {
  return pieces_of_row(extent.row());
}

void affine_coupling(const AffineCoupling& p, void* stream) {
  with_storage(p.storage,
               [&](auto type) { forward<decltype(type)>(p, static_cast<cudaStream_t>(stream)); });
}

void affine_coupling_backward(const AffineCouplingBackward& p, void* stream) {
  with_storage(p.storage,
               [&](auto type) { backward<decltype(type)>(p, static_cast<cudaStream_t>(stream)); });
}

}  // namespace deepgen::cuda
