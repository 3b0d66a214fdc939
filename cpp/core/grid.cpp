#include "awp/grid.hpp"

#include <algorithm>

namespace awp {

namespace {

// Adding and subtracting 1.5 2^p rounds to integers, half to even, in plain SSE2 too; exact for |x| < 2^(p-1).
template <class T> constexpr T kRounder = sizeof(T) == 4 ? T(12582912.0) : T(6755399441055744.0);
// Codes lie within 8 bits, so anything further out clips to the same code.
template <class T> constexpr T kFar = 1024;

template <class T> T code(T z, T scale, T zero, T top) {
  const T steps = std::clamp(z / scale, -kFar<T>, kFar<T>);
  const T rounded = (steps + kRounder<T>) - kRounder<T>;
  return std::clamp(rounded + zero, T(0), top);
}

}  // namespace

template <class T> void Grid<T>::round(std::size_t row, const T* z, T* out) const {
  for (std::size_t group = 0, j = 0; group < scales.cols; ++group) {
    const T scale = scales.row(row)[group], zero = zeros.row(row)[group], last = static_cast<T>(top);
    for (const std::size_t end = j + group_size; j < end; ++j) out[j] = (code(z[j], scale, zero, last) - zero) * scale;
  }
}

template <class T> void Grid<T>::encode(std::size_t row, const T* z, std::uint8_t* out) const {
  for (std::size_t group = 0, j = 0; group < scales.cols; ++group) {
    const T scale = scales.row(row)[group], zero = zeros.row(row)[group], last = static_cast<T>(top);
    for (const std::size_t end = j + group_size; j < end; ++j)
      out[j] = static_cast<std::uint8_t>(static_cast<int>(code(z[j], scale, zero, last)));
  }
}

template struct Grid<float>;
template struct Grid<double>;

}  // namespace awp
