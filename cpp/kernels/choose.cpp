#include <cstring>

#include "awp/cpu.hpp"
#include "sparse_matmul.h"

namespace awp::kernels {
namespace {

struct Choice {
  const char* isa;  // a name of AWP_ISA
  const Table* table;
};

// From slow to fast. A build without a compiler for an instruction set leaves its table out.
constexpr Choice kChoices[] = {
    {"base", &kReference},
#if defined(AWP_HAVE_AVX2)
    {"avx2", &kAvx2},
#endif
#if defined(AWP_HAVE_AVX512)
    {"avx512", &kAvx512},
#endif
#if defined(AWP_HAVE_AVX512VNNI)
    {"avx512vnni", &kAvx512Vnni},
    {"avx512bf16", &kAvx512Vnni},
    {"amx", &kAvx512Vnni},
#endif
#if defined(AWP_HAVE_NEON)
    {"neon", &kNeon},
#endif
#if defined(AWP_HAVE_NEONDOT)
    {"neondot", &kNeonDot},
#endif
};

// What a table needs beyond the instruction set it is named after.
bool runs([[maybe_unused]] const Table* table) {
#if defined(AWP_HAVE_AVX512VNNI)
  if (table == &kAvx512Vnni && !(__builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni")))
    return false;
#endif
#if defined(AWP_HAVE_AVX2)
  if (table != &kReference && !(__builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c"))) return false;
#endif
  return true;
}

}  // namespace

const Table* choose(const char* isa) {
  const bool any = isa == nullptr || *isa == '\0';
  const Table* best = nullptr;
  bool known = any;
  for (const std::string& offered : supported_isas()) {
    known = known || offered == isa;
    for (const Choice& choice : kChoices) {
      if (offered == choice.isa && runs(choice.table)) best = choice.table;
    }
    if (!any && offered == isa) break;
  }
  return known ? best : nullptr;
}

}  // namespace awp::kernels
