// Dense products of the native core: one thread's share of a row-tiled product, and of a Gram matrix.
//
// Nothing here starts a thread. The caller cuts the output into fixed tiles and hands each to a thread with its own
// Workspace. The order in which the terms of an output element are added depends on the inner dimension alone, so its
// bits depend neither on the tile it was computed in nor on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace awp {

using Index = std::ptrdiff_t;

// Element type of products that take float32, round it to bfloat16 (nearest, ties to even) and add up in float32.
// Instruction sets without bfloat16 products round to the same operands and multiply them in float32.
struct bfloat16 {
  std::uint16_t bits;
};

// Type of the factors outside the product: T itself, float32 for bfloat16.
template <class T> struct ExternalType { using type = T; };
template <> struct ExternalType<bfloat16> { using type = float; };
template <class T> using External = typename ExternalType<T>::type;

// Type of the product: that of the factors, int32 for products of std::int8_t. Those are exact where the left factor
// stays within +-kLeftLimit, the right one within +-kRightLimit and the inner dimension below 2^18: together these
// limits let x86 add up four products in 16 bits.
template <class T> struct ResultType { using type = External<T>; };
template <> struct ResultType<std::int8_t> { using type = std::int32_t; };
template <class T> using Result = typename ResultType<T>::type;
constexpr int kLeftLimit = 31, kRightLimit = 127;

// Uninitialised memory, aligned for vector loads and freed with the object; movable, not copyable. Throws
// std::bad_alloc.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t bytes);
  void* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  std::unique_ptr<void, Free> data_;
};

// Scratch memory of one thread. It grows to the largest request and is kept for the next call.
class Workspace {
 public:
  // At least `bytes` bytes, valid until the next call.
  void* reserve(std::size_t bytes) {
    if (bytes > size_) buffer_ = AlignedBuffer(bytes), size_ = bytes;
    return buffer_.get();
  }

 private:
  AlignedBuffer buffer_;
  std::size_t size_ = 0;
};

// A (k x n) matrix stored as column panels in the order the kernels read it: pack once, multiply often.
// T is float, double, bfloat16 or std::int8_t; k and n are at least 1.
template <class T> class PackedMatrix {
 public:
  PackedMatrix() = default;
  // Packs b (k x n, row-major, `ldb` elements from one row to the next).
  PackedMatrix(const External<T>* b, Index k, Index n, Index ldb) : PackedMatrix(k, n) { pack(b, ldb, 0, panels()); }
  // Allocates only: pack() has to cover [0, panels()) before use.
  PackedMatrix(Index k, Index n);

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index panels() const;
  // Fills the panels [first, last) from b; calls on disjoint ranges may run in parallel.
  void pack(const External<T>* b, Index ldb, Index first, Index last);
  // Panel data in the layout of this instruction set (core/gemm_nest.hpp).
  const void* data() const { return storage_.get(); }

 private:
  Index rows_ = 0;
  Index cols_ = 0;
  AlignedBuffer storage_;
};

using PackedMatrixBf16 = PackedMatrix<bfloat16>;
using PackedIntegers = PackedMatrix<std::int8_t>;

// out (m x n) = a (m x k) b, both row-major with row strides lda and ldo, overlapping neither each other nor b.
// Fastest for row tiles of 96 rows and more, in multiples of 32.
template <class T>
void multiply(const External<T>* a, Index m, Index lda, const PackedMatrix<T>& b, Result<T>* out, Index ldo,
              Workspace& workspace);

// Number of tiles that cover the upper triangle of a (d x d) Gram matrix.
template <class T> Index gram_tiles(Index d);

// Adds tile number `tile` of x^T x to the upper triangle of gram (d x d, row-major, stride d), for x (n x d).
// Up to kGramChunk rows of x are added up in float32 (double for T = double) before they go into the double sum.
// Only entries (i, j) with i <= j are touched, by exactly one tile each: tiles may run in parallel.
template <class T> void gram_tile(const PackedMatrix<T>& x, Index tile, double* gram, Workspace& workspace);
constexpr Index kGramChunk = 3072;

// Asks the operating system for the AMX tile registers, once per process before the first bfloat16 product.
// Returns false if it refuses; true in builds that need no permission.
bool amx_request_permission();

}  // namespace awp
