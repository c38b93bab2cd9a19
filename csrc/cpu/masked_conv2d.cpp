// masked_conv2d on the CPU, float32.
//
// The image is rewritten pixel by pixel (channels side by side) with rows that share their padding
// (row stride W + k/2 pixels). Then all taps of one kernel row are one run of floats, k C long,
// that starts a constant offset away from the pixel: the convolution is a matrix product without
// im2col, and a mask is a shorter run. The centre row's run ends where the mask says, also in the
// middle of the centre pixel's channels (the groups), so no masked weight is packed and no masked
// pixel multiplied. The register tile is 6 pixels x 16 output channels, 12 accumulators of 8
// floats; a packed weight [depth][16] of a run comes from L1, pixels are broadcast. The gradient of
// x is the same with runs below and right of the pixel; the gradient of the weight is the outer
// product of a run with 16 channels of y's gradient, summed over positions.
//
// Bound by arithmetic: 25 of 49 taps (k = 7) and 5 of 9 (k = 3), so 0.51 and 0.56 of a dense
// convolution's work. Time of forward and backward over oneDNN's dense convolution, 64 -> 128
// channels, 28 x 28, batch 64, mask B, 2 threads of AVX2, on a busy machine, medians of interleaved
// calls:
//
//                                                 k = 7   k = 3
//   this kernel                                    0.52    0.63
//   oneDNN on the rows above and on the row left   0.61    0.82
//   oneDNN on the cropped rows                     0.65    0.87
//   mask A, 1 -> 64 channels (one thread)          0.51
//
// What is left over the share of taps is rewriting the images, transposed 8 x 8 in registers. Not
// measured: CPUs with AVX-512, where oneDNN's vectors are twice as wide; the glue gives them to it.
#include "../masked_conv2d.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "pixel_runs.h"

namespace deepgen::cpu {
namespace {

constexpr int64_t depth_block = 256;     // of a run: 16 KiB of weights stay in L1
constexpr int64_t position_block = 112;  // of y's gradient: 7 KiB
constexpr int64_t band_positions = 1024;

std::vector<float> packed_weights(const Plan& plan, const Block& block) {
  const float* weight = static_cast<const float*>(plan.problem.weight);
  const int64_t stride = plan.target_stride();
  std::vector<float> packed(block.weight_of.size() * lanes, 0.0f);
  for (size_t k = 0; k < block.weight_of.size(); ++k) {
    for (int64_t i = 0; i < block.count; ++i) {
      packed[k * lanes + i] = weight[block.weight_of[k] + i * stride];
    }
  }
  return packed;
}

// target = convolution of source (+ bias).
void convolve(const Plan& plan, const PixelOperand& source, const PixelOperand& target,
              const float* bias) {
  const ImageExtent& extent = plan.problem.extent;
  const int64_t blocks = plan.blocks.size();
  std::vector<std::vector<float>> weights(blocks);
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) weights[b] = packed_weights(plan, plan.blocks[b]);
  });
  // Bands of rows: what a task works on stays in L2, and few images keep all threads busy.
  int64_t band = std::clamp<int64_t>(band_positions / extent.width, 1, extent.height);
  const int64_t threads = at::get_num_threads();
  if (extent.batch * ((extent.height + band - 1) / band) < threads) {
    band = std::max<int64_t>(1, extent.height * extent.batch / threads);
  }
  const int64_t bands = (extent.height + band - 1) / band;
  const std::vector<int64_t> offsets = plan.pixel_offsets(band);

  at::parallel_for(0, extent.batch * bands, 1, [&](int64_t first_task, int64_t last_task) {
    std::vector<float> padded(plan.padded_floats(band), 0.0f), sums(offsets.size() * lanes);
    for (int64_t task = first_task; task < last_task; ++task) {
      const int64_t n = task / bands, begin = task % bands * band;
      const int64_t end = std::min(extent.height, begin + band);
      const int64_t positions = (end - begin) * extent.width;
      plan.read_padded(source, n, begin, end, padded.data());
      for (int64_t b = 0; b < blocks; ++b) {
        const Block& block = plan.blocks[b];
        float start[lanes] = {};
        if (bias) std::copy_n(bias + block.channel, block.count, start);
        for (int64_t p = 0; p < positions + tile && p < int64_t(offsets.size()); ++p) {
          std::copy_n(start, lanes, sums.data() + p * lanes);
        }
        const float* weight = weights[b].data();
        for (const Run& run : block.runs) {
          const auto [first, last] = plan.reaching(run, begin, end);
          const int64_t t = first / tile, tiles = (last + tile - 1) / tile - t;
          for (int64_t k = 0; k < run.depth; k += depth_block) {
            multiply(padded.data() + run.offset + k, offsets.data() + t * tile, tiles,
                     weight + k * lanes, std::min(depth_block, run.depth - k),
                     sums.data() + t * tile * lanes);
          }
          weight += run.depth * lanes;
        }
        write_pixels(target, extent, n, block.channel, block.count, begin * extent.width,
                     end * extent.width, sums.data());
      }
    }
  });
}

// Where the sums of a block's runs lie: each run is rounded up to whole tiles.
int64_t sums_floats(const Block& block) {
  int64_t tiles = 0;
  for (const Run& run : block.runs) tiles += (run.depth + tile - 1) / tile;
  return tiles * tile * lanes;
}

void add_weight_gradient(const Plan& plan, const Block& block, const PixelOperand& gradient,
                         int64_t n, const float* padded, const int64_t* offsets, float* sums) {
  const ImageExtent& extent = plan.problem.extent;
  float values[position_block * lanes] = {};
  for (int64_t p = 0; p < extent.positions(); p += position_block) {
    const int64_t end = std::min(extent.positions(), p + position_block);
    read_pixels(gradient, extent, n, block.channel, block.count, p, end, values, lanes);
    float* sum = sums;
    for (const Run& run : block.runs) {
      const int64_t first = std::max(p, plan.reaching(run, 0, extent.height).first);
      const int64_t tiles = (run.depth + tile - 1) / tile;
      if (first < end) {
        multiply_transposed(padded + run.offset, offsets + first, end - first,
                            values + (first - p) * lanes, tiles, sum);
      }
      sum += tiles * tile * lanes;
    }
  }
}

void weight_gradient(const MaskedConv2dBackward& p) {
  const Plan plan(p.forward, false);
  const ImageExtent& extent = p.forward.extent;
  const int64_t blocks = plan.blocks.size(), image = plan.padded_floats(extent.height);
  const std::vector<int64_t> offsets = plan.pixel_offsets(extent.height);
  const std::unique_ptr<float[]> padded(new float[extent.batch * image]);
  at::parallel_for(0, extent.batch, 1, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      std::fill_n(padded.get() + n * image, image, 0.0f);
      plan.read_padded(p.forward.x, n, 0, extent.height, padded.get() + n * image);
    }
  });
  // Chunks of images have sums of their own; how many does not depend on the threads.
  const int64_t chunks = std::min(extent.batch, (32 + blocks - 1) / blocks);
  std::vector<std::vector<float>> sums(chunks * blocks);
  at::parallel_for(0, chunks * blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const Block& block = plan.blocks[task % blocks];
      const int64_t chunk = task / blocks;
      sums[task].assign(sums_floats(block), 0.0f);
      for (int64_t n = extent.batch * chunk / chunks; n < extent.batch * (chunk + 1) / chunks;
           ++n) {
        add_weight_gradient(plan, block, p.forward.y, n, padded.get() + n * image, offsets.data(),
                            sums[task].data());
      }
    }
  });
  float* const grad_weight = static_cast<float*>(p.grad_weight);
  std::fill_n(grad_weight, p.forward.kernel.weights(), 0.0f);
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const Block& block = plan.blocks[b];
      int64_t k = 0, at = 0;
      for (const Run& run : block.runs) {
        for (int64_t r = 0; r < run.depth; ++r, ++k) {
          for (int64_t i = 0; i < block.count; ++i) {
            float sum = 0;
            for (int64_t c = 0; c < chunks; ++c) sum += sums[c * blocks + b][at + r * lanes + i];
            grad_weight[block.weight_of[k] + i * plan.target_stride()] = sum;
          }
        }
        at += (run.depth + tile - 1) / tile * tile * lanes;
      }
    }
  });
}

}  // namespace

void masked_conv2d(const MaskedConv2d& p) {
  convolve(Plan(p, false), p.x, p.y, static_cast<const float*>(p.bias));
}

void masked_conv2d_backward(const MaskedConv2dBackward& p) {
  if (p.grad_x.data) convolve(Plan(p.forward, true), p.forward.y, p.grad_x, nullptr);
  if (p.grad_weight) weight_gradient(p);
}

}  // namespace deepgen::cpu
