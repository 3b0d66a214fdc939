// Thin bindings of awp/quantize.hpp. Shapes are checked by awp_edge/native.py.
#include "arrays.hpp"
#include "awp/quantize.hpp"
#include "bindings.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace awp;

namespace {

using Columns = nb::ndarray<const std::int64_t, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Order order_of(const Columns& columns) { return {columns.data(), columns.data() + columns.shape(0)}; }

Mask mask_of(const std::optional<In<bool>>& mask) {
  if (!mask) return {};
  // Views are of what may be written; a mask is only read.
  auto* data = const_cast<std::uint8_t*>(reinterpret_cast<const std::uint8_t*>(mask->data()));
  return {data, mask->shape(0), mask->shape(1)};
}

template <class T> void bind(nb::module_& m) {
  m.def("cheapest_range", [](In<T> weight, In<T> importance, const GridArrays<T>& candidates, Out<std::int32_t> index,
                             std::size_t threads) {
    const nb::gil_scoped_release unlocked;
    cheapest_range<T>(view(weight), view(importance), grid_of<T>(candidates), view(index), threads, check_signals);
  }, nb::arg("weight").noconvert(), nb::arg("importance").noconvert(), "candidates"_a, nb::arg("index").noconvert(),
  "threads"_a, "Write the number of every group's cheapest candidate.");

  m.def("factor", [](In<T> gram, const Columns& order, Out<T> upper, std::size_t threads) {
    const nb::gil_scoped_release unlocked;
    factor<T>(view(gram), order_of(order), view(upper), threads, check_signals);
  }, nb::arg("gram").noconvert(), "order"_a, nb::arg("upper").noconvert(), "threads"_a,
  "Write U with C[o, o] = U U^T.");

  m.def("nearest_plane", [](In<T> target, In<T> upper, const Columns& order, const GridArrays<T>& grid, Out<T> theta,
                            std::size_t threads) {
    const nb::gil_scoped_release unlocked;
    nearest_plane<T>(view(target), view(upper), order_of(order), grid_of<T>(grid), view(theta), threads, check_signals);
  }, nb::arg("target").noconvert(), nb::arg("upper").noconvert(), "order"_a, "grid"_a, nb::arg("theta").noconvert(),
  "threads"_a, "Write the target rounded column by column.");

  m.def("masked_nearest_plane", [](In<T> weight, In<T> gram, In<T> start, const In<bool>& mask, const Columns& order,
                                   const GridArrays<T>& grid, Out<T> theta, std::size_t threads) {
    const nb::gil_scoped_release unlocked;
    masked_nearest_plane<T>({view(weight), view(gram)}, view(start), mask_of(mask), order_of(order), grid_of<T>(grid),
                            view(theta), threads, check_signals);
  }, nb::arg("weight").noconvert(), nb::arg("gram").noconvert(), nb::arg("start").noconvert(),
  nb::arg("mask").noconvert(), "order"_a, "grid"_a, nb::arg("theta").noconvert(), "threads"_a,
  "Write the rows refitted on the mask and rounded there.");

  m.def("descend", [](In<T> weight, In<T> gram, Out<T> theta, Out<T> scales, const GridArrays<T>& grid,
                      const std::optional<In<bool>>& mask, std::size_t passes, bool rescale, bool half_scales,
                      std::size_t threads) {
    const nb::gil_scoped_release unlocked;
    const DescentOptions options{passes, rescale, half_scales, threads, check_signals};
    descend<T>({view(weight), view(gram)}, view(theta), view(scales), grid_of<T>(grid), mask_of(mask), options);
  }, nb::arg("weight").noconvert(), nb::arg("gram").noconvert(), nb::arg("theta").noconvert(),
  nb::arg("scales").noconvert(), "grid"_a, nb::arg("mask").none(), nb::kw_only(), "passes"_a, "rescale"_a,
  "half_scales"_a, "threads"_a, "Lower f by one code and one scale at a time, in place.");
}

}  // namespace

void awp::bind_grids(nb::module_& m) {
  bind<float>(m);
  bind<double>(m);
}
