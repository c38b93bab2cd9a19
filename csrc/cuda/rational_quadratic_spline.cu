// rational_quadratic_spline on the GPU.
//
// Reads 4 (3 K + 1) bytes an element and writes 8 (100 in all for 8 bins in float32; the gradient
// moves twice the parameters); that bounds it, with the 18 exponentials an element close behind. A
// thread owns an element, but the parameters of one element lie side by side, so a block first
// copies those of all its elements into shared memory, in whatever order reads them side by side,
// and leaves the exponentials there too: each is computed once. Rows in shared memory are one
// longer than the block, so that neither order meets bank conflicts. Where widths, heights and
// derivatives are slices of one tensor, they are copied as one run. A group of threads owns a piece
// of a sample and goes over it in rounds; its log-derivatives are summed in registers and shuffles,
// and pieces of long samples by a second, tiny kernel in a fixed order. Blocks shrink as bins grow.
#include "../rational_quadratic_spline.h"
#include "../rational_quadratic_spline_gradient.h"
#include "rows.cuh"

namespace deepgen::cuda {
namespace {

constexpr size_t shared_budget = 48 * 1024;

struct SplinePlan {
  int threads, group, rounds;  // of a block; that share a piece; over the piece
  int64_t pieces, length;      // of each row; elements of a piece
  bool packed;                 // all parameters of an element are one run
  bool bins_adjacent;          // the values of one element lie side by side, not the elements
};

// The piece of a row that a thread's group owns; empty behind the last row.
struct SplinePiece {
  int64_t row, index, begin = 0, end = 0;
  int lane;

  __device__ SplinePiece(const Extent& extent, const SplinePlan& plan) {
    const int64_t item =
        static_cast<int64_t>(blockIdx.x) * (plan.threads / plan.group) + threadIdx.x / plan.group;
    lane = threadIdx.x % plan.group;
    row = item / plan.pieces;
    index = item % plan.pieces;
    if (row >= extent.batch) return;
    begin = index * plan.length;
    end = begin + plan.length < extent.row() ? begin + plan.length : extent.row();
  }
};

// Calls each(row of shared memory, offset) for the `count` values of each element of the block, in
// the order in which they lie in memory. offsets[e] < 0: no such element.
template <class Each>
__device__ __forceinline__ void for_each_staged(const SplinePlan& plan, const int64_t* offsets,
                                                int count, int64_t stride, Each each) {
  const int inner = plan.bins_adjacent ? count : plan.threads;
  int outside = threadIdx.x / inner, inside = threadIdx.x % inner;
  const int step_outside = plan.threads / inner, step_inside = plan.threads % inner;
  for (int j = threadIdx.x; j < count * plan.threads; j += plan.threads) {
    const int element = plan.bins_adjacent ? outside : inside;
    const int k = plan.bins_adjacent ? inside : outside;
    if (offsets[element] >= 0) {
      each(k * (plan.threads + 1) + element, offsets[element] + k * stride);
    }
    outside += step_outside;
    inside += step_inside;
    if (inside >= inner) {
      inside -= inner;
      ++outside;
    }
  }
}

// What a block has in shared memory: where its elements have their parameters, and those.
template <class T>
struct Staged {
  int64_t* offsets;  // of widths, heights, derivatives
  T* rows;
  int pitch;

  __device__ Staged(int64_t* shared, const SplinePlan& plan)
      : offsets(shared),
        rows(reinterpret_cast<T*>(shared + 3 * plan.threads)),
        pitch(plan.threads + 1) {}

  __device__ StridedValues<T> mine(int64_t first_row) const {
    return {rows + first_row * pitch + threadIdx.x, pitch};
  }

  // Every thread of the block must come here: the offsets are there afterwards.
  __device__ void locate(const SplineParameters& p, const Extent& extent, const SplinePlan& plan,
                         const SplinePiece& piece, int64_t i, bool one_run) {
    const SplineParameter* all[3] = {&p.widths, &p.heights, &p.derivatives};
    for (int parameter = 0; parameter < (one_run ? 1 : 3); ++parameter) {
      offsets[parameter * plan.threads + threadIdx.x] =
          i < piece.end ? offset_of<1>(all[parameter]->first, extent, piece.row, i) : -1;
    }
    __syncthreads();
  }

  template <class S>
  __device__ void read(const SplineParameters& p, const SplinePlan& plan,
                       const SplineOptions& o) const {
    const int bins = static_cast<int>(o.bins), slopes = static_cast<int>(o.slopes());
    const auto copy = [&](const SplineParameter& from, int parameter, int count, int row) {
      const S* data = static_cast<const S*>(from.first.data);
      T* to = rows + row * pitch;
      for_each_staged(plan, offsets + parameter * plan.threads, count, from.stride,
                      [&](int at, int64_t offset) { to[at] = to_compute(data[offset]); });
    };
    if (plan.packed) {
      copy(p.widths, 0, 2 * bins + slopes, 0);
    } else {
      copy(p.widths, 0, bins, 0);
      copy(p.heights, 1, bins, bins);
      if (slopes > 0) copy(p.derivatives, 2, slopes, 2 * bins);
    }
    __syncthreads();
  }

  template <class S>
  __device__ void write(const SplineParameters& p, const SplinePlan& plan,
                        const SplineOptions& o) const {
    const int bins = static_cast<int>(o.bins), slopes = static_cast<int>(o.slopes());
    const auto copy = [&](const SplineParameter& into, int parameter, int count, int row) {
      S* data = static_cast<S*>(into.first.data);
      const T* from = rows + row * pitch;
      for_each_staged(plan, offsets + parameter * plan.threads, count, into.stride,
                      [&](int at, int64_t offset) { data[offset] = to_storage<S>(from[at]); });
    };
    copy(p.widths, 0, bins, 0);
    copy(p.heights, 1, bins, bins);
    if (slopes > 0) copy(p.derivatives, 2, slopes, 2 * bins);
  }
};

template <class S>
__global__ void __launch_bounds__(block_threads)
    forward_kernel(RationalQuadraticSpline p, SplineConstants<Compute<S>> c, SplinePlan plan) {
  using T = Compute<S>;
  DEEPGEN_DYNAMIC_SHARED(int64_t, shared);
  Staged<T> staged(shared, plan);
  const SplinePiece piece(p.extent, plan);
  const int bins = static_cast<int>(p.options.bins);
  T sum = 0;
  for (int round = 0; round < plan.rounds; ++round) {
    const int64_t i = piece.begin + static_cast<int64_t>(round) * plan.group + piece.lane;
    staged.locate(p.parameters, p.extent, plan, piece, i, plan.packed);
    staged.template read<S>(p.parameters, plan, p.options);
    if (i < piece.end) {
      const auto widths = staged.mine(0), heights = staged.mine(bins);
      const auto derivatives = staged.mine(2 * bins);
      const T width_sum = spline_exponentials<T>(bins, widths, widths);
      const T height_sum = spline_exponentials<T>(bins, heights, heights);
      const T x =
          to_compute(static_cast<const S*>(p.x.data)[offset_of<1>(p.x, p.extent, piece.row, i)]);
      T y, log;
      if (p.options.inverse) {
        spline_value<true>(c, bins, x, widths, width_sum, heights, height_sum, derivatives, &y,
                           &log);
      } else {
        spline_value<false>(c, bins, x, widths, width_sum, heights, height_sum, derivatives, &y,
                            &log);
      }
      static_cast<S*>(p.y.data)[offset_of<1>(p.y, p.extent, piece.row, i)] = to_storage<S>(y);
      sum += log;
    }
    __syncthreads();
  }
  sum = group_sum(sum, plan.group);
  if (piece.row < p.extent.batch && piece.lane == 0) {
    T* sums = static_cast<T*>(plan.pieces == 1 ? p.log_det : p.partial_sums);
    sums[piece.row * plan.pieces + piece.index] = sum;
  }
}

template <class S>
__global__ void __launch_bounds__(block_threads)
    backward_kernel(RationalQuadraticSplineBackward p, SplineConstants<Compute<S>> c,
                    SplinePlan plan) {
  using T = Compute<S>;
  DEEPGEN_DYNAMIC_SHARED(int64_t, shared);
  Staged<T> staged(shared, plan);
  const SplinePiece piece(p.extent, plan);
  const int bins = static_cast<int>(p.options.bins);
  for (int round = 0; round < plan.rounds; ++round) {
    const int64_t i = piece.begin + static_cast<int64_t>(round) * plan.group + piece.lane;
    staged.locate(p.parameters, p.extent, plan, piece, i, plan.packed);
    staged.template read<S>(p.parameters, plan, p.options);
    if (i < piece.end) {
      const auto widths = staged.mine(0), heights = staged.mine(bins);
      const auto derivatives = staged.mine(2 * bins);
      const T width_sum = spline_exponentials<T>(bins, widths, widths);
      const T height_sum = spline_exponentials<T>(bins, heights, heights);
      const T x =
          to_compute(static_cast<const S*>(p.x.data)[offset_of<1>(p.x, p.extent, piece.row, i)]);
      const T g = to_compute(static_cast<const S*>(
          p.grad_output.data)[offset_of<1>(p.grad_output, p.extent, piece.row, i)]);
      const T l = static_cast<const T*>(p.grad_log_det)[piece.row * p.grad_log_det_stride];
      const T by_x =
          p.options.inverse
              ? spline_gradient<true>(c, bins, x, g, l, widths, width_sum, heights, height_sum,
                                      derivatives, widths, heights, derivatives)
              : spline_gradient<false>(c, bins, x, g, l, widths, width_sum, heights, height_sum,
                                       derivatives, widths, heights, derivatives);
      static_cast<S*>(p.grad_input.data)[offset_of<1>(p.grad_input, p.extent, piece.row, i)] =
          to_storage<S>(by_x);
    }
    staged.locate(p.gradients, p.extent, plan, piece, i, false);
    staged.template write<S>(p.gradients, plan, p.options);
    __syncthreads();
  }
}

size_t shared_bytes_of(int64_t values, int threads, size_t item) {
  return 3 * threads * sizeof(int64_t) + static_cast<size_t>(values) * (threads + 1) * item;
}

bool same_strides(const SplineParameter& a, const SplineParameter& b) {
  return a.stride == b.stride && a.first.batch_stride == b.first.batch_stride &&
         a.first.stride[0] == b.first.stride[0] && a.first.stride[1] == b.first.stride[1] &&
         a.first.stride[2] == b.first.stride[2];
}

// Whether widths, heights and derivatives are slices, in this order, of one tensor.
template <class S>
bool is_one_run(const SplineParameters& p, const SplineOptions& o) {
  const auto follows = [&](const SplineParameter& a, const SplineParameter& b) {
    return same_strides(a, b) && static_cast<const S*>(b.first.data) ==
                                     static_cast<const S*>(a.first.data) + o.bins * a.stride;
  };
  return follows(p.widths, p.heights) && (o.slopes() == 0 || follows(p.heights, p.derivatives));
}

template <class S>
SplinePlan plan_of(const Extent& extent, const SplineOptions& options,
                   const SplineParameters& parameters) {
  const int64_t row = extent.row();
  SplinePlan plan{block_threads, 1, 0, pieces_of_row(row), row, false, false};
  while (plan.threads > 32 &&
         shared_bytes_of(options.values(), plan.threads, sizeof(Compute<S>)) > shared_budget) {
    plan.threads /= 2;
  }
  if (plan.pieces > 1) plan.length = piece_elements;
  // A warp for rows up to 8 rounds of it: a larger group would leave more threads without work.
  const int largest = plan.length <= 256 ? 32 : plan.threads;
  while (plan.group < largest && plan.group < plan.length) plan.group *= 2;
  plan.rounds = static_cast<int>((plan.length + plan.group - 1) / plan.group);
  plan.packed = is_one_run<S>(parameters, options);
  plan.bins_adjacent = parameters.widths.stride == 1;
  if (plan.packed)
    note_choice("parameters as one run", "slices of one tensor, in order");
  else
    note_choice("three runs of parameters", "no slices of one tensor in order");
  return plan;
}

template <class S, class Kernel, class Problem>
void launch_on_rows(Kernel kernel, const Problem& p, const SplinePlan& plan, cudaStream_t stream) {
  using T = Compute<S>;
  const int64_t groups = plan.threads / plan.group, items = p.extent.batch * plan.pieces;
  launch(kernel, dim3(static_cast<unsigned>((items + groups - 1) / groups)), dim3(plan.threads),
         shared_bytes_of(p.options.values(), plan.threads, sizeof(T)), stream, p,
         p.options.template constants<T>(), plan);
}

template <class S>
void forward(const RationalQuadraticSpline& p, cudaStream_t stream) {
  const SplinePlan plan = plan_of<S>(p.extent, p.options, p.parameters);
  launch_on_rows<S>(forward_kernel<S>, p, plan, stream);
  if (plan.pieces > 1) {
    launch_add_pieces<Compute<S>>(p.partial_sums, p.extent.batch, plan.pieces, p.log_det, stream);
  }
}

template <class S>
void backward(const RationalQuadraticSplineBackward& p, cudaStream_t stream) {
  const SplinePlan plan = plan_of<S>(p.extent, p.options, p.parameters);
  launch_on_rows<S>(backward_kernel<S>, p, plan, stream);
}

}  // namespace

int64_t rational_quadratic_spline_pieces(const Extent& extent) {
  return pieces_of_row(extent.row());
}

void rational_quadratic_spline(const RationalQuadraticSpline& p, void* stream) {
  with_storage(p.storage,
               [&](auto type) { forward<decltype(type)>(p, static_cast<cudaStream_t>(stream)); });
}

void rational_quadratic_spline_backward(const RationalQuadraticSplineBackward& p, void* stream) {
  with_storage(p.storage,
               [&](auto type) { backward<decltype(type)>(p, static_cast<cudaStream_t>(stream)); });
}

}  // namespace deepgen::cuda
