// Memory that vectors load from, without exceptions.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <memory>

namespace awp::kernels {

struct Free {
  void operator()(void* pointer) const { std::free(pointer); }
};
template <class T> using Buffer = std::unique_ptr<T[], Free>;

// Null where there is no memory.
template <class T> Buffer<T> allocate(std::size_t count) {
  const std::size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
  return Buffer<T>(static_cast<T*>(std::aligned_alloc(64, bytes == 0 ? 64 : bytes)));
}

}  // namespace awp::kernels
