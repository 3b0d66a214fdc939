// Tiles of a Gram matrix x^T x. Both factors come from one packed x: panels of columns as B, and slices of the same
// panels as A.
#pragma once

#include "gemm_nest.hpp"
#include "gemm_tiles.hpp"

namespace awp {

// Side of a tile in panels. About 144 columns: the sums fit L2 with the slices they are made of, and d = 576 still
// gives ten tiles to share out.
template <class Kernel> constexpr Index kGramPanels = ceil_div(144, Kernel::kPanel);

// A tile: rows and columns of the Gram matrix it covers, from the first to one past the last.
struct GramTile {
  Index row, row_end, column, column_end;
};

// Number of tiles along each side.
template <class Kernel> Index gram_sides(Index d) { return ceil_div(d, kGramPanels<Kernel> * Kernel::kPanel); }

// Tiles off the diagonal come first, row by row: the diagonal ones, half the work, fill the gaps between threads.
template <class Kernel> GramTile find_gram_tile(Index d, Index tile) {
  const Index side = kGramPanels<Kernel> * Kernel::kPanel, sides = gram_sides<Kernel>(d);
  Index row = 0, column;
  const Index off_diagonal = sides * (sides - 1) / 2;
  if (tile >= off_diagonal) {
    row = column = tile - off_diagonal;
  } else {
    while (tile >= sides - 1 - row) tile -= sides - 1 - row++;
    column = row + 1 + tile;
  }
  return {row * side, std::min(row * side + side, d), column * side, std::min(column * side + side, d)};
}

// A slice of kBlockRows columns of x, from column `i`, as rows of A: read in place or transposed.
template <class Kernel> class GramRows {
 public:
  using Operand = typename Kernel::Operand;
  static constexpr Index kStride = Kernel::kReadsPackedColumns ? 1 : kRowStride<Kernel>;

  GramRows(const Operand* packed, Index width, Index length) : slice_{packed, width} {
    if constexpr (!Kernel::kReadsPackedColumns) {
      transpose(packed, width, length, transposed_);
      slice_ = {transposed_, 1};
    }
  }
  GramRows(const GramRows&) = delete;
  Slice<Operand> slice() const { return slice_; }

 private:
  static void transpose(const Operand* packed, Index width, Index length, Operand* out) {
    for (Index k = 0; k < length; k += 16) {
      for (Index i = 0; i < Kernel::kBlockRows; i += 16) {
        transpose_16x16(packed + k * width + i, width, out + i * kRowStride<Kernel> + k, kRowStride<Kernel>);
      }
    }
  }

  Slice<Operand> slice_;
  alignas(64) Operand transposed_[Kernel::kReadsPackedColumns ? 1 : Kernel::kBlockRows * kRowStride<Kernel>];
};

// Sums of the rows [i, i + kBlockRows) of a tile over `length` operands from `start`. out: the first of these rows.
template <class Kernel>
void gram_rows(const typename Kernel::Operand* x, const PanelLayout<Kernel>& layout, const GramTile& tile, Index i,
               Index start, Index length, OutBlock<typename Kernel::Sum> out) {
  const Index home = i / Kernel::kPanel, end = ceil_div(tile.column_end, Kernel::kPanel);
  const GramRows<Kernel> rows(layout.slice(x, home, start) + i % Kernel::kPanel, layout.width(home), length);
  for (Index panel = std::max(home, tile.column / Kernel::kPanel); panel < end; ++panel) {
    // Vectors that lie below the diagonal as a whole are left out.
    const Index first = panel * Kernel::kPanel, width = layout.width(panel);
    const Index skip = panel > home ? 0 : (i - first) / Kernel::kPanelUnit * Kernel::kPanelUnit;
    OutBlock<typename Kernel::Sum> block = out;
    block.data += first + skip - tile.column;
    block.columns = layout.columns(panel) - skip;
    const auto* slice = layout.slice(x, panel, start);
    const Ahead next{slice + (length + (i - tile.row)) * width, width * Index{sizeof *x} * Kernel::kBlockRows /
                                                                   Kernel::kDepthBlock};
    Kernel::template run<GramRows<Kernel>::kStride>(rows.slice(), {slice + skip, width}, length, width - skip, block,
                                                    next);
  }
}

// Adds finished sums to gram (d x d), entries on and above the diagonal only.
template <class Sum> void add_upper(const Sum* sums, Index stride, const GramTile& tile, Index d, double* gram) {
  for (Index i = tile.row; i < tile.row_end; ++i, sums += stride) {
    for (Index j = std::max(i, tile.column); j < tile.column_end; ++j) {
      gram[i * d + j] += static_cast<double>(sums[j - tile.column]);
    }
  }
}

template <class Kernel>
void add_gram_tile(const typename Kernel::Operand* x, const PanelLayout<Kernel>& layout, Index number, double* gram,
                   Workspace& workspace) {
  using Sum = typename Kernel::Sum;
  constexpr Index side = kGramPanels<Kernel> * Kernel::kPanel, chunk = kGramChunk / Kernel::kDepth;
  static_assert(chunk % Kernel::kDepthBlock == 0, "sums move on at the end of a block");
  const GramTile tile = find_gram_tile<Kernel>(layout.n, number);
  auto* sums = static_cast<Sum*>(workspace.reserve(side * side * sizeof(Sum)));
  [[maybe_unused]] const typename Kernel::Session session{};
  const Index depth = layout.depth();
  for (Index start = 0; start < depth; start += Kernel::kDepthBlock) {
    const Index length = std::min(Kernel::kDepthBlock, depth - start), end = start + length;
    for (Index i = tile.row; i < tile.row_end; i += Kernel::kBlockRows) {
      const Index rows = std::min(Kernel::kBlockRows, tile.row_end - i);
      gram_rows<Kernel>(x, layout, tile, i, start, length,
                        {sums + (i - tile.row) * side, side, rows, 0, start % chunk > 0});
    }
    if (end % chunk == 0 || end == depth) add_upper(sums, side, tile, layout.n, gram);
  }
}

}  // namespace awp
