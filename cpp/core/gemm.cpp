// Instantiates the products of awp/gemm.hpp for the kernels of the compiled instruction set.
#include "awp/gemm.hpp"

#include <new>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "amx.hpp"
#include "gemm_integers.hpp"
#include "gram_nest.hpp"

namespace awp {
namespace {

template <class T> struct KernelOf { using type = VectorKernel<PlainOperand<T>>; };
#if defined(__AMX_BF16__)
template <> struct KernelOf<bfloat16> { using type = TileKernel<AmxUnit>; };
#elif defined(__AVX512BF16__)
template <> struct KernelOf<bfloat16> { using type = VectorKernel<PairOperand>; };
#else
template <> struct KernelOf<bfloat16> { using type = VectorKernel<RoundedOperand>; };
#endif

#if defined(__AMX_INT8__)
template <> struct KernelOf<std::int8_t> { using type = TileKernel<AmxUnit, TileQuads>; };
#else
template <> struct KernelOf<std::int8_t> { using type = IntegerKernel; };
#endif

template <class T> using Kernel = typename KernelOf<T>::type;
template <class T> using Operand = typename Kernel<T>::Operand;

template <class T> PanelLayout<Kernel<T>> layout_of(const PackedMatrix<T>& b) { return {b.rows(), b.cols()}; }

template <class T> constexpr bool kShifted = false;
template <> constexpr bool kShifted<std::int8_t> = Kernel<std::int8_t>::kShift != 0;

// What the shift of A adds to every column of a product, behind the panels.
template <class T> std::int32_t* shift_shares(const PackedMatrix<T>& b, void* storage) {
  return reinterpret_cast<std::int32_t*>(static_cast<Operand<T>*>(storage) + layout_of(b).size());
}

template <class T> std::size_t storage_bytes(const PackedMatrix<T>& b) {
  const Index shares = kShifted<T> ? b.cols() : 0;
  return static_cast<std::size_t>(layout_of(b).size()) * sizeof(Operand<T>) +
         static_cast<std::size_t>(shares) * sizeof(std::int32_t);
}

}  // namespace

// Large buffers lie on huge pages where the system has them: a product walks through too many small ones. Clearing one
// does not pay for buffers that live for a single small product.
AlignedBuffer::AlignedBuffer(std::size_t bytes) {
  constexpr std::size_t line = 64, huge_page = std::size_t{2} << 20, large = 4 * huge_page;
  const std::size_t alignment = bytes < large ? line : huge_page;
  const std::size_t size = (bytes + alignment - 1) / alignment * alignment;
  data_.reset(std::aligned_alloc(alignment, size));
  if (!data_) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == huge_page) madvise(data_.get(), size, MADV_HUGEPAGE);
#endif
}

template <class T>
PackedMatrix<T>::PackedMatrix(Index k, Index n) : rows_(k), cols_(n), storage_(storage_bytes(*this)) {}

template <class T> Index PackedMatrix<T>::panels() const { return layout_of(*this).panels(); }

template <class T> void PackedMatrix<T>::pack(const External<T>* b, Index ldb, Index first, Index last) {
  const auto layout = layout_of(*this);
  auto* operands = static_cast<Operand<T>*>(storage_.get());
  for (Index panel = first; panel < last; ++panel) {
    pack_panel<Kernel<T>>(b, ldb, layout, panel, operands + layout.offset(panel));
    if constexpr (kShifted<T>) {
      const Index column = panel * Kernel<T>::kPanel, columns = layout.columns(panel);
      std::int32_t* shares = shift_shares(*this, storage_.get()) + column;
      std::fill_n(shares, columns, 0);
      for (Index row = 0; row < rows_; ++row) {
        for (Index j = 0; j < columns; ++j) shares[j] += Kernel<T>::kShift * b[row * ldb + column + j];
      }
    }
  }
}

template <class T>
void multiply(const External<T>* a, Index m, Index lda, const PackedMatrix<T>& b, Result<T>* out, Index ldo,
              Workspace& workspace) {
  const auto* operands = static_cast<const Operand<T>*>(b.data());
  multiply_rows<Kernel<T>>(a, m, lda, operands, layout_of(b), out, ldo, workspace);
  if constexpr (kShifted<T>) {
    const std::int32_t* shares = shift_shares(b, const_cast<void*>(b.data()));
    for (Index row = 0; row < m; ++row, out += ldo) {
      for (Index j = 0; j < b.cols(); ++j) out[j] -= shares[j];
    }
  }
}

template <class T> Index gram_tiles(Index d) {
  const Index sides = gram_sides<Kernel<T>>(d);
  return sides * (sides + 1) / 2;
}

template <class T> void gram_tile(const PackedMatrix<T>& x, Index tile, double* gram, Workspace& workspace) {
  add_gram_tile<Kernel<T>>(static_cast<const Operand<T>*>(x.data()), layout_of(x), tile, gram, workspace);
}

bool amx_request_permission() {
#if defined(__AMX_BF16__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return true;
#endif
}

#define AWP_INSTANTIATE_PRODUCT(T)                                                                       \
  template class PackedMatrix<T>;                                                                        \
  template void multiply<T>(const External<T>*, Index, Index, const PackedMatrix<T>&, Result<T>*, Index, \
                            Workspace&);
#define AWP_INSTANTIATE(T)             \
  AWP_INSTANTIATE_PRODUCT(T)           \
  template Index gram_tiles<T>(Index); \
  template void gram_tile<T>(const PackedMatrix<T>&, Index, double*, Workspace&);
AWP_INSTANTIATE(float)
AWP_INSTANTIATE(double)
AWP_INSTANTIATE(bfloat16)
AWP_INSTANTIATE_PRODUCT(std::int8_t)
#undef AWP_INSTANTIATE
#undef AWP_INSTANTIATE_PRODUCT

}  // namespace awp
