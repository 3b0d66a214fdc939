#include "awp/inverse.hpp"

#include <algorithm>
#include <vector>

#include "awp/cholesky.hpp"
#include "awp/gemm.hpp"
#include "awp/parallel.hpp"

namespace awp {

namespace {

constexpr std::size_t kTile = 96;
constexpr std::size_t kWidest = 4 * kTile;  // columns of the inverse that a task computes at most

// All in place, tile by tile: what stands above the diagonal does not matter until the inverse is mirrored there.
template <class T> class Inversion {
 public:
  Inversion(View<T> a, std::size_t threads, const Checkpoint& checkpoint)
      : a_(a), n_(a.rows), pool_(threads, checkpoint), scratch_(pool_.threads()) {}

  void run() {
    for (std::size_t tile = 0; tile < tiles(); ++tile) factor(tile);
    for (std::size_t tile = tiles(); tile-- > 0;) invert_columns(tile);
    for (std::size_t tile = 0; tile < tiles(); ++tile) multiply_rows(tile);
  }

 private:
  struct Scratch {
    std::vector<T> out;
    Workspace workspace;
  };

  std::size_t tiles() const { return (n_ + kTile - 1) / kTile; }
  std::size_t width(std::size_t tile) const { return std::min(kTile, n_ - tile * kTile); }

  // Columns of the factor L that belong to a tile, but for the diagonal block: of that the inverse, zeros above it.
  void factor(std::size_t tile) {
    const std::size_t first = tile * kTile, w = width(tile);
    const PackedMatrix<T> above = transposed(a_.row(first), w, first);
    take(first, w, above, first, w, scratch_[0]);
    diagonal_.resize(w * w);
    for (std::size_t r = 0; r < w; ++r) std::copy_n(a_.row(first + r) + first, w, &diagonal_[r * w]);
    cholesky<T>(diagonal_.data(), w);
    substitute(w, a_.row(first) + first);
    const PackedMatrix<T> solver = transposed(a_.row(first) + first, w, w);
    for_tiles_below(tile, [&](std::size_t start, std::size_t count, Scratch& s) {
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
      std::fill_n(row, w, T(0));
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

  // A tile's columns of L^-1 from those of L, where the columns after them hold L^-1 already: what is below the
  // diagonal block becomes -(L^-1 there) (L below the block) (the block's inverse).
  void invert_columns(std::size_t tile) {
    const std::size_t first = tile * kTile, w = width(tile), begin = first + w;
    if (begin == n_) return;
    T* panel = room(panel_, (n_ - begin) * w);
    const PackedMatrix<T> corner = packed(a_.row(first) + first, w, w, n_);
    for_tiles_below(tile, [&](std::size_t start, std::size_t count, Scratch& s) {
      product(a_.row(start) + first, count, n_, corner, panel + (start - begin) * w, w, s);
    });
    for_tiles_below(tile, [&](std::size_t start, std::size_t count, Scratch& s) {
      const PackedMatrix<T> reached = packed(panel, start + count - begin, w, w);
      product(a_.row(start) + begin, count, n_, reached, room(s.out, count * w), w, s);
      for (std::size_t r = 0; r < count; ++r)
        for (std::size_t c = 0; c < w; ++c) a_.row(start + r)[first + c] = -s.out[r * w + c];
    });
  }

  // A tile's rows of L^-T L^-1 up to the diagonal, and the columns that mirror them. They need L^-1 from these rows on,
  // and no other tile's need these.
  void multiply_rows(std::size_t tile) {
    const std::size_t first = tile * kTile, w = width(tile), inner = n_ - first, columns = first + w;
    T* left = room(panel_, w * inner);
    for (std::size_t k = 0; k < inner; ++k)
      for (std::size_t r = 0; r < w; ++r) left[r * inner + k] = a_.row(first + k)[first + r];
    const std::size_t share = (columns / pool_.threads() + kTile - 1) / kTile * kTile;
    const std::size_t widest = std::clamp(share, kTile, kWidest);
    pool_.parallel_for((columns + widest - 1) / widest, [&](std::size_t part, std::size_t thread) {
      const std::size_t start = part * widest, count = std::min(widest, columns - start);
      product(left, w, inner, packed(a_.row(first) + start, inner, count, n_), a_.row(first) + start, n_,
              scratch_[thread]);
      for (std::size_t j = start; j < start + count; ++j)
        for (std::size_t i = std::max(first, j); i < columns; ++i) a_.row(j)[i] = a_.row(i)[j];
    });
  }

  // Calls f(start, count, scratch) for the tiles of rows below a tile, those at the bottom, which may have more to do,
  // first.
  template <class F> void for_tiles_below(std::size_t tile, const F& f) {
    const std::size_t below = tiles() - tile - 1;
    pool_.parallel_for(below, [&](std::size_t i, std::size_t thread) {
      const std::size_t start = (tile + below - i) * kTile;
      f(start, std::min(kTile, n_ - start), scratch_[thread]);
    });
  }

  static T* room(std::vector<T>& buffer, std::size_t size) {
    if (buffer.size() < size) buffer.resize(size);
    return buffer.data();
  }

  static PackedMatrix<T> packed(const T* b, std::size_t rows, std::size_t cols, std::size_t stride) {
    return {b, static_cast<Index>(rows), static_cast<Index>(cols), static_cast<Index>(stride)};
  }

  // Rows of a (count x inner) as the right operand (inner x count).
  PackedMatrix<T> transposed(const T* rows, std::size_t count, std::size_t inner) {
    if (inner == 0) return {};
    T* turned = room(turned_, inner * count);
    for (std::size_t r = 0; r < count; ++r)
      for (std::size_t k = 0; k < inner; ++k) turned[k * count + r] = rows[r * n_ + k];
    return packed(turned, inner, count, count);
  }

  static void product(const T* a, std::size_t rows, std::size_t stride, const PackedMatrix<T>& b, T* out,
                      std::size_t out_stride, Scratch& s) {
    multiply<T>(a, static_cast<Index>(rows), static_cast<Index>(stride), b, out, static_cast<Index>(out_stride),
                s.workspace);
  }

  View<T> a_;
  std::size_t n_;
  ThreadPool pool_;
  std::vector<Scratch> scratch_;
  std::vector<T> diagonal_, turned_, panel_;
};

}  // namespace

template <class T> void invert(View<T> a, std::size_t threads, const Checkpoint& checkpoint) {
  Inversion<T>(a, threads, checkpoint).run();
}

template void invert(View<float>, std::size_t, const Checkpoint&);
template void invert(View<double>, std::size_t, const Checkpoint&);

}  // namespace awp
