// fixed_point_step: one step of the iteration for x + g(x) = y after g(x) is known, sample by
// sample: residual, error bound, whether to stop, and the next x.
//
// With p = y - g(x) and r = p - x, |p - x*| <= (L |r| + e) / (1 - L) by Banach's theorem, e the
// rounding of p. A Picard step goes to p. Anderson's method keeps the last `memory` pairs (p_j,
// r_j) and goes to sum alpha_j p_j, sum alpha_j = 1, with |sum alpha_j r_j| least: that takes the
// scalar products of the r_j, one new row of them a step. Where a proposal of that kind does not
// lower |r| the sample goes back to the p before, a Picard step, which must. And where a Picard
// step has made |r| ten times smaller or more the next one is a Picard step too: mixtures save no
// evaluation there, and walk over the whole history.
#pragma once

#include <cmath>

#include "operand.h"

namespace deepgen {

constexpr int most_memory = 12;

// A Picard step that contracts by no more is followed by another. Convolutional blocks contract by
// 0.03 to 0.1 where their bound says 0.7, and take as many evaluations either way; from 0.12 on
// some g with a symmetric Jacobian take one or two more.
constexpr double plain_contraction = 0.1;

// What is kept of a sample: numbers, and what it is up to.
namespace iteration {
enum Number { tolerance, bound, residual, expansion, numbers };
enum Word { status, evaluations, valid, newest, proposed, words };
enum Status : int32_t { running, converged, expanding, not_finite };
}  // namespace iteration

// All contiguous. gram, record and state hold a row (memory, memory), (numbers), (words) a sample.
struct FixedPointStep {
  Storage storage;
  int64_t batch, features;
  int memory;  // 0: Picard steps only
  double lipschitz;
  double rounding;  // e in units of |x| + |y|
  void* x;
  const void *g_x, *y;
  void *images, *residuals;  // (batch, memory, features): p_j and r_j
  double* gram;
  double* record;
  int32_t* state;
};

namespace cpu {
void fixed_point_step(const FixedPointStep&);
}

namespace cuda {
void fixed_point_step(const FixedPointStep&, void* stream);
}

// Sums of squares over a sample's elements: r, x, y, and the ways to the last x and p.
struct StepSums {
  double r, x, y, moved, of_g;
};

// Where x goes: nowhere; to p; back to the newest p that was accepted; to a mixture.
enum class Next : int { keep, picard, back, mixture };

// The slot of the history that the next pair is written to.
DEEPGEN_HD int next_slot(const int32_t* state, int memory) {
  return state[iteration::valid] ? (state[iteration::newest] + 1) % memory : 0;
}

// Takes the new pair, lying in `slot`, into account.
DEEPGEN_HD Next judge(const StepSums& sums, double lipschitz, double unit, int memory, int slot,
                      double* record, int32_t* state) {
  using namespace iteration;
  constexpr double infinity = HUGE_VAL;
  const double norm = std::sqrt(sums.r), size = std::sqrt(sums.x) + std::sqrt(sums.y);
  const double rounding = unit * size;
  const bool finite = norm < infinity && size < infinity;
  const bool was_proposed = state[proposed] != 0;
  const bool rejected = was_proposed && !(finite && norm <= record[residual]);

  // A lower bound of Lip(g), rounding taken off. After a Picard step x moved by r.
  if (finite && state[evaluations] > 0) {
    const double moved = was_proposed ? std::sqrt(sums.moved) : record[residual];
    const double ratio = ((was_proposed ? std::sqrt(sums.of_g) : norm) - 2 * rounding) / moved;
    if (ratio > record[expansion]) record[expansion] = ratio;
  }
  const double factor = record[expansion] > lipschitz ? record[expansion] : lipschitz;
  ++state[evaluations];
  if (memory > 0) state[valid] &= ~(1 << slot);
  if (factor >= 1 || (!finite && !rejected)) {
    state[status] = finite ? expanding : not_finite;
    record[bound] = infinity;
    return Next::keep;
  }
  if (rejected) {
    state[valid] = 1 << state[newest];
    state[proposed] = 0;
    return Next::back;
  }
  const bool is_plain = !was_proposed && norm <= plain_contraction * record[residual];
  // After a Picard step |r| <= L |r_before| + 2 e. Where it has not fallen, |r| (1 - L) <= 2 e:
  // rounding leads in a circle, and there is no more to come.
  const bool is_circle = !was_proposed && state[evaluations] > 1 && norm >= record[residual] &&
                         norm * (1 - factor) <= 2 * rounding;
  record[residual] = norm;
  record[bound] = (factor * norm + rounding) / (1 - factor);
  const double least = 2 * rounding / (1 - factor),
               reachable = is_circle && record[bound] > least ? record[bound] : least;
  if (record[bound] <= record[tolerance] || record[bound] <= reachable) {
    state[status] = converged;
    if (reachable > record[tolerance]) record[tolerance] = reachable;
    return Next::picard;
  }
  if (memory == 0) return Next::picard;
  if (is_plain) state[valid] = 0;
  const bool alone = state[valid] == 0;
  state[valid] |= 1 << slot;
  state[newest] = slot;
  state[proposed] = !alone;
  return alone ? Next::picard : Next::mixture;
}

// alpha_j of the pairs in `valid`. With d_j = r_j - r_newest it solves D'D gamma = -D'r_newest, by
// Cholesky's method on D'D scaled to a unit diagonal, with 1e-10 added there; a direction that is
// none is left out. So nothing is ever singular.
DEEPGEN_HD void anderson_weights(const double* gram, int memory, int32_t valid, int newest,
                                 double* weights) {
  double factor[most_memory][most_memory], right[most_memory], scale[most_memory];
  int slots[most_memory], count = 0;
  const double corner = gram[newest * memory + newest];
  // Oldest first: which slot a sample began with changes nothing.
  for (int age = 1; age < memory; ++age) {
    const int j = (newest + age) % memory;
    weights[j] = 0;
    if (!(valid >> j & 1)) continue;
    const double cross = gram[newest * memory + j];
    const double square = gram[j * memory + j] - 2 * cross + corner;
    if (!(square > 0)) continue;
    slots[count] = j;
    scale[count] = 1 / std::sqrt(square);
    right[count] = (corner - cross) * scale[count];
    ++count;
  }
  for (int i = 0; i < count; ++i) {
    for (int j = 0; j <= i; ++j) {
      double sum = i == j ? 1 + 1e-10
                          : (gram[slots[i] * memory + slots[j]] - gram[newest * memory + slots[i]] -
                             gram[newest * memory + slots[j]] + corner) *
                                scale[i] * scale[j];
      for (int k = 0; k < j; ++k) sum -= factor[i][k] * factor[j][k];
      // The diagonal holds inverses.
      factor[i][j] = i > j ? sum * factor[j][j] : (sum > 1e-13 ? 1 / std::sqrt(sum) : 0);
    }
    for (int k = 0; k < i; ++k) right[i] -= factor[i][k] * right[k];
    right[i] *= factor[i][i];
  }
  double rest = 1;
  for (int i = count - 1; i >= 0; --i) {
    for (int k = i + 1; k < count; ++k) right[i] -= factor[k][i] * right[k];
    right[i] *= factor[i][i];
    weights[slots[i]] = right[i] * scale[i];
    rest -= weights[slots[i]];
  }
  weights[newest] = rest;
}

}  // namespace deepgen
