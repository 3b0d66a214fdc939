// The exact projection onto support x values. Twin of Sparse.project in awp_edge/constraints/sparse.py.
#pragma once
#include <optional>
#include <vector>

#include "awp/grid.hpp"
#include "awp/support.hpp"

namespace awp {

template <class T> struct SparseSet {
  Support support;
  std::optional<Grid<T>> grid;  // none: any real value
};

// Scratch of one thread; grows to the largest strip.
template <class T> struct ProjectScratch {
  std::vector<T> gain, rounded;
  std::vector<std::uint8_t> mask;
};

// Rows per tile of work: whole strips, a size that depends on the shape alone, so that results do not depend on the
// number of threads.
std::size_t tile_rows(std::size_t rows, const Support& support);

// out = nearest point of the set to z, for the whole rows first_row, first_row + 1, ... of a matrix.
// The rows must be whole strips of the support; out may be z. hints: see select().
template <class T>
void project(const SparseSet<T>& set, View<const T> z, View<T> out, std::size_t first_row, ProjectScratch<T>& scratch,
             Key<T>* hints = nullptr);

}  // namespace awp
