// An image rewritten pixel by pixel, and a masked convolution of it as runs of floats.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "../masked_conv2d.h"
#include "register_tile.h"

namespace deepgen::cpu {

// Calls piece(first position, length, offset of the first) for the longest pieces of the positions
// [begin, end) of an image that lie evenly in memory.
template <class Piece>
void for_each_piece(const PixelOperand& image, const ImageExtent& extent, int64_t begin,
                    int64_t end, Piece piece) {
  const bool even = image.row == extent.width * image.column;
  while (begin < end) {
    const int64_t i = begin / extent.width, j = begin % extent.width;
    const int64_t length = even ? end - begin : std::min(extent.width - j, end - begin);
    piece(begin, length, i * image.row + j * image.column);
    begin += length;
  }
}

// pixels[position][stride] from `count` channels of the positions [begin, end).
inline void read_pixels(const PixelOperand& image, const ImageExtent& extent, int64_t n,
                        int64_t channel, int64_t count, int64_t begin, int64_t end, float* pixels,
                        int64_t stride) {
  const float* data = static_cast<const float*>(image.data) + image.offset(n, channel, 0, 0);
  for_each_piece(image, extent, begin, end, [&](int64_t first, int64_t length, int64_t offset) {
    const float* from = data + offset;
    float* to = pixels + (first - begin) * stride;
    if (image.column == 1) return transpose(from, image.channel, count, length, to, stride);
    if (image.channel == 1) {
      for (int64_t p = 0; p < length; ++p) {
        std::copy_n(from + p * image.column, count, to + p * stride);
      }
      return;
    }
    for (int64_t p = 0; p < length; ++p) {
      for (int64_t c = 0; c < count; ++c) {
        to[p * stride + c] = from[p * image.column + c * image.channel];
      }
    }
  });
}

// The way back, from sums[position][lanes].
inline void write_pixels(const PixelOperand& image, const ImageExtent& extent, int64_t n,
                         int64_t channel, int64_t count, int64_t begin, int64_t end,
                         const float* sums) {
  float* data = static_cast<float*>(image.data) + image.offset(n, channel, 0, 0);
  for_each_piece(image, extent, begin, end, [&](int64_t first, int64_t length, int64_t offset) {
    const float* from = sums + (first - begin) * lanes;
    float* to = data + offset;
    if (image.column == 1) return transpose(from, lanes, length, count, to, image.channel);
    for (int64_t p = 0; p < length; ++p) {
      for (int64_t c = 0; c < count; ++c) {
        to[p * image.column + c * image.channel] = from[p * lanes + c];
      }
    }
  });
}

// Floats side by side in the padded image, `offset` from a pixel, `rows` image rows away from it.
struct Run {
  int64_t rows, offset, depth;
};

// Up to 16 target channels of one group with the runs that they see and the weights of these.
struct Block {
  int64_t channel, count;
  std::vector<Run> runs;
  std::vector<int64_t> weight_of;  // [depth of all runs]: index of the first target's weight
};

// The convolution from `source` to `target` as runs; for the gradient of x the two are exchanged
// and the taps mirrored.
struct Plan {
  const MaskedConv2d& problem;
  const bool mirrored;
  const int64_t source_channels, target_channels;
  const int64_t reach_rows, reach_columns;  // in pixels
  const int64_t row;                        // stride of the padded image, in floats
  std::vector<Block> blocks;

  Plan(const MaskedConv2d& p, bool mirrored)
      : problem(p),
        mirrored(mirrored),
        source_channels(mirrored ? p.kernel.out_channels : p.kernel.in_channels),
        target_channels(mirrored ? p.kernel.in_channels : p.kernel.out_channels),
        reach_rows(p.rows_above() * p.kernel.dilation),
        reach_columns(p.columns_aside() * p.kernel.dilation),
        row((p.extent.width + reach_columns) * source_channels) {
    const int64_t group = target_channels / p.kernel.groups;
    for (int64_t begin = 0; begin < target_channels; begin += group) {
      for (int64_t c = begin; c < begin + group; c += lanes) {
        blocks.push_back({c, std::min(lanes, begin + group - c), {}, {}});
        add_runs(blocks.back());
      }
    }
  }

  void add_runs(Block& block) const {
    const int64_t above = problem.rows_above(), aside = problem.columns_aside();
    for (int64_t s = above; s > 0; --s) {
      for (int64_t t = -aside; t <= aside; ++t) add_tap(block, s, t, 0, source_channels);
    }
    if (mirrored) {
      add_tap(block, 0, 0, problem.kernel.first_output(block.channel), source_channels);
      for (int64_t t = 1; t <= aside; ++t) add_tap(block, 0, t, 0, source_channels);
    } else {
      for (int64_t t = -aside; t < 0; ++t) add_tap(block, 0, t, 0, source_channels);
      add_tap(block, 0, 0, 0, problem.kernel.visible_inputs(block.channel));
    }
  }

  // The tap s rows away (above, or below if mirrored) and t columns to the right.
  void add_tap(Block& block, int64_t s, int64_t t, int64_t begin, int64_t end) const {
    if (begin == end) return;
    const MaskedKernel& kernel = problem.kernel;
    const int64_t rows = (mirrored ? s : -s) * kernel.dilation;
    const int64_t offset = rows * row + t * kernel.dilation * source_channels + begin;
    std::vector<Run>& runs = block.runs;
    if (!runs.empty() && runs.back().rows == rows &&
        runs.back().offset + runs.back().depth == offset) {
      runs.back().depth += end - begin;
    } else {
      runs.push_back({rows, offset, end - begin});
    }
    const int64_t ky = kernel.kernel_height / 2 - s;
    const int64_t kx = kernel.kernel_width / 2 + (mirrored ? -t : t);
    for (int64_t c = begin; c < end; ++c) {
      block.weight_of.push_back(mirrored ? kernel.weight(c, block.channel, ky, kx)
                                         : kernel.weight(block.channel, c, ky, kx));
    }
  }

  // Between the weights of two neighbouring targets.
  int64_t target_stride() const {
    const MaskedKernel& k = problem.kernel;
    return k.kernel_height * k.kernel_width * (mirrored ? 1 : k.in_channels);
  }

  // Rows of padding lie above the image, or below it if mirrored.
  int64_t padded_floats(int64_t rows) const {
    return (rows + reach_rows) * row + reach_columns * source_channels + tile;
  }
  int64_t first_pixel() const {
    return (mirrored ? 0 : reach_rows) * row + reach_columns * source_channels;
  }
  std::vector<int64_t> pixel_offsets(int64_t rows) const {
    std::vector<int64_t> offsets;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < problem.extent.width; ++j) {
        offsets.push_back(first_pixel() + i * row + j * source_channels);
      }
    }
    while (offsets.size() % tile) offsets.push_back(offsets.back());
    return offsets;
  }

  // Fills the padded image around the rows [begin, end); the space between rows is zero already.
  void read_padded(const PixelOperand& source, int64_t n, int64_t begin, int64_t end,
                   float* padded) const {
    const int64_t from = mirrored ? begin : begin - reach_rows;
    const int64_t to = mirrored ? end + reach_rows : end;
    for (int64_t i = from; i < to; ++i) {
      float* pixels = padded + (i - from) * row + reach_columns * source_channels;
      const int64_t width = problem.extent.width;
      if (i < 0 || i >= problem.extent.height) {
        std::fill_n(pixels, width * source_channels, 0.0f);
      } else {
        read_pixels(source, problem.extent, n, 0, source_channels, i * width, (i + 1) * width,
                    pixels, source_channels);
      }
    }
  }

  // The positions of the rows [begin, end), counted from begin, from which a run reaches the image.
  std::pair<int64_t, int64_t> reaching(const Run& run, int64_t begin, int64_t end) const {
    const int64_t first = std::max(begin, -run.rows);
    const int64_t last = std::min(end, problem.extent.height - std::max<int64_t>(0, run.rows));
    return {(first - begin) * problem.extent.width,
            std::max<int64_t>(0, last - begin) * problem.extent.width};
  }
};

}  // namespace deepgen::cpu
