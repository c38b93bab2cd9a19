// The CPU kernels on given problems, with what they did to memory: the library that tests/counts
// loads. Each function returns the counts of one call.
#include <ATen/Parallel.h>

#include <random>
#include <vector>

#include "ancestral_sample.h"
#include "autoregressive_inverse.h"
#include "fixed_point_mlp.h"
#include "memory_trace.h"
#include "power_iteration.h"

namespace {

using namespace deepgen;

std::vector<float> random_numbers(int64_t count, float scale) {
  std::mt19937 generator(0);
  std::uniform_real_distribution<float> draw(-scale, scale);
  std::vector<float> numbers(count);
  for (float& number : numbers) number = draw(generator);
  return numbers;
}

template <class Problem>
trace::Counts counted(int64_t threads, const void* watched, size_t size,
                      void (*kernel)(const Problem&), const Problem& problem) {
  at::threads = threads;
  trace::start(watched, size);
  kernel(problem);
  return trace::stop();
}

}  // namespace

extern "C" {

// `visible`: how many weights are not masked. All weights are watched.
__attribute__((visibility("default"))) trace::Counts count_autoregressive_inverse(
    int64_t threads, int64_t batch, int64_t dimensions, int64_t units, int64_t layers, int64_t bins,
    bool adjoint, int64_t* visible) {
  MaskedNetwork net{Storage::f32, bins ? ElementMap::spline : ElementMap::affine, ScaleMap::tanh};
  net.clamp = 1;
  net.bins = static_cast<int>(bins);
  net.bound = 3;
  net.activation = Activation::relu;
  net.residual = false;
  net.batch = batch;
  net.dimensions = dimensions;
  net.parameters = bins ? static_cast<int>(3 * bins - 1) : 2;
  net.hidden = static_cast<int>(layers);
  std::vector<int32_t> first(layers * (dimensions + 1));
  for (int64_t l = 0; l < layers; ++l) {
    // Unit u has the degree u * dimensions / units.
    for (int64_t d = 0; d <= dimensions; ++d)
      first[l * (dimensions + 1) + d] =
          static_cast<int32_t>((d * units + dimensions - 1) / dimensions);
  }
  net.first = first.data();
  const int64_t outputs = dimensions * net.parameters;
  const int64_t total = dimensions * units + (layers - 1) * units * units + units * outputs;
  const std::vector<float> weights = random_numbers(total, 0.1f), biases(units + outputs);
  const float* next = weights.data();
  *visible = 0;
  for (int64_t l = 0; l <= layers; ++l) {
    const int64_t below = l == 0 ? dimensions : units, rows = l == layers ? outputs : units;
    net.layer[l] = {next, below, biases.data(), 0, rows};
    next += rows * below;
    for (int64_t row = 0; row < rows; ++row)
      *visible += net.seen(static_cast<int>(l),
                           l == layers ? row / net.parameters : row * dimensions / units);
  }
  const std::vector<float> z = random_numbers(batch * dimensions, 1);
  std::vector<float> x(batch * dimensions), log_det(batch), grad_z(batch * dimensions);
  AutoregressiveInverse problem{net, z.data(), x.data(), log_det.data()};
  const size_t size = weights.size() * sizeof(float);
  const trace::Counts counts =
      counted(threads, weights.data(), size, cpu::autoregressive_inverse, problem);
  if (!adjoint) return counts;
  std::vector<std::vector<float>> kept;
  AutoregressiveInverseAdjoint back{net,      z.data(),       x.data(),
                                    z.data(), log_det.data(), grad_z.data()};
  for (int64_t l = 0; l <= layers; ++l) {
    back.values[l] = kept.emplace_back(batch * net.layer[l].units).data();
    back.cotangents[l] = kept.emplace_back(batch * net.layer[l].units).data();
  }
  return counted(threads, weights.data(), size, cpu::autoregressive_inverse_adjoint, back);
}

// All rows of a batch of images in float32; the packed weights are watched.
__attribute__((visibility("default"))) trace::Counts count_ancestral_sample(
    int64_t threads, const int32_t* program, const float* weights, int64_t weight_count,
    const void* const* conditions, int64_t n_conditions, int64_t n, int64_t channels,
    int64_t height, int64_t width, int64_t n_levels, const float* uniforms, int64_t* levels,
    float* caches, int64_t tile) {
  AncestralSample p{Storage::f32, program, weights};
  p.conditions = conditions;
  p.n_conditions = n_conditions;
  p.n = n;
  p.channels = channels;
  p.height = height;
  p.width = width;
  p.n_levels = n_levels;
  p.temperature = 1;
  p.uniforms = uniforms;
  p.known = nullptr;
  p.levels = levels;
  p.values = nullptr;
  p.caches = caches;
  p.tile = tile;
  p.first_row = 0;
  p.last_row = height;
  return counted(threads, weights, weight_count * sizeof(float), cpu::ancestral_sample, p);
}

// One matrix, which is watched; `scaled`: W / sigma as well.
__attribute__((visibility("default"))) trace::Counts count_power_iteration(int64_t rows,
                                                                           int64_t columns,
                                                                           int64_t iterations,
                                                                           bool scaled) {
  const std::vector<float> w = random_numbers(rows * columns, 1);
  std::vector<float> u(rows, 1), v(columns, 1), new_u(rows), new_v(columns), result(w.size());
  float sigma = 0;
  PowerMatrix matrix{{w.data(), rows, 1, columns, columns, columns, 1},
                     u.data(),
                     v.data(),
                     new_u.data(),
                     new_v.data()};
  matrix.elements = scaled ? w.data() : nullptr;
  matrix.scaled = scaled ? result.data() : nullptr;
  PowerIteration problem{Storage::f32, &matrix, 1, iterations, 1e-12, 0, &sigma};
  return counted(1, w.data(), w.size() * sizeof(float), cpu::power_iteration, problem);
}

// One sample through an MLP of `layers` square matrices, which are watched; `evaluations` of it.
__attribute__((visibility("default"))) trace::Counts count_fixed_point_mlp(int64_t features,
                                                                           int64_t layers,
                                                                           int64_t memory,
                                                                           int64_t* evaluations) {
  const int64_t square = features * features;
  // Rows of absolute sum 0.9 at most.
  const std::vector<float> w = random_numbers(layers * square, 0.9f / features);
  const std::vector<float> bias(features), y = random_numbers(features, 1);
  const std::vector<float> betas(layers, 1);
  std::vector<float> x(features);
  std::vector<double> record(iteration::numbers);
  std::vector<int32_t> state(iteration::words);
  const double tolerance = 1e-4;
  FixedPointMlp problem{Storage::f32, MlpActivation::relu, 1, features, static_cast<int>(layers)};
  for (int64_t l = 0; l < layers; ++l)
    problem.layer[l] = {w.data() + l * square, features, bias.data(), features};
  problem.betas = betas.data();
  problem.lipschitz = 0.8;
  problem.rounding = 1e-6;
  problem.max_iterations = 100;
  problem.memory = static_cast<int>(memory);
  problem.y = problem.x0 = y.data();
  problem.tolerance = &tolerance;
  problem.x = x.data();
  problem.record = record.data();
  problem.state = state.data();
  const trace::Counts counts =
      counted(1, w.data(), w.size() * sizeof(float), cpu::fixed_point_mlp, problem);
  *evaluations = state[iteration::evaluations];
  return counts;
}

}  // extern "C"
