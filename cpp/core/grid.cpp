#include "awp/grid.hpp"

namespace awp {

template <class T> void Grid<T>::round(std::size_t row, const T* z, T* out) const {
  for (std::size_t group = 0, j = 0; group < scales.cols; ++group) {
    const T scale = scales.row(row)[group], zero = zeros.row(row)[group], last = static_cast<T>(top);
    for (const std::size_t end = j + group_size; j < end; ++j) out[j] = (nearest_code(z[j], scale, zero, last) - zero) * scale;
  }
}

template <class T> void Grid<T>::encode(std::size_t row, const T* z, std::uint8_t* out) const {
  for (std::size_t group = 0, j = 0; group < scales.cols; ++group) {
    const T scale = scales.row(row)[group], zero = zeros.row(row)[group], last = static_cast<T>(top);
    for (const std::size_t end = j + group_size; j < end; ++j)
      out[j] = static_cast<std::uint8_t>(static_cast<int>(nearest_code(z[j], scale, zero, last)));
  }
}

template struct Grid<float>;
template struct Grid<double>;

}  // namespace awp
