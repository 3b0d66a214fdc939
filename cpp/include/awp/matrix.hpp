// Row-major views of matrices that somebody else owns.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace awp {

template <class T>
struct View {
  T* data = nullptr;
  std::size_t rows = 0;
  std::size_t cols = 0;

  T* row(std::size_t i) const { return data + i * cols; }
  std::size_t size() const { return rows * cols; }
  View strip(std::size_t first, std::size_t count) const { return {row(first), count, cols}; }
  operator View<const T>() const { return {data, rows, cols}; }
};

using Mask = View<std::uint8_t>;  // 0 or 1

}  // namespace awp
