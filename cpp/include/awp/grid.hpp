// Group-wise integer grids. Twin of BoundGrid in awp_edge/constraints/values.py: true division, round half to even.
#pragma once
#include <algorithm>

#include "awp/matrix.hpp"

namespace awp {

// clip(rint(z / scale) + zero, 0, top). Adding and subtracting 1.5 2^p rounds to integers, half to even, in plain SSE2
// too, exactly for |x| < 2^(p-1); codes lie within 8 bits, so anything further out clips to the same code.
template <class T> inline T nearest_code(T z, T scale, T zero, T top) {
  constexpr T rounder = sizeof(T) == 4 ? T(12582912.0) : T(6755399441055744.0), far = 1024;
  const T steps = std::clamp(z / scale, -far, far);
  const T rounded = (steps + rounder) - rounder;
  return std::clamp(rounded + zero, T(0), top);
}

template <class T> struct Grid {
  View<const T> scales;            // (rows, groups), positive
  View<const std::uint8_t> zeros;  // (rows, groups)
  std::size_t group_size;
  int top;                         // largest code

  // out[j] = (code - zero) scale for one row of z.
  void round(std::size_t row, const T* z, T* out) const;
  // out[j] = clip(rint(z / scale) + zero, 0, top) for one row of z.
  void encode(std::size_t row, const T* z, std::uint8_t* out) const;
};

}  // namespace awp
