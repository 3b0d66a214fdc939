// Thin: arrays in, arrays filled, the interpreter lock released. Shapes are checked by awp_edge/native.py.
#include "arrays.hpp"
#include "bindings.hpp"

#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <chrono>

#include "awp/admm.hpp"
#include "awp/cpu.hpp"
#include "awp/inverse.hpp"
#include "awp/low_rank.hpp"
#include "awp/matmul.hpp"
#include "awp/pgd.hpp"
#include "awp/swap.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace awp;

namespace {

Support support_of(const Descriptor& d) {
  return make_support(std::get<0>(d), std::get<1>(d), std::get<2>(d), std::get<3>(d));
}

std::vector<Support> supports_of(const std::vector<Descriptor>& descriptors) {
  std::vector<Support> supports;
  for (const Descriptor& descriptor : descriptors) supports.push_back(support_of(descriptor));
  return supports;
}

template <class T> SparseSet<T> set_of(const Descriptor& descriptor, const GridParts<T>& parts) {
  SparseSet<T> set{support_of(descriptor), std::nullopt};
  if (parts) {
    set.grid = grid_of<T>(*parts);
  }
  return set;
}

// Runs f(first row, rows, thread) on tiles of whole strips.
template <class F> void for_tiles(std::size_t rows, const Support& support, std::size_t threads, F f) {
  const nb::gil_scoped_release unlocked;
  const std::size_t tile = tile_rows(rows, support);
  ThreadPool pool(threads);
  pool.parallel_for((rows + tile - 1) / tile, [&](std::size_t t, std::size_t) {
    f(t * tile, std::min(tile, rows - t * tile));
  });
}

template <class T> void bind(nb::module_& m) {
  m.def("select", [](In<T> gain, Out<bool> mask, const Descriptor& descriptor, std::size_t threads) {
    const View<const T> from = view(gain);
    const Mask to{reinterpret_cast<std::uint8_t*>(mask.data()), from.rows, from.cols};
    const Support support = support_of(descriptor);
    for_tiles(from.rows, support, threads, [&](std::size_t first, std::size_t count) {
      select<T>(support, from.strip(first, count), to.strip(first, count), first);
    });
  }, nb::arg("gain").noconvert(), nb::arg("mask").noconvert(), "support"_a, "threads"_a,
  "Write the mask of the largest total gain.");

  m.def("encode", [](In<T> z, Out<std::uint8_t> codes, const GridParts<T>& grid, std::size_t threads) {
    const SparseSet<T> set = set_of<T>({"dense", {0}, 0, 0}, grid);
    const View<const T> from = view(z);
    const View<std::uint8_t> to = view(codes);
    for_tiles(from.rows, set.support, threads, [&](std::size_t first, std::size_t count) {
      for (std::size_t i = first; i < first + count; ++i) set.grid->encode(i, from.row(i), to.row(i));
    });
  }, nb::arg("z").noconvert(), nb::arg("codes").noconvert(), "grid"_a, "threads"_a,
  "Write the codes of the nearest grid points.");

  m.def("project", [](In<T> z, Out<T> out, const Descriptor& descriptor, const GridParts<T>& grid, std::size_t threads) {
    const SparseSet<T> set = set_of<T>(descriptor, grid);
    const View<const T> from = view(z);
    const View<T> to = view(out);
    for_tiles(from.rows, set.support, threads, [&](std::size_t first, std::size_t count) {
      ProjectScratch<T> scratch;
      project<T>(set, from.strip(first, count), to.strip(first, count), first, scratch);
    });
  }, nb::arg("z").noconvert(), nb::arg("out").noconvert(), "support"_a, "grid"_a.none(), "threads"_a,
  "Write the nearest point of support x values.");

  m.def("pgd", [](In<T> weight, In<T> gram, In<T> start, Out<T> best, const Descriptor& descriptor,
                  const GridParts<T>& grid, double step, std::size_t max_iter, double tol, double weight_norm,
                  std::size_t ramp, const std::vector<Descriptor>& relaxed, bool bfloat16_products, std::size_t threads) {
    const SparseSet<T> set = set_of<T>(descriptor, grid);
    const PgdOptions options{step, max_iter, tol, weight_norm, ramp, supports_of(relaxed), bfloat16_products, threads,
                             check_signals};
    PgdRun run;
    {
      const nb::gil_scoped_release unlocked;
      run = pgd<T>({view(weight), view(gram)}, view(start), set, options, view(best));
    }
    return std::tuple(run.found, run.objective, std::move(run.objectives), std::move(run.residuals),
                      std::string(name(run.reason)));
  }, nb::arg("weight").noconvert(), nb::arg("gram").noconvert(), nb::arg("start").noconvert(),
  nb::arg("best").noconvert(), "support"_a, "grid"_a.none(), nb::kw_only(), "step"_a, "max_iter"_a, "tol"_a,
  "weight_norm"_a, "ramp"_a, "relaxed"_a, "bfloat16"_a, "threads"_a,
  "Run projected gradient descent; return (found, objective, objectives, residuals, reason).");

  m.def("invert", [](Out<T> matrix, std::size_t threads) {
    const nb::gil_scoped_release unlocked;
    invert<T>(view(matrix), threads, check_signals);
  }, nb::arg("matrix").noconvert(), "threads"_a, "Overwrite a symmetric positive definite matrix by its inverse.");

  m.def("admm", [](In<T> weight, std::variant<In<T>, RoundedArrays<T>> matrix, Out<T> out, const Descriptor& support,
                   std::size_t steps, std::pair<double, double> relaxation, std::size_t threads) {
    const AdmmOptions options{support_of(support), steps, relaxation.first, relaxation.second, threads, check_signals};
    std::variant<View<const T>, RoundedMatrix<T>> map;
    if (const auto* parts = std::get_if<RoundedArrays<T>>(&matrix)) {
      const auto& [codes, scale, diagonal] = *parts;
      map = RoundedMatrix<T>{view(codes), scale.data(), diagonal.data()};
    } else {
      map = view(std::get<In<T>>(matrix));
    }
    const nb::gil_scoped_release unlocked;
    admm<T>(view(weight), map, options, view(out));
  }, nb::arg("weight").noconvert(), nb::arg("matrix").noconvert(), nb::arg("out").noconvert(),
  "support"_a, nb::kw_only(), "steps"_a, "relaxation"_a, "threads"_a,
  "Write the sparse end of a splitting run.");

  m.def("refit", [](In<T> weight, In<T> gram, In<bool> mask, Out<T> theta, std::size_t steps, std::size_t threads) {
    std::vector<double> objectives(weight.shape(0));
    const View<const std::uint8_t> inside{reinterpret_cast<const std::uint8_t*>(mask.data()), mask.shape(0), mask.shape(1)};
    {
      const nb::gil_scoped_release unlocked;
      refit<T>(view(weight), view(gram), inside, view(theta), objectives.data(), {steps, threads, check_signals});
    }
    return objectives;
  }, nb::arg("weight").noconvert(), nb::arg("gram").noconvert(), nb::arg("mask").noconvert(),
  nb::arg("theta").noconvert(), nb::kw_only(), "steps"_a, "threads"_a,
  "Refit theta on the mask in place; return f of every row.");

  m.def("swap", [](In<T> gram, In<T> gradient, In<bool> mask, In<std::int64_t> labels,
                   In<double> least, Out<T> theta, std::size_t candidates, std::size_t patience,
                   std::size_t threads) {
    const View<const std::uint8_t> inside{reinterpret_cast<const std::uint8_t*>(mask.data()), mask.shape(0), mask.shape(1)};
    const nb::gil_scoped_release unlocked;
    swap<T>({view(gram), view(gradient), inside, view(labels), view(least)}, view(theta),
            {candidates, patience, threads, check_signals});
  }, nb::arg("gram").noconvert(), nb::arg("gradient").noconvert(), nb::arg("mask").noconvert(),
  nb::arg("labels").noconvert(), nb::arg("least").noconvert(), nb::arg("theta").noconvert(), nb::kw_only(), "candidates"_a,
  "patience"_a, "threads"_a,
  "Overwrite theta by the weight after exact 1-swaps.");

  m.def("low_rank", [](In<T> weight, In<T> gram, Out<T> left, Out<T> right) {
    const nb::gil_scoped_release unlocked;
    low_rank<T>(view(weight), view(gram), view(left), view(right));
  }, nb::arg("weight").noconvert(), nb::arg("gram").noconvert(), nb::arg("left").noconvert(),
  nb::arg("right").noconvert(), "Write the factors of the activation-aware optimum.");

}

template <class P> void bind_product(nb::module_& m, const char* name) {
  m.def(name, [](In<External<P>> a, In<External<P>> b, Out<Result<P>> out, std::size_t threads) {
    const nb::gil_scoped_release unlocked;
    product<P>(view(a), view(b), view(out), threads);
  }, nb::arg("a").noconvert(), nb::arg("b").noconvert(), nb::arg("out").noconvert(), "threads"_a, "Write a b.");
}

template <class P> void bind_products(nb::module_& m, const char* product_name, const char* gram_name) {
  bind_product<P>(m, product_name);
  m.def(gram_name, [](In<External<P>> x, Out<double> total, std::size_t threads) {
    const nb::gil_scoped_release unlocked;
    add_gram<P>(view(x), view(total), threads);
  }, nb::arg("x").noconvert(), nb::arg("total").noconvert(), "threads"_a,
  "Add x^T x to the upper triangle of total.");
}

}  // namespace

void awp::check_signals() {
  // Rarely: another thread of the interpreter may take milliseconds to pass the lock on.
  using Clock = std::chrono::steady_clock;
  static thread_local Clock::time_point last;
  const Clock::time_point now = Clock::now();
  if (now - last < std::chrono::milliseconds(10)) return;
  const nb::gil_scoped_acquire locked;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
  last = Clock::now();
}

void awp::bind_core(nb::module_& m) {
  bind<float>(m);
  bind<double>(m);
  bind_products<float>(m, "product", "gram");
  bind_products<double>(m, "product", "gram");
  bind_products<bfloat16>(m, "product_bfloat16", "gram_bfloat16");
  bind_product<std::int8_t>(m, "product_int8");
  bind_grids(m);
  m.def("supported_isas", &supported_isas, "List what this machine can run, by the names of AWP_ISA.");
  m.def("ready", &amx_request_permission, "Return whether the operating system lets this build run.");
}
