// Where a weight may be nonzero. Twins of awp_edge/constraints/supports.py: same masks, ties to the lowest index.
#pragma once
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "awp/matrix.hpp"

namespace awp {

struct Dense {};
struct RowSparse {                                      // of every row as many as its own count, or as the only one
  std::vector<std::size_t> k;
  std::size_t count(std::size_t row) const { return k.size() == 1 ? k[0] : k.at(row); }
};
struct NM { std::size_t n, m; };                        // n of every m consecutive inputs
struct BalancedBlock { std::size_t k, block; };         // k of every interleaved block b, b + n, b + 2n, ...
struct BlockSparse { std::size_t k, rows, cols; };      // k whole blocks of every strip of `rows` rows
using Support = std::variant<Dense, RowSparse, NM, BalancedBlock, BlockSparse>;

// Floats order like these integers, once negative ones have their other bits flipped.
template <class T> using Key = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

// The support that a Python descriptor (name, counts, a, b) stands for. Throws std::invalid_argument.
Support make_support(const std::string& kind, std::vector<std::size_t> counts, std::size_t a, std::size_t b);

// Rows that are best selected together: a multiple of this belongs in one call, except at the end of the matrix.
std::size_t strip_rows(const Support& support);

// Writes the mask with the largest total gain for the rows first_row, first_row + 1, ... of a matrix. hints: one
// threshold per row, kept by the caller from call to call so that similar gains are quick (0 at first), or null; the
// result does not depend on it.
template <class T>
void select(const Support& support, View<const T> gain, Mask mask, std::size_t first_row, Key<T>* hints = nullptr);

}  // namespace awp
