#include "awp/matmul.hpp"

#include <algorithm>
#include <vector>

namespace awp {

namespace {
constexpr std::size_t kTileRows = 192;
}

template <class P> PackedMatrix<P> pack(View<const External<P>> b, ThreadPool& pool) {
  const Index rows = static_cast<Index>(b.rows), cols = static_cast<Index>(b.cols);
  PackedMatrix<P> packed(rows, cols);
  pool.parallel_for(static_cast<std::size_t>(packed.panels()), [&](std::size_t panel, std::size_t) {
    packed.pack(b.data, cols, static_cast<Index>(panel), static_cast<Index>(panel) + 1);
  });
  return packed;
}

template <class P>
void product(View<const External<P>> a, View<const External<P>> b, View<Result<P>> out, std::size_t threads) {
  ThreadPool pool(threads);
  const PackedMatrix<P> packed = pack<P>(b, pool);
  std::vector<Workspace> workspaces(pool.threads());
  pool.parallel_for((a.rows + kTileRows - 1) / kTileRows, [&](std::size_t tile, std::size_t thread) {
    const std::size_t first = tile * kTileRows, count = std::min(kTileRows, a.rows - first);
    multiply<P>(a.row(first), static_cast<Index>(count), static_cast<Index>(a.cols), packed, out.row(first),
                static_cast<Index>(out.cols), workspaces[thread]);
  });
}

template <class P> void add_gram(View<const External<P>> x, View<double> total, std::size_t threads) {
  ThreadPool pool(threads);
  const PackedMatrix<P> packed = pack<P>(x, pool);
  std::vector<Workspace> workspaces(pool.threads());
  const std::size_t tiles = static_cast<std::size_t>(gram_tiles<P>(static_cast<Index>(x.cols)));
  pool.parallel_for(tiles, [&](std::size_t tile, std::size_t thread) {
    gram_tile<P>(packed, static_cast<Index>(tile), total.data, workspaces[thread]);
  });
}

#define AWP_INSTANTIATE_PRODUCT(P)                                     \
  template PackedMatrix<P> pack(View<const External<P>>, ThreadPool&); \
  template void product<P>(View<const External<P>>, View<const External<P>>, View<Result<P>>, std::size_t);
#define AWP_INSTANTIATE(P)   \
  AWP_INSTANTIATE_PRODUCT(P) \
  template void add_gram<P>(View<const External<P>>, View<double>, std::size_t);
AWP_INSTANTIATE(float)
AWP_INSTANTIATE(double)
AWP_INSTANTIATE(bfloat16)
AWP_INSTANTIATE_PRODUCT(std::int8_t)

}  // namespace awp
