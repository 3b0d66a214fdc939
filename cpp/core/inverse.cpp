#include "awp/inverse.hpp"

#include <algorithm>
#include <vector>

#include "awp/cholesky.hpp"
#include "awp/gemm.hpp"
#include "awp/parallel.hpp"

namespace awp {

namespace {

constexpr std::size_t kTile = 96;

template <class T> class Inversion {
 public:
  Inversion(View<T> a, std::size_t threads)
      : a_(a), n_(a.rows), inverse_(n_ * n_), pool_(threads), scratch_(pool_.threads()) {}

  void run() {
    for (std::size_t tile = 0; tile < tiles(); ++tile) factor(tile);
    pool_.parallel_for(tiles(), [&](std::size_t tile, std::size_t thread) { invert_columns(tile, scratch_[thread]); });
    pool_.parallel_for(tiles(), [&](std::size_t tile, std::size_t thread) { multiply_rows(tile, scratch_[thread]); });
  }

 private:
  struct Scratch {
    std::vector<T> left, out;
    Workspace workspace;
  };

  std::size_t tiles() const { return (n_ + kTile - 1) / kTile; }
  std::size_t width(std::size_t tile) const { return std::min(kTile, n_ - tile * kTile); }

  // Columns of the factor L that belong to a tile, and the inverse of their diagonal block.
  void factor(std::size_t tile) {
    const std::size_t first = tile * kTile, w = width(tile);
    const PackedMatrix<T> above = transposed(a_.row(first), w, n_, first);
    take(first, w, above, first, w, scratch_[0]);
    diagonal_.resize(w * w);
    for (std::size_t r = 0; r < w; ++r) std::copy_n(a_.row(first + r) + first, w, &diagonal_[r * w]);
    cholesky<T>(diagonal_.data(), w);
    for (std::size_t r = 0; r < w; ++r)
      for (std::size_t c = 0; c <= r; ++c) a_.row(first + r)[first + c] = diagonal_[c * w + r];
    substitute(w, inverse(first, first));
    const PackedMatrix<T> solver = transposed(inverse(first, first), w, n_, w);
    pool_.parallel_for(tiles() - tile - 1, [&](std::size_t below, std::size_t thread) {
      const std::size_t start = first + kTile * (below + 1), count = std::min(kTile, n_ - start);
      Scratch& s = scratch_[thread];
      take(start, count, above, first, w, s);
      product(a_.row(start) + first, count, n_, solver, room(s.out, count * w), w, s);
      for (std::size_t r = 0; r < count; ++r) std::copy_n(&s.out[r * w], w, a_.row(start + r) + first);
    });
  }

  // Subtracts from rows of the columns [first, first + w) what finished columns contribute to them.
  void take(std::size_t start, std::size_t count, const PackedMatrix<T>& above, std::size_t first, std::size_t w,
            Scratch& s) {
    if (first == 0) return;
    product(a_.row(start), count, n_, above, room(s.out, count * w), w, s);
    for (std::size_t r = 0; r < count; ++r) {
      T* row = a_.row(start + r) + first;
      for (std::size_t c = 0; c < w; ++c) row[c] -= s.out[r * w + c];
    }
  }

  // The inverse of the factored diagonal block, by substitution.
  void substitute(std::size_t w, T* out) const {
    for (std::size_t r = 0; r < w; ++r) {
      const T* factor = &diagonal_[r];  // row r of L, w apart
      T* row = out + r * n_;
      row[r] = 1;
      for (std::size_t s = 0; s < r; ++s) {
        const T share = factor[s * w];
        const T* above = out + s * n_;
#pragma omp simd
        for (std::size_t j = 0; j <= s; ++j) row[j] -= share * above[j];
      }
      const T scale = 1 / factor[r * w];
      for (std::size_t j = 0; j <= r; ++j) row[j] *= scale;
    }
  }

  // A tile's columns of L^-1, from the diagonal block down.
  void invert_columns(std::size_t tile, Scratch& s) {
    const std::size_t first = tile * kTile, w = width(tile);
    for (std::size_t start = first + w; start < n_; start += kTile) {
      const std::size_t count = std::min(kTile, n_ - start);
      T* taken = room(s.out, kTile * w);
      product(a_.row(start) + first, count, n_, packed(inverse(first, first), start - first, w, n_), taken, w, s);
      for (std::size_t i = 0; i < count * w; ++i) taken[i] = -taken[i];
      product(inverse(start, start), count, n_, packed(taken, count, w, w), inverse(start, first), n_, s);
    }
  }

  // A tile's rows of L^-T L^-1 up to the diagonal, and the columns that mirror them. Rows of L^-1 above the tile have
  // nothing for it.
  void multiply_rows(std::size_t tile, Scratch& s) {
    const std::size_t first = tile * kTile, w = width(tile), inner = n_ - first;
    T* left = room(s.left, w * inner);
    for (std::size_t k = 0; k < inner; ++k)
      for (std::size_t r = 0; r < w; ++r) left[r * inner + k] = inverse(first + k, first)[r];
    product(left, w, inner, packed(inverse(first, 0), inner, first + w, n_), a_.row(first), n_, s);
    for (std::size_t j = 0; j < first + w; ++j)
      for (std::size_t i = std::max(first, j); i < first + w; ++i) a_.row(j)[i] = a_.row(i)[j];
  }

  T* inverse(std::size_t row, std::size_t column) { return &inverse_[row * n_ + column]; }

  static T* room(std::vector<T>& buffer, std::size_t size) {
    if (buffer.size() < size) buffer.resize(size);
    return buffer.data();
  }

  static PackedMatrix<T> packed(const T* b, std::size_t rows, std::size_t cols, std::size_t stride) {
    return {b, static_cast<Index>(rows), static_cast<Index>(cols), static_cast<Index>(stride)};
  }

  // rows (count x inner) as the right operand (inner x count).
  PackedMatrix<T> transposed(const T* rows, std::size_t count, std::size_t stride, std::size_t inner) {
    if (inner == 0) return {};
    T* turned = room(turned_, inner * count);
    for (std::size_t r = 0; r < count; ++r)
      for (std::size_t k = 0; k < inner; ++k) turned[k * count + r] = rows[r * stride + k];
    return packed(turned, inner, count, count);
  }

  static void product(const T* a, std::size_t rows, std::size_t stride, const PackedMatrix<T>& b, T* out,
                      std::size_t out_stride, Scratch& s) {
    multiply<T>(a, static_cast<Index>(rows), static_cast<Index>(stride), b, out, static_cast<Index>(out_stride),
                s.workspace);
  }

  View<T> a_;
  std::size_t n_;
  std::vector<T> inverse_;  // of L, zeros above the diagonal
  ThreadPool pool_;
  std::vector<Scratch> scratch_;
  std::vector<T> diagonal_, turned_;
};

}  // namespace

template <class T> void invert(View<T> a, std::size_t threads) {
  Inversion<T>(a, threads).run();
}

template void invert(View<float>, std::size_t);
template void invert(View<double>, std::size_t);

}  // namespace awp
