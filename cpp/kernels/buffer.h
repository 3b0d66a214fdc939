// Memory that vectors load from, without exceptions.
#pragma once
#include <sys/mman.h>

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

// Whole pages, which the system has back once they are freed: of what lies on the heap, the heap keeps most.
class Pages {
 public:
  Pages() = default;
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() { free(); }

  // False where there is no memory.
  bool allocate(std::size_t bytes) {
    free();
    void* made = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) return false;
    data_ = static_cast<unsigned char*>(made);
    bytes_ = bytes;
    return true;
  }
  void free() {
    if (data_ != nullptr) munmap(data_, bytes_);
    data_ = nullptr;
  }
  unsigned char* data() const { return data_; }

 private:
  unsigned char* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace awp::kernels
