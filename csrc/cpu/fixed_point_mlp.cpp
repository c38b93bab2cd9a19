// fixed_point_mlp on the CPU.
//
// A thread iterates 16 samples (8 of double) side by side, activations unit-major: the lanes of the
// products in masked_product.h. They stay in L1 and L2 while the weights pass from L2 once an
// evaluation. A lane whose sample is done takes the next one, so that no lane works on a finished
// sample and nothing has to be compacted; each lane's arithmetic is its own, and results depend on
// neither the batch (but for its being 1) nor the threads. All lanes write their history into the
// same slot, each has its own word of valid slots. The FMAs of g bound it: an evaluation of a 64-d
// MLP with 128x3 hidden units is 786,000 of them a tile, Anderson's products and mixture are 3 % of
// that in number but more in time: an evaluation took 0.80-0.85 of torch's without them and
// 0.9-1.07 with them (CPU time of one thread, with other work beside it).
#include "../fixed_point_mlp.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "../choice.h"
#include "masked_product.h"
#include "mlp_activations.h"

namespace deepgen::cpu {
namespace {

// values[u][lane] of all units = act(W below + b), or without the activation.
template <class T>
DEEPGEN_INLINE void layer(const FixedPointMlp& p, int l, const T* below, int64_t lanes, T* values) {
  const MlpLayer& at = p.layer[l];
  const T *weight = static_cast<const T*>(at.weight), *bias = static_cast<const T*>(at.bias);
  for (int64_t u = 0; u < at.units; ++u) std::fill_n(values + u * lanes, lanes, bias[u]);
  if (lanes == 1) {
    multiply_single(weight, at.weight_stride, at.units, p.inputs(l), below, values);
  } else {
    multiply_lanes<Order::rows, T>(weight, at.weight_stride, at.units, p.inputs(l), below, values,
                                   lanes);
  }
  if (l == p.layers - 1) return;
  activate(p.activation, at.units * lanes, static_cast<const T*>(p.betas)[l], values);
}

// p, r and the norms of W lanes, summed in registers; `last` are the pair of the iteration before.
template <int64_t W, class T>
DEEPGEN_INLINE void measure(int64_t features, int64_t lanes, const T* __restrict x,
                            const T* __restrict g, const T* __restrict y,
                            const T* __restrict last_p, const T* __restrict last_r,
                            T* __restrict image, T* __restrict residual, StepSums* sums) {
  double r2[W] = {}, x2[W] = {}, y2[W] = {}, moved[W] = {}, of_g[W] = {};
  for (int64_t u = 0; u < features; ++u) {
#pragma omp simd
    for (int64_t s = 0; s < W; ++s) {
      const int64_t i = u * lanes + s;
      const T to = y[i] - g[i], r = to - x[i];
      const double dp = static_cast<double>(to) - last_p[i],
                   dx = static_cast<double>(x[i]) - (static_cast<double>(last_p[i]) - last_r[i]);
      r2[s] += static_cast<double>(r) * r;
      x2[s] += static_cast<double>(x[i]) * x[i];
      y2[s] += static_cast<double>(y[i]) * y[i];
      moved[s] += dx * dx;
      of_g[s] += dp * dp;
      image[i] = to;
      residual[i] = r;
    }
  }
  for (int64_t s = 0; s < W; ++s) sums[s] = {r2[s], x2[s], y2[s], moved[s], of_g[s]};
}

template <int64_t W, class T>
DEEPGEN_INLINE void products(int64_t features, int64_t lanes, const T* __restrict a,
                             const T* __restrict b, double* dots) {
  double sums[W] = {};
  for (int64_t u = 0; u < features; ++u) {
#pragma omp simd
    for (int64_t s = 0; s < W; ++s)
      sums[s] += static_cast<double>(a[u * lanes + s]) * b[u * lanes + s];
  }
  std::copy_n(sums, W, dots);
}

template <class T>
struct Solver {
  const FixedPointMlp& p;
  int64_t lanes;
  std::unique_ptr<T[]> memory;
  T *x, *y, *values[2], *images, *residuals, *weights;
  std::vector<double> grams, dots;
  std::vector<StepSums> sums;
  std::vector<int64_t> samples;  // of each lane; -1: none
  int64_t next, end;

  Solver(const FixedPointMlp& p, int64_t lanes, int64_t first, int64_t end)
      : p(p), lanes(lanes), next(first), end(end) {
    const int64_t d = p.features, slots = p.slots();
    const int64_t size = (2 * d + 2 * p.widest() + 2 * slots * d + slots) * lanes;
    memory.reset(new T[size]());
    T* free = memory.get();
    const auto take = [&](int64_t units) { return std::exchange(free, free + units * lanes); };
    x = take(d);
    y = take(d);
    values[0] = take(p.widest());
    values[1] = take(p.widest());
    images = take(slots * d);
    residuals = take(slots * d);
    weights = take(slots);
    grams.resize(lanes * slots * slots);
    dots.resize(slots * lanes);
    sums.resize(lanes);
    samples.assign(lanes, -1);
  }

  double* record(int64_t lane) const { return p.record + samples[lane] * iteration::numbers; }
  int32_t* state(int64_t lane) const { return p.state + samples[lane] * iteration::words; }

  // The next sample for a lane, if there is one.
  void refill(int64_t lane) {
    samples[lane] = next < end ? next++ : -1;
    const int64_t sample = samples[lane], d = p.features;
    if (sample >= 0) start_sample(p, sample);
    const T *from_y = static_cast<const T*>(p.y), *from_x = static_cast<const T*>(p.x0);
    for (int64_t u = 0; u < d; ++u) {
      y[u * lanes + lane] = sample < 0 ? T(0) : from_y[sample * d + u];
      x[u * lanes + lane] = sample < 0 ? T(0) : from_x[sample * d + u];
    }
  }

  void finish(int64_t lane, const T* from) {
    T* to = static_cast<T*>(p.x) + samples[lane] * p.features;
    for (int64_t u = 0; u < p.features; ++u) to[u] = from[u * lanes + lane];
    end_sample(p, samples[lane]);
    refill(lane);
  }

  // Sets the weights of the lane's mixture, or ends its sample. False where x is new already.
  bool decide(int64_t lane, int slot) {
    const int m = p.slots();
    T* const image = images + slot * p.features * lanes;
    for (int j = 0; j < m; ++j) weights[j * lanes + lane] = T(0);
    if (samples[lane] < 0) return false;
    const StepSums& s = sums[lane];
    int32_t* const at = state(lane);
    const Next to = judge(s, p.lipschitz, p.rounding, p.memory, slot, record(lane), at);
    const int newest = at[iteration::newest];
    T* const best = images + newest * p.features * lanes;
    if (!(s.r < HUGE_VAL)) {  // nothing that is not finite may meet a weight of 0
      T* const residual = residuals + slot * p.features * lanes;
      for (int64_t u = 0; u < p.features; ++u)
        image[u * lanes + lane] = residual[u * lanes + lane] = T(0);
    }
    if (to == Next::keep) return finish(lane, at[iteration::valid] ? best : x), false;
    if (at[iteration::status] == iteration::converged) return finish(lane, image), false;
    if (at[iteration::evaluations] >= p.max_iterations)
      return finish(lane, p.memory ? best : image), false;
    double* const gram = grams.data() + lane * m * m;
    if (at[iteration::valid] >> slot & 1) {
      for (int j = 0; j < m; ++j)
        gram[slot * m + j] = gram[j * m + slot] = j == slot ? s.r : dots[j * lanes + lane];
    }
    if (to == Next::mixture) {
      double all[most_memory];
      anderson_weights(gram, m, at[iteration::valid], slot, all);
      for (int j = 0; j < m; ++j) weights[j * lanes + lane] = static_cast<T>(all[j]);
    } else {
      weights[(to == Next::back ? newest : slot) * lanes + lane] = T(1);
    }
    return true;
  }

  template <int64_t W>
  DEEPGEN_INLINE void measure_block(int64_t first, int slot, const T* g) {
    const int64_t d = p.features;
    const int m = p.slots(), last = (slot + m - 1) % m;
    T *image = images + slot * d * lanes + first, *residual = residuals + slot * d * lanes + first;
    // One slot: nothing is ever proposed, and nothing compared.
    const T *last_p = m > 1 ? images + last * d * lanes + first : y + first,
            *last_r = m > 1 ? residuals + last * d * lanes + first : y + first;
    measure<W>(d, lanes, x + first, g + first, y + first, last_p, last_r, image, residual,
               sums.data() + first);
    for (int j = 0; j < m; ++j) {
      if (j == slot || p.memory == 0) continue;
      products<W>(d, lanes, residual, residuals + j * d * lanes + first,
                  dots.data() + j * lanes + first);
    }
  }

  // x of the lanes whose weights have been set. Oldest pair first, as the weights were found.
  template <int64_t W>
  DEEPGEN_INLINE void mix_block(int64_t first, int slot, const T* __restrict moves) {
    const int64_t d = p.features;
    for (int64_t u = 0; u < d; ++u) {
      T sum[W] = {};
      for (int age = 1; age <= p.slots(); ++age) {
        const int j = (slot + age) % p.slots();
        const T* __restrict weight = weights + j * lanes + first;
        const T* __restrict image = images + (j * d + u) * lanes + first;
#pragma omp simd
        for (int64_t s = 0; s < W; ++s) sum[s] += weight[s] * image[s];
      }
      T* __restrict to = x + u * lanes + first;
#pragma omp simd
      for (int64_t s = 0; s < W; ++s) to[s] = moves[first + s] != T(0) ? sum[s] : to[s];
    }
  }

  DEEPGEN_INLINE void solve() {
    for (int64_t lane = 0; lane < lanes; ++lane) refill(lane);
    std::vector<T> moves(lanes);
    int slot = 0;
    while (std::any_of(samples.begin(), samples.end(), [](int64_t s) { return s >= 0; })) {
      const T* below = x;
      for (int l = 0; l < p.layers; ++l) {
        layer<T>(p, l, below, lanes, values[l % 2]);
        below = values[l % 2];
      }
      constexpr int64_t vector = vector_lanes<T>;
      if (lanes == 1) {
        measure_block<1>(0, slot, below);
      } else {
        for (int64_t first = 0; first < lanes; first += vector)
          measure_block<vector>(first, slot, below);
      }
      for (int64_t lane = 0; lane < lanes; ++lane) moves[lane] = decide(lane, slot) ? T(1) : T(0);
      if (lanes == 1) {
        mix_block<1>(0, slot, moves.data());
      } else {
        for (int64_t first = 0; first < lanes; first += vector)
          mix_block<vector>(first, slot, moves.data());
      }
      slot = (slot + 1) % p.slots();
    }
  }
};

DEEPGEN_SIMD void solve(Solver<float>& solver) {
  solver.solve();
}
DEEPGEN_SIMD void solve(Solver<double>& solver) {
  solver.solve();
}

template <class T>
void solve_all(const FixedPointMlp& p) {
  constexpr int64_t vector = vector_lanes<T>, most = 2 * vector;
  if (p.batch == 1)
    note_choice("one lane", "one sample");
  else
    note_choice("a sample a lane, refilled", "more than one sample");
  at::parallel_for(0, p.batch, vector, [&](int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    const int64_t lanes = p.batch == 1 ? 1 : std::min(most, (count + vector - 1) / vector * vector);
    Solver<T> solver(p, lanes, begin, end);
    solve(solver);
  });
}

}  // namespace

void fixed_point_mlp(const FixedPointMlp& p) {
  p.storage == Storage::f64 ? solve_all<double>(p) : solve_all<float>(p);
}

}  // namespace deepgen::cpu
