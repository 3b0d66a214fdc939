// An AVX-512 kernel, AWP_EMULATED_KERNEL, on an emulation of the instructions it uses, for machines without them.
#include <algorithm>

#define AWP_EMULATED_INTRINSICS "../tests/emulated_avx512.hpp"
#define kAvx512 kEmulated
#define kAvx512Vnni kEmulated
#if !defined(AWP_CALLS_AVX2)
#define kAvx2 kReference  // for inputs to int8 steps alone
#endif
#include AWP_EMULATED_KERNEL
#include "sparse_checks.hpp"

int main() {
#if defined(AWP_CALLS_AVX2)
  if (awp::kernels::choose("avx2") != &awp::kernels::kAvx2) return 77;
#endif
  awp_test::check_table(awp::kernels::kEmulated);
  return awp_test::result(AWP_EMULATED_KERNEL);
}
