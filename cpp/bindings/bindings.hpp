#pragma once
#include <nanobind/nanobind.h>

namespace awp {

// Adds the core's functions to a module.
void bind_core(nanobind::module_& m);
// Those that fit integer grids to the objective; part of bind_core.
void bind_grids(nanobind::module_& m);

// Throws where a signal handler, as that of Ctrl-C, raises; for threads that do not hold the interpreter lock.
void check_signals();

}  // namespace awp
