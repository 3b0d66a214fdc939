// Instantiates the products of awp/gemm.hpp for the kernels of the compiled instruction set.
#include "awp/gemm.hpp"

#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "amx.hpp"
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

template <class T> using Kernel = typename KernelOf<T>::type;
template <class T> using Operand = typename Kernel<T>::Operand;

template <class T> PanelLayout<Kernel<T>> layout_of(const PackedMatrix<T>& b) { return {b.rows(), b.cols()}; }

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
PackedMatrix<T>::PackedMatrix(Index k, Index n)
    : rows_(k), cols_(n), storage_(static_cast<std::size_t>(layout_of(*this).size()) * sizeof(Operand<T>)) {}

template <class T> Index PackedMatrix<T>::panels() const { return layout_of(*this).panels(); }

template <class T> void PackedMatrix<T>::pack(const External<T>* b, Index ldb, Index first, Index last) {
  const auto layout = layout_of(*this);
  auto* operands = static_cast<Operand<T>*>(storage_.get());
  for (Index panel = first; panel < last; ++panel) {
    pack_panel<Kernel<T>>(b, ldb, layout, panel, operands + layout.offset(panel));
  }
}

template <class T>
void multiply(const External<T>* a, Index m, Index lda, const PackedMatrix<T>& b, External<T>* out, Index ldo,
              Workspace& workspace) {
  const auto* operands = static_cast<const Operand<T>*>(b.data());
  multiply_rows<Kernel<T>>(a, m, lda, operands, layout_of(b), out, ldo, workspace);
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

#define AWP_INSTANTIATE(T)                                                                               \
  template class PackedMatrix<T>;                                                                        \
  template void multiply<T>(const External<T>*, Index, Index, const PackedMatrix<T>&, External<T>*, Index, \
                            Workspace&);                                                                 \
  template Index gram_tiles<T>(Index);                                                                   \
  template void gram_tile<T>(const PackedMatrix<T>&, Index, double*, Workspace&);
AWP_INSTANTIATE(float)
AWP_INSTANTIATE(double)
AWP_INSTANTIATE(bfloat16)
#undef AWP_INSTANTIATE

}  // namespace awp
