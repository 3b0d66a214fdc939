// Tiles of a Gram matrix x^T x. Both factors are read from one packed x: panels of columns as B, slices of the same
// panels, transposed by stride, as A.
#pragma once

#include "gemm_nest.hpp"

namespace awp {

constexpr Index kGramPanels = 2;  // panels along each side of a tile: small enough to spread d = 576 over threads

// Column range of one tile and the scratch block its sums are collected in.
template <class Kernel> struct GramTile {
  Index row_panel, column_panel;  // first panels
};

// Tiles are numbered along the rows of the upper triangle of tiles.
template <class Kernel> GramTile<Kernel> find_gram_tile(Index sides, Index tile) {
  Index row = 0;
  while (tile >= sides - row) tile -= sides - row++;
  return {row * kGramPanels, (row + tile) * kGramPanels};
}

// Float sums of rows [i, i + kBlockRows) of the tile over `length` operands from `start`.
template <class Kernel>
void gram_rows(const typename Kernel::Operand* x, const PanelLayout<Kernel>& layout, Index i, Index first_panel,
               Index start, Index length, OutBlock<typename Kernel::Sum> out) {
  const Index left_panel = i / Kernel::kPanel, left_width = layout.width(left_panel);
  const auto* left = x + layout.offset(left_panel) + start * left_width + i % Kernel::kPanel;
  const Index last_panel = std::min(first_panel + kGramPanels, layout.panels());
  for (Index panel = first_panel; panel < last_panel; ++panel, out.data += Kernel::kPanel) {
    const Index width = layout.width(panel);
    out.columns = layout.columns(panel);
    if (panel * Kernel::kPanel + out.columns <= i) continue;  // all below the diagonal
    const auto* right = x + layout.offset(panel) + start * width;
    Kernel::template run<1>(left, left_width, right, length, width, out);
  }
}

// Adds the finished sums to gram, entries on and above the diagonal only.
template <class Sum>
void add_upper(const Sum* sums, Index stride, Index row, Index rows, Index column, Index columns, Index d,
               double* gram) {
  for (Index i = row; i < row + rows; ++i, sums += stride) {
    for (Index j = std::max(i, column); j < column + columns; ++j) {
      gram[i * d + j] += static_cast<double>(sums[j - column]);
    }
  }
}

template <class Kernel>
void add_gram_tile(const typename Kernel::Operand* x, const PanelLayout<Kernel>& layout, Index tile, double* gram,
                   Workspace& workspace) {
  using Sum = typename Kernel::Sum;
  constexpr Index side = kGramPanels * Kernel::kPanel;
  constexpr Index chunk = kGramChunk / Kernel::kDepth;
  const auto where = find_gram_tile<Kernel>(ceil_div(layout.panels(), kGramPanels), tile);
  const Index row = where.row_panel * Kernel::kPanel, column = where.column_panel * Kernel::kPanel;
  const Index rows = std::min(side, layout.n - row), columns = std::min(side, layout.n - column);
  auto* sums = static_cast<Sum*>(workspace.reserve(side * side * sizeof(Sum)));
  [[maybe_unused]] const typename Kernel::Session session{};
  for (Index start = 0; start < layout.depth(); start += kDepthBlock) {
    const Index length = std::min(kDepthBlock, layout.depth() - start);
    for (Index i = 0; i < rows; i += Kernel::kBlockRows) {
      gram_rows<Kernel>(x, layout, row + i, where.column_panel, start, length,
                        {sums + i * side, side, std::min(Kernel::kBlockRows, rows - i), 0, start % chunk > 0});
    }
    const bool chunk_ends = (start + kDepthBlock) % chunk == 0 || start + kDepthBlock >= layout.depth();
    if (chunk_ends) add_upper(sums, side, row, rows, column, columns, layout.n, gram);
  }
}

}  // namespace awp
