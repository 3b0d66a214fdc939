// Micro-kernels: a small block of the output held in SIMD registers while the inner dimension runs by.
#pragma once

#include "gemm_operands.hpp"

namespace awp {

// Where a micro-kernel writes: rows x columns at data, added to what is there or not.
template <class Sum> struct OutBlock {
  Sum* data;
  Index stride;
  Index rows;
  Index columns;
  bool accumulate;
};

// Memory a kernel prefetches into L2 on the way, `step` bytes per operand of its inner dimension: the next slice of B
// comes from memory or a shared cache, and the hardware does not look across its end.
struct Ahead {
  const void* data;
  Index step;
};
inline void prefetch(const Ahead& ahead, Index k) {
  __builtin_prefetch(static_cast<const char*>(ahead.data) + k * ahead.step, 0, 2);
}

// One factor as a kernel reads it: `stride` operands from one step along the inner dimension to the next.
template <class Operand> struct Slice {
  const Operand* data;
  Index stride;
};

// Shape of the block for the register file: kRows x kVectors sums, kVectors of B and one broadcast of A must fit.
#if defined(__AVX512F__)
constexpr int kRows = 8, kVectors = 3;  // 32 registers: 24 + 3 + 1; 11 loads feed 24 products
#elif defined(__AVX2__)
constexpr int kRows = 4, kVectors = 3;  // 16 registers: 12 + 3 + 1
#elif defined(__ARM_NEON)
constexpr int kRows = 4, kVectors = 6;  // 32 registers: 24 + 6 + 1
#else
constexpr int kRows = 4, kVectors = 2;  // 16 registers, one of them for the product that is not yet added
#endif

// Adds the sums of one row to the output; the last vector may be partial.
template <int Vectors, class Sum>
inline void store_row(const simd::Vector<Sum>* sums, Sum* to, Index columns, bool accumulate) {
  constexpr int lanes = simd::kLanes<Sum>;
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v, to += lanes, columns -= lanes) {
    if (columns >= lanes) {
      simd::store(to, accumulate ? simd::load(to) + sums[v] : sums[v]);
    } else if (columns > 0) {
      simd::store(to, accumulate ? simd::load(to, columns) + sums[v] : sums[v], columns);
    }
  }
}

// Kernel for operands that are multiplied in SIMD registers.
template <class Arithmetic> struct VectorKernel : Arithmetic {
  using typename Arithmetic::Operand;
  using typename Arithmetic::Sum;
  static constexpr Index kLanes = simd::kLanes<Sum>;
  static constexpr Index kBlockRows = kRows;             // rows of A per call
  static constexpr Index kPanel = kVectors * kLanes;     // columns of B per call
  static constexpr Index kPanelUnit = kLanes;            // the last panel is padded to this
  // Operands of the inner dimension per call. A slice of B (384 x 48 floats, 72 KB) streams from the L2 cache at 16
  // bytes per cycle while one of A (8 x 384 floats, 12 KB) stays in L1; the output is touched once per 384 products.
  static constexpr Index kDepthBlock = 384;
  static constexpr Index kDepthUnit = 1;                 // operands along the inner dimension are padded to this
  static constexpr bool kReadsPackedColumns = true;      // A may also be a slice of a packed panel (Gram)

  struct Session {};  // per-thread set-up of the unit: none

  // out += A B over `depth` operands and `width` columns, a multiple of kPanelUnit.
  // RowStride: distance in A from one row to the next.
  template <Index RowStride>
  static void run(Slice<Operand> a, Slice<Operand> b, Index depth, Index width, const OutBlock<Sum>& out,
                  const Ahead& ahead) {
    run_widest<kVectors, RowStride>(a, b, depth, width, out, ahead);
  }

 private:
  template <int Vectors, Index RowStride>
  static void run_widest(Slice<Operand> a, Slice<Operand> b, Index depth, Index width, const OutBlock<Sum>& out,
                         const Ahead& ahead) {
    if constexpr (Vectors > 1) {
      if (width < Vectors * kLanes) return run_widest<Vectors - 1, RowStride>(a, b, depth, width, out, ahead);
    }
    run_vectors<Vectors, RowStride>(a, b, depth, out, ahead);
  }

  template <int Vectors, Index RowStride>
  static void run_vectors(Slice<Operand> a, Slice<Operand> b, Index depth, const OutBlock<Sum>& out,
                          const Ahead& ahead) {
    simd::Vector<Sum> sums[kRows][Vectors] = {};
    for (Index k = 0; k < depth; ++k, a.data += a.stride, b.data += b.stride) {
      prefetch(ahead, k);
      decltype(Arithmetic::load(b.data)) right[Vectors];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) right[v] = Arithmetic::load(b.data + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const auto left = Arithmetic::broadcast(a.data[r * RowStride]);
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) Arithmetic::multiply_add(left, right[v], sums[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      if (r < out.rows) store_row<Vectors, Sum>(sums[r], out.data + r * out.stride, out.columns, out.accumulate);
    }
  }
};

}  // namespace awp
