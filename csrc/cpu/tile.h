// Tiles: how an elementwise kernel with a sum per row walks over its operands.
//
// A tile is about a thousand elements of whole rows where rows are short, up to four thousand of
// one long row. Operands that are dense there are read in place; strided, broadcast or
// half-precision ones are gathered into a buffer that stays in L1 or L2. So the arithmetic is one
// dense loop in float or double, whatever comes in, and no operand is copied through memory. (Long
// rows are best at 4096, measured from 512 to 4096: what a tile costs beside its loop is then 1 %
// of it.)
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstring>

#include "../operand.h"
#include "simd.h"

namespace deepgen::cpu {

constexpr int64_t tile_elements = 4096;
constexpr int64_t tile_elements_of_short_rows = 1024;
// Below this many elements a second thread costs more than it saves.
constexpr int64_t grain_elements = 16384;

struct Tile {
  int64_t row, rows;       // the first row and how many
  int64_t begin, columns;  // the part of each row; all of it where rows > 1

  int64_t elements() const { return rows * columns; }
};

// Calls each(tile) for all tiles of the rows, in parallel. Tiles do not depend on the number of
// threads, so sums of tiles do not either. Rows longer than a tile come piece by piece to
// each_piece(row, piece, begin, end) instead.
template <class EachTile, class EachPiece>
void for_each_tile(const Extent& extent, int64_t piece_elements, EachTile each_tile,
                   EachPiece each_piece, int64_t grain_elements = cpu::grain_elements) {
  const int64_t row = extent.row();
  if (extent.batch == 0) return;
  if (row <= tile_elements_of_short_rows) {
    const int64_t rows = row == 0 ? extent.batch : tile_elements_of_short_rows / row;
    const int64_t tiles = (extent.batch + rows - 1) / rows;
    const int64_t grain = std::max<int64_t>(1, grain_elements / std::max<int64_t>(1, rows * row));
    at::parallel_for(0, tiles, grain, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) {
        each_tile(Tile{t * rows, std::min(rows, extent.batch - t * rows), 0, row});
      }
    });
    return;
  }
  const int64_t pieces = (row + piece_elements - 1) / piece_elements;
  const int64_t grain = std::max<int64_t>(1, grain_elements / std::min(row, piece_elements));
  at::parallel_for(0, extent.batch * pieces, grain, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      const int64_t piece = p % pieces, begin = piece * piece_elements;
      each_piece(p / pieces, piece, begin, std::min(row, begin + piece_elements));
    }
  });
}

// Calls run(position in the tile, offset in the operand, length) for the operand's innermost runs.
template <class Run>
DEEPGEN_INLINE void for_each_run(const Operand& operand, const Extent& extent, const Tile& tile,
                                 Run run) {
  const int64_t* size = extent.size;
  int64_t position = 0;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t base = (tile.row + r) * operand.batch_stride;
    int64_t i = tile.begin;
    const int64_t end = tile.begin + tile.columns;
    while (i < end) {
      const int64_t inner = i % size[2], rest = i / size[2];
      const int64_t offset = base + (rest / size[1]) * operand.stride[0] +
                             (rest % size[1]) * operand.stride[1] + inner * operand.stride[2];
      const int64_t length = std::min(size[2] - inner, end - i);
      run(position, offset, length);
      position += length;
      i += length;
    }
  }
}

// Calls each(columns) with a constant where rows are short, as those of a chunk of (n, 16): a fixed
// length spares a loop's overhead.
template <class Each>
DEEPGEN_INLINE void with_columns(int64_t columns, Each each) {
  switch (columns) {
    case 1:
      return each(std::integral_constant<int64_t, 1>{});
    case 2:
      return each(std::integral_constant<int64_t, 2>{});
    case 4:
      return each(std::integral_constant<int64_t, 4>{});
    case 8:
      return each(std::integral_constant<int64_t, 8>{});
    default:
      return each(columns);
  }
}

template <class From, class To>
DEEPGEN_INLINE void gather_as(const Operand& operand, const Extent& extent, const Tile& tile,
                              To* buffer) {
  const From* data = static_cast<const From*>(operand.data);
  const int64_t stride = operand.stride[2];
  if (tile.rows > 1 && has_dense_rows(operand, extent)) {
    return with_columns(tile.columns, [&](auto columns) {
      for (int64_t r = 0; r < tile.rows; ++r) {
        const From* from = data + (tile.row + r) * operand.batch_stride;
        for (int64_t i = 0; i < columns; ++i) buffer[r * columns + i] = static_cast<To>(from[i]);
      }
    });
  }
  for_each_run(operand, extent, tile, [&](int64_t position, int64_t offset, int64_t length) {
    To* to = buffer + position;
    const From* from = data + offset;
    if (stride == 1) {
      for (int64_t i = 0; i < length; ++i) to[i] = static_cast<To>(from[i]);
    } else if (stride == 0) {
      std::fill_n(to, length, static_cast<To>(from[0]));
    } else {
      for (int64_t i = 0; i < length; ++i) to[i] = static_cast<To>(from[i * stride]);
    }
  });
}

template <class To, class From>
DEEPGEN_INLINE void scatter_as(const Operand& operand, const Extent& extent, const Tile& tile,
                               const From* buffer) {
  To* data = static_cast<To*>(operand.data);
  const int64_t stride = operand.stride[2];
  if (tile.rows > 1 && has_dense_rows(operand, extent)) {
    return with_columns(tile.columns, [&](auto columns) {
      for (int64_t r = 0; r < tile.rows; ++r) {
        To* to = data + (tile.row + r) * operand.batch_stride;
        for (int64_t i = 0; i < columns; ++i) to[i] = static_cast<To>(buffer[r * columns + i]);
      }
    });
  }
  for_each_run(operand, extent, tile, [&](int64_t position, int64_t offset, int64_t length) {
    for (int64_t i = 0; i < length; ++i)
      data[offset + i * stride] = static_cast<To>(buffer[position + i]);
  });
}

// Where the operand holds T itself and is dense over the tile, the place of its first element; else
// null.
template <class T>
T* in_place(const Operand& operand, Storage storage, const Extent& extent, const Tile& tile) {
  const bool same_type = storage == (sizeof(T) == 8 ? Storage::f64 : Storage::f32);
  const bool dense =
      has_dense_rows(operand, extent) && (tile.rows == 1 || operand.batch_stride == tile.columns);
  if (!same_type || !dense) return nullptr;
  return static_cast<T*>(operand.data) + tile.row * operand.batch_stride + tile.begin;
}

// The tile of an input, in place or gathered into the buffer.
template <class T>
const T* read_tile(const Operand& operand, Storage storage, const Extent& extent, const Tile& tile,
                   T* buffer) {
  if (const T* data = in_place<T>(operand, storage, extent, tile)) return data;
  if constexpr (sizeof(T) == 8) {
    gather_as<double>(operand, extent, tile, buffer);
  } else {
    switch (storage) {
      case Storage::bf16:
        gather_as<c10::BFloat16>(operand, extent, tile, buffer);
        break;
      case Storage::f16:
        gather_as<c10::Half>(operand, extent, tile, buffer);
        break;
      default:
        gather_as<float>(operand, extent, tile, buffer);
    }
  }
  return buffer;
}

// Where to write the tile of an output: in place, or into the buffer, which write_back then stores.
template <class T>
T* write_tile(const Operand& operand, Storage storage, const Extent& extent, const Tile& tile,
              T* buffer) {
  T* data = in_place<T>(operand, storage, extent, tile);
  return data ? data : buffer;
}

template <class T>
void write_back(const Operand& operand, Storage storage, const Extent& extent, const Tile& tile,
                const T* values, const T* buffer) {
  if (values != buffer) return;
  if constexpr (sizeof(T) == 8) {
    scatter_as<double>(operand, extent, tile, buffer);
  } else {
    switch (storage) {
      case Storage::bf16:
        scatter_as<c10::BFloat16>(operand, extent, tile, buffer);
        break;
      case Storage::f16:
        scatter_as<c10::Half>(operand, extent, tile, buffer);
        break;
      default:
        scatter_as<float>(operand, extent, tile, buffer);
    }
  }
}

}  // namespace deepgen::cpu
