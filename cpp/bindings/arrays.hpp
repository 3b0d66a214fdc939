// What Python hands over: matrices as views, grids as their parts.
#pragma once
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "awp/grid.hpp"

namespace awp {

template <class T> using In =
    nanobind::ndarray<const T, nanobind::numpy, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
template <class T> using Out =
    nanobind::ndarray<T, nanobind::numpy, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
using Descriptor = std::tuple<std::string, std::vector<std::size_t>, std::size_t, std::size_t>;
// Codes, scale and diagonal of a RoundedMatrix, the latter two as (1, d).
template <class T> using RoundedArrays = std::tuple<In<std::int8_t>, In<T>, In<T>>;
// Scales, zero points, group size and the largest code.
template <class T> using GridArrays = std::tuple<In<T>, In<std::uint8_t>, std::size_t, int>;
template <class T> using GridParts = std::optional<GridArrays<T>>;

template <class T> View<const T> view(const In<T>& array) { return {array.data(), array.shape(0), array.shape(1)}; }
template <class T> View<T> view(const Out<T>& array) { return {array.data(), array.shape(0), array.shape(1)}; }

template <class T> Grid<T> grid_of(const GridArrays<T>& parts) {
  const auto& [scales, zeros, group_size, top] = parts;
  return {view(scales), view(zeros), group_size, top};
}

}  // namespace awp
