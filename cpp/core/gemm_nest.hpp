// The loops around a micro-kernel: packing, blocking, and the tiles of a Gram matrix.
//
// B (k x n) is stored as panels of Kernel::kPanel columns, panel after panel. A panel holds `depth` rows of operands,
// each `width` operands long: contiguous in exactly the order a kernel reads it. Missing rows and columns are zero.
#pragma once

#include "gemm_kernels.hpp"

namespace awp {

// Distance between rows of packed A: not a multiple of 4 KB or of a power-of-two number of cache lines, so that the
// rows a kernel reads together fall into different cache sets (rows of 4096 floats would not).
template <class Kernel> constexpr Index kRowStride = Kernel::kDepthBlock + 16;
// Panels multiplied before the next slice of A: their part of the output (192 rows x 480 floats) stays in L2.
constexpr Index kPanelGroup = 10;
constexpr Index kRowsAhead = 16;  // rows of B that packing prefetches

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
constexpr Index round_up(Index a, Index b) { return ceil_div(a, b) * b; }

// Geometry of a packed (k x n) matrix.
template <class Kernel> struct PanelLayout {
  Index k, n;
  Index depth() const { return round_up(ceil_div(k, Kernel::kDepth), Kernel::kDepthUnit); }
  Index panels() const { return ceil_div(n, Kernel::kPanel); }
  Index columns(Index panel) const { return std::min(Kernel::kPanel, n - panel * Kernel::kPanel); }
  Index width(Index panel) const { return round_up(columns(panel), Kernel::kPanelUnit); }
  Index offset(Index panel) const { return panel * Kernel::kPanel * depth(); }
  template <class Operand> Operand* slice(Operand* packed, Index panel, Index start) const {
    return packed + offset(panel) + start * width(panel);
  }
  // Operands in all, with room for a kernel that reads kBlockRows operands at the end of the last row (Gram).
  Index size() const {
    return offset(panels() - 1) + width(panels() - 1) * depth() + Kernel::kBlockRows;
  }
};

// Asks for `count` elements that will be read soon: rows may lie a page apart, too far for the hardware to see.
template <class T> void prefetch_row(const T* row, Index count) {
  for (Index j = 0; j < count; j += 64 / Index{sizeof(T)}) __builtin_prefetch(row + j);
}

template <class Kernel>
void pack_panel(const typename Kernel::Source* b, Index ldb, const PanelLayout<Kernel>& layout, Index panel,
                typename Kernel::Operand* out) {
  const Index columns = layout.columns(panel), width = layout.width(panel);
  b += panel * Kernel::kPanel;
  for (Index row = 0; row < layout.k; row += Kernel::kDepth, out += width) {
    prefetch_row(b + std::min(row + kRowsAhead, layout.k - 1) * ldb, columns);
    Kernel::from_columns(b + row * ldb, ldb, layout.k - row, columns, out);
    std::fill(out + columns, out + width, typename Kernel::Operand{});
  }
  std::fill_n(out, (layout.depth() - ceil_div(layout.k, Kernel::kDepth)) * width, typename Kernel::Operand{});
}

// Packed A: for each block of kDepthBlock operands all rows, kRowStride apart, padded with zero rows to whole kernels.
template <class Kernel>
void pack_rows(const typename Kernel::Source* a, Index m, Index lda, const PanelLayout<Kernel>& layout,
               typename Kernel::Operand* out) {
  using Operand = typename Kernel::Operand;
  const Index padded_rows = round_up(m, Kernel::kBlockRows), depth = layout.depth();
  for (Index start = 0; start < depth; start += Kernel::kDepthBlock, out += padded_rows * kRowStride<Kernel>) {
    const Index length = std::min(Kernel::kDepthBlock, depth - start), first = start * Kernel::kDepth;
    const Index count = std::min(length * Kernel::kDepth, layout.k - first);
    for (Index row = 0; row < padded_rows; ++row) {
      Operand* to = out + row * kRowStride<Kernel>;
      const Index filled = row < m ? ceil_div(count, Kernel::kDepth) : 0;
      prefetch_row(a + std::min(row + 2, m - 1) * lda + first, count);
      if (row < m) Kernel::from_row(a + row * lda + first, count, to);
      std::fill(to + filled, to + length, Operand{});
    }
  }
}

// One slice of B (panel, operands from `start`) times all rows of A.
template <class Kernel>
void multiply_slice(const typename Kernel::Operand* a, Index m, Slice<typename Kernel::Operand> b, Index length,
                    Ahead ahead, OutBlock<typename Kernel::Sum> out) {
  const Index rows = Kernel::kBlockRows, width = b.stride;
  const auto* next = static_cast<const char*>(ahead.data);
  for (Index row = 0; row < m; row += rows, out.data += rows * out.stride, next += ahead.step * Kernel::kDepthBlock) {
    out.rows = std::min(rows, m - row);
    const auto* rows_of_a = a + row * kRowStride<Kernel>;
    Kernel::template run<kRowStride<Kernel>>({rows_of_a, 1}, b, length, width, out, {next, ahead.step});
  }
}

// out (m x n) = packed A times packed B.
template <class Kernel>
void multiply_packed(const typename Kernel::Operand* a, Index m, const typename Kernel::Operand* b,
                     const PanelLayout<Kernel>& layout, typename Kernel::Sum* out, Index ldo) {
  [[maybe_unused]] const typename Kernel::Session session{};
  const Index padded_rows = round_up(m, Kernel::kBlockRows), depth = layout.depth();
  // Each kernel call prefetches its share of the next slice.
  const Index share = Kernel::kPanel * Index{sizeof(*b)} * Kernel::kBlockRows / padded_rows;
  for (Index group = 0; group < layout.panels(); group += kPanelGroup) {
    const Index group_end = std::min(group + kPanelGroup, layout.panels());
    for (Index start = 0; start < depth; start += Kernel::kDepthBlock) {
      const Index length = std::min(Kernel::kDepthBlock, depth - start);
      const auto* block = a + start / Kernel::kDepthBlock * padded_rows * kRowStride<Kernel>;
      for (Index panel = group; panel < group_end; ++panel) {
        const auto* slice = layout.slice(b, panel, start);
        const auto* next = panel + 1 < group_end ? layout.slice(b, panel + 1, start)
                                                 : layout.slice(b, group, start + length);
        multiply_slice<Kernel>(block, m, {slice, layout.width(panel)}, length, {next, share},
                               {out + panel * Kernel::kPanel, ldo, 0, layout.columns(panel), start > 0});
      }
    }
  }
}

template <class Kernel>
void multiply_rows(const typename Kernel::Source* a, Index m, Index lda, const typename Kernel::Operand* b,
                   const PanelLayout<Kernel>& layout, typename Kernel::Sum* out, Index ldo, Workspace& workspace) {
  using Operand = typename Kernel::Operand;
  const Index blocks = ceil_div(layout.depth(), Kernel::kDepthBlock);
  const Index size = blocks * round_up(m, Kernel::kBlockRows) * kRowStride<Kernel>;
  auto* rows = static_cast<Operand*>(workspace.reserve(static_cast<std::size_t>(size) * sizeof(Operand)));
  pack_rows<Kernel>(a, m, lda, layout, rows);
  multiply_packed<Kernel>(rows, m, b, layout, out, ldo);
}

}  // namespace awp
