// From runs of values a element to rows of one lane an element, and back.
//
// A chunk is as many elements as Lanes has lanes. Where the values of one element lie side by side,
// floats are transposed four by four in registers; where the elements do, rows are copied as they
// are; else one by one.
#pragma once

#include <algorithm>
#include <cstring>

#include "lanes.h"

namespace deepgen::cpu {

typedef float Quad __attribute__((vector_size(16)));
typedef int32_t QuadIndex __attribute__((vector_size(16)));

#ifdef __clang__
#define DEEPGEN_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define DEEPGEN_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, QuadIndex{i, j, k, l})
#endif

// Four runs of four floats, transposed: from[i][j] -> to[j][i].
template <class From, class To>
DEEPGEN_INLINE void transpose(From from, To to) {
  Quad v[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&v[i], from(i), sizeof(Quad));
  const Quad low01 = DEEPGEN_SHUFFLE(v[0], v[1], 0, 4, 1, 5);
  const Quad high01 = DEEPGEN_SHUFFLE(v[0], v[1], 2, 6, 3, 7);
  const Quad low23 = DEEPGEN_SHUFFLE(v[2], v[3], 0, 4, 1, 5);
  const Quad high23 = DEEPGEN_SHUFFLE(v[2], v[3], 2, 6, 3, 7);
  const Quad out[4] = {
      DEEPGEN_SHUFFLE(low01, low23, 0, 1, 4, 5), DEEPGEN_SHUFFLE(low01, low23, 2, 3, 6, 7),
      DEEPGEN_SHUFFLE(high01, high23, 0, 1, 4, 5), DEEPGEN_SHUFFLE(high01, high23, 2, 3, 6, 7)};
  for (int j = 0; j < 4; ++j) std::memcpy(to(j), &out[j], sizeof(Quad));
}

// Calls each(k) for runs of four of `count`; the last overlaps the one before where it must.
template <class Each>
DEEPGEN_INLINE void for_each_quad(int64_t count, Each each) {
  for (int64_t k = 0; k + 4 < count; k += 4) each(k);
  each(count - 4);
}

// rows[k][lane] = data[offsets[lane] + k * stride] for k < count. Lanes behind the last one repeat
// it.
template <class S, class T>
void gather_chunk(const S* data, int64_t stride, const int64_t* offsets, int64_t lanes,
                  int64_t count, T* rows) {
  constexpr int64_t L = Lanes<T>::count;
  const S* element[L];
  bool adjacent = true;
  for (int64_t l = 0; l < L; ++l) {
    element[l] = data + offsets[std::min(l, lanes - 1)];
    adjacent = adjacent && element[l] == element[0] + l;
  }
  if (adjacent) {
    for (int64_t k = 0; k < count; ++k) {
      const S* from = element[0] + k * stride;
      for (int64_t l = 0; l < L; ++l) rows[k * L + l] = static_cast<T>(from[l]);
    }
    return;
  }
  if constexpr (std::is_same_v<S, float>) {
    if (stride == 1 && count >= 4) {
      for_each_quad(count, [&](int64_t k) {
        for (int64_t l = 0; l < L; l += 4) {
          transpose([&](int i) { return element[l + i] + k; },
                    [&](int j) { return rows + (k + j) * L + l; });
        }
      });
      return;
    }
  }
  for (int64_t l = 0; l < L; ++l) {
    for (int64_t k = 0; k < count; ++k) rows[k * L + l] = static_cast<T>(element[l][k * stride]);
  }
}

// The way back, for `lanes` lanes.
template <class S, class T>
void scatter_chunk(S* data, int64_t stride, const int64_t* offsets, int64_t lanes, int64_t count,
                   const T* rows) {
  constexpr int64_t L = Lanes<T>::count;
  S* element[L];
  bool adjacent = lanes == L;
  for (int64_t l = 0; l < lanes; ++l) {
    element[l] = data + offsets[l];
    adjacent = adjacent && element[l] == element[0] + l;
  }
  if (adjacent) {
    for (int64_t k = 0; k < count; ++k) {
      S* to = element[0] + k * stride;
      for (int64_t l = 0; l < L; ++l) to[l] = static_cast<S>(rows[k * L + l]);
    }
    return;
  }
  if constexpr (std::is_same_v<S, float>) {
    if (stride == 1 && count >= 4 && lanes == L) {
      for_each_quad(count, [&](int64_t k) {
        for (int64_t l = 0; l < L; l += 4) {
          transpose([&](int j) { return rows + (k + j) * L + l; },
                    [&](int i) { return element[l + i] + k; });
        }
      });
      return;
    }
  }
  for (int64_t l = 0; l < lanes; ++l) {
    for (int64_t k = 0; k < count; ++k) element[l][k * stride] = static_cast<S>(rows[k * L + l]);
  }
}

}  // namespace deepgen::cpu
