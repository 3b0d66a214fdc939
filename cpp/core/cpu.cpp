#include "awp/cpu.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace awp {

#if defined(__x86_64__)
namespace {

// CPUID leaf 7: AMX-INT8, AMX-TILE and AMX-BF16 are bits 25, 24 and 22 of EDX, AVX512-BF16 is bit 5 of EAX in
// subleaf 1.
unsigned leaf7(unsigned subleaf, char which) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, subleaf, &a, &b, &c, &d)) return 0;
  return which == 'a' ? a : d;
}

// The operating system saves the tile registers: bits 17 and 18 of XCR0.
bool saves_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return false;  // OSXSAVE
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low >> 17 & 3) == 3;
}

}  // namespace
#endif

std::vector<std::string> supported_isas() {
  std::vector<std::string> isas{"base"};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && (leaf7(1, 'a') >> 5 & 1);
  if (avx2) isas.push_back("avx2");
  if (avx512) isas.push_back("avx512");
  if (vnni) isas.push_back("avx512vnni");
  if (bf16) isas.push_back("avx512bf16");
  if (bf16 && (leaf7(0, 'd') >> 22 & 13) == 13 && saves_tiles()) isas.push_back("amx");
#elif defined(__aarch64__)
  isas.push_back("neon");
#if defined(__linux__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) isas.push_back("neondot");
#elif defined(__APPLE__)
  isas.push_back("neondot");
#endif
#endif
  return isas;
}

}  // namespace awp
