// Group-wise integer grids. Twin of BoundGrid in awp_edge/constraints/values.py: true division, round half to even.
#pragma once
#include "awp/matrix.hpp"

namespace awp {

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
