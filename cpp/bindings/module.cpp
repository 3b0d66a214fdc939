// The one file that differs between the builds of the core: the module's name.
#include "bindings.hpp"

NB_MODULE(AWP_MODULE, m) { awp::bind_core(m); }
