// The kernels without a runtime, for Python's ctypes: parity tests, benchmarks and the check of packed files.
#include <cstdlib>
#include <cstring>

#include "../kernels/expansion.h"
#include "version.h"

using namespace awp::kernels;

#define AWP_EXPORT __attribute__((visibility("default")))

namespace {
void run_here(void*, void (*task)(void*, std::size_t), std::size_t count, void* data) {
  for (std::size_t i = 0; i < count; ++i) task(data, i);
}

// The kernels of a name, or those that the operators of this process use.
const Table* table_of(const char* isa) { return choose(*isa == '\0' ? std::getenv("AWP_ISA") : isa); }
}  // namespace

extern "C" {

// "awp-edge VERSION, format F".
AWP_EXPORT const char* awp_edge_version() { return "awp-edge " AWP_VERSION ", format 1"; }
static_assert(kFormatVersion == 1, "awp_edge_version states the format");

// The size of what the functions below take: a caller that knows another one is of another version.
AWP_EXPORT std::size_t awp_edge_packed_size() { return sizeof(Packed); }

// The kernels that a name of AWP_ISA stands for ("": those that AWP_ISA asks for, or the best); null where this machine does not run them.
AWP_EXPORT const char* awp_edge_isa(const char* isa) {
  const Table* table = table_of(isa);
  return table ? table->name : nullptr;
}

// What is wrong with a packed weight, or null.
AWP_EXPORT const char* awp_edge_check(const Packed* packed) {
  Weights weights;
  return check(*packed, &weights);
}

// Bytes of the copy that the operator may keep of a weight beside it, see nibble_bytes; 0 where it would refuse the weight.
AWP_EXPORT std::size_t awp_edge_expanded_bytes(const Packed* packed, const char* isa) {
  Weights weights;
  const Table* table = table_of(isa);
  return table == nullptr || check(*packed, &weights) != nullptr ? 0 : nibble_bytes(weights, *table);
}

// See expands, of the operators of this process; 0 where they would refuse the weight.
AWP_EXPORT int awp_edge_expands(const Packed* packed, const char* isa) {
  Weights weights;
  const Table* table = table_of(isa);
  return table == nullptr || check(*packed, &weights) != nullptr ? 0 : expands(weights, *table);
}

// y[rows][N] = x[rows][K] W^T, or y[rows][N / 2] where W is gated, on the calling thread, `repeats` times; what went
// wrong, or null. With `expand` single tokens from the copy, where nibble_bytes has one.
AWP_EXPORT const char* awp_edge_multiply(const Packed* packed, const char* isa, const float* x, std::size_t rows,
                                         int interleaved, int level, float* y, std::size_t repeats, int expand) {
  Weights weights;
  if (const char* wrong = check(*packed, &weights)) return wrong;
  const Table* table = table_of(isa);
  if (table == nullptr) return "this machine does not run that instruction set";
  const Inputs inputs{x, rows, interleaved != 0, level == 4 ? Level::int8_inputs : Level::float_inputs};
  Buffer<std::uint8_t> nibbles;
  if (const std::size_t bytes = expand ? nibble_bytes(weights, *table) : 0) {
    nibbles = allocate<std::uint8_t>(bytes);
    if (!nibbles || !fill_nibbles(weights, *table, nibbles.get(), {run_here, nullptr})) return "out of memory";
    weights.nibbles = nibbles.get();
  }
  for (std::size_t i = 0; i < repeats; ++i)
    if (!multiply(weights, *table, inputs, y, {run_here, nullptr})) return "out of memory";
  return nullptr;
}

// Adds up a buffer eight bytes at a time: the speed of reading memory.
AWP_EXPORT std::uint64_t awp_edge_read(const std::uint64_t* data, std::size_t count) {
  std::uint64_t sums[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (std::size_t j = 0; j < 8; ++j) sums[j] += data[i + j];
  std::uint64_t total = 0;
  for (const std::uint64_t sum : sums) total += sum;
  for (; i < count; ++i) total += data[i];
  return total;
}

}  // extern "C"
