// What the processor and the operating system offer, by the names of AWP_ISA.
#pragma once
#include <string>
#include <vector>

namespace awp {

// Names among base, avx2, avx512, avx512vnni, avx512bf16, amx, neon and neondot, from slow to fast.
std::vector<std::string> supported_isas();

}  // namespace awp
