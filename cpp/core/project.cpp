#include "awp/project.hpp"

#include <algorithm>

namespace awp {

namespace {

constexpr std::size_t kTileRows = 96, kTileStep = 32;  // what the product likes best

std::size_t round_up(std::size_t value, std::size_t step) { return (value + step - 1) / step * step; }

template <class T> T* room(std::vector<T>& buffer, std::size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

// gain = z^2 - (z - Q(z))^2 in the reference's form, whose bits no fused multiply-add can change.
template <class T> void fill_gain(const T* z, const T* rounded, T* gain, std::size_t size) {
  for (std::size_t j = 0; j < size; ++j) gain[j] = rounded[j] * (z[j] + z[j] - rounded[j]);
}

}  // namespace

std::size_t tile_rows(std::size_t rows, const Support& support) {
  const std::size_t tiles = (rows + kTileRows - 1) / kTileRows;
  const std::size_t even = round_up((rows + tiles - 1) / tiles, kTileStep);
  return round_up(even, strip_rows(support));
}

template <class T>
void project(const SparseSet<T>& set, View<const T> z, View<T> out, std::size_t first_row, ProjectScratch<T>& scratch,
             Key<T>* hints) {
  const std::size_t d = z.cols, strip = std::min(strip_rows(set.support), z.rows);
  T* gain = room(scratch.gain, strip * d);
  T* rounded = room(scratch.rounded, strip * d);
  std::uint8_t* mask = room(scratch.mask, strip * d);
  for (std::size_t first = 0; first < z.rows; first += strip) {
    const std::size_t rows = std::min(strip, z.rows - first), size = rows * d;
    const T* from = z.row(first);
    const T* values = from;
    if (set.grid) {
      for (std::size_t i = 0; i < rows; ++i) set.grid->round(first_row + first + i, from + i * d, rounded + i * d);
      values = rounded;
    }
    if (!std::holds_alternative<Dense>(set.support)) fill_gain(from, values, gain, size);
    select<T>(set.support, {gain, rows, d}, {mask, rows, d}, first_row + first, hints ? hints + first : nullptr);
    T* to = out.row(first);
    // + 0 turns a kept -0 into 0.
    for (std::size_t j = 0; j < size; ++j) to[j] = (mask[j] ? values[j] : T(0)) + T(0);
  }
}

template void project(const SparseSet<float>&, View<const float>, View<float>, std::size_t, ProjectScratch<float>&,
                      Key<float>*);
template void project(const SparseSet<double>&, View<const double>, View<double>, std::size_t,
                      ProjectScratch<double>&, Key<double>*);

}  // namespace awp
