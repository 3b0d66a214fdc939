// Memory that vectors load from, without exceptions.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
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

// Whole pages, which the system has back once they are freed: of what lies on the heap, the heap keeps most. Large ones
// where there are some: small ones end every stream that the processor has recognised, and each asks for its address.
class Pages {
 public:
  Pages() = default;
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() { free(); }

  // False where there is no memory.
  bool allocate(std::size_t bytes) {
    free();
    const std::size_t spare = bytes >= kLarge ? kLarge : 0;
    void* made = mmap(nullptr, bytes + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) return false;
    mapped_ = made;
    mapped_bytes_ = bytes + spare;
    data_ = static_cast<unsigned char*>(made);
#if defined(MADV_HUGEPAGE)
    if (spare != 0) {
      data_ += (kLarge - reinterpret_cast<std::uintptr_t>(made) % kLarge) % kLarge;
      madvise(data_, bytes, MADV_HUGEPAGE);  // a wish: pages stay small where the system says so
    }
#endif
    return true;
  }
  void free() {
    if (mapped_ != nullptr) munmap(mapped_, mapped_bytes_);
    mapped_ = nullptr;
    data_ = nullptr;
  }
  unsigned char* data() const { return data_; }

 private:
  static constexpr std::size_t kLarge = std::size_t{1} << 21;
  void* mapped_ = nullptr;
  std::size_t mapped_bytes_ = 0;
  unsigned char* data_ = nullptr;
};

}  // namespace awp::kernels
