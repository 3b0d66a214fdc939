#pragma once
#include <nanobind/nanobind.h>

namespace awp {

// Adds the core's functions to a module.
void bind_core(nanobind::module_& m);

}  // namespace awp
