// The AVX-512 kernels on an emulation of the instructions they use, for machines without them.
#include <algorithm>

#define AWP_EMULATED_INTRINSICS "../tests/emulated_avx512.hpp"
#define kAvx512Vnni kEmulated
#include "../kernels/avx512vnni.cpp"
#include "sparse_checks.hpp"

int main() {
  awp_test::check_table(awp::kernels::kEmulated);
  return awp_test::result("sparse_emulated");
}
