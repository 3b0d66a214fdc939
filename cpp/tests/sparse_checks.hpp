// What every table of sparse kernels must do: agree with the reference on bytes that end where memory does.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "../kernels/sparse_matmul.h"
#include "check.hpp"

namespace awp_test {

using namespace awp::kernels;

// Memory of its own whose last byte (or first, if at_start) is the last (first) that may be touched.
class Fenced {
 public:
  Fenced(std::size_t bytes, bool at_start) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    inner_ = (bytes + page - 1) / page * page;
    size_ = inner_ + 2 * page;
    void* all = mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) std::abort();
    all_ = static_cast<char*>(all);
    if (inner_ != 0 && mprotect(all_ + page, inner_, PROT_READ | PROT_WRITE) != 0) std::abort();
    data_ = all_ + page + (at_start ? 0 : inner_ - bytes);
  }
  ~Fenced() { munmap(all_, size_); }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  template <class T> T* as() const { return reinterpret_cast<T*>(data_); }

 private:
  std::size_t inner_ = 0, size_ = 0;
  char *all_ = nullptr, *data_ = nullptr;
};

struct Case {
  std::size_t rows, blocks, group;
  int kept;  // -1: any number in every block
  bool zeros, at_start;
};

// A packed weight of random bytes, every part in memory of its own.
class Sample {
 public:
  Sample(const Case& c, unsigned seed) : random_(seed) {
    const std::size_t tiles = (c.rows + kTile - 1) / kTile, groups = c.blocks * kBlock / c.group;
    packed_ = {static_cast<std::int64_t>(c.rows), static_cast<std::int64_t>(c.blocks * kBlock),
               static_cast<std::int64_t>(c.group), c.kept, nullptr, tiles * c.blocks * kTile, nullptr, 0,
               nullptr, tiles * groups * kTile, nullptr, 0, nullptr, 0, 0};
    std::uint64_t* masks = make<std::uint64_t>(packed_.n_masks, c.at_start);
    // Any number up to a limit that eight rows of two blocks reach, since kernels may have a shorter way for some.
    const std::size_t limits[] = {48, 49, 32, 64, 33};
    for (std::size_t i = 0; i < packed_.n_masks; ++i) {
      const std::size_t limit = limits[(i / 32 * 2 + i / 8 % 2) % 5];
      const std::size_t any = i % 8 == 0 ? limit : random_() % (limit + 1);
      masks[i] = mask(c.kept >= 0 ? static_cast<std::size_t>(c.kept) : any);
    }
    packed_.masks = masks;
    std::vector<std::uint64_t> starts{0};
    for (std::size_t tile = 0; tile < tiles; ++tile) starts.push_back(starts.back() + bytes(masks, c.blocks, tile));
    packed_.n_codes = starts.back() + 2 * kGuard;
    packed_.codes = fill<std::uint8_t>(packed_.n_codes, c.at_start);
    std::uint16_t* scales = make<std::uint16_t>(packed_.n_scales, c.at_start);
    for (std::size_t i = 0; i < packed_.n_scales; ++i) scales[i] = static_cast<std::uint16_t>(random_() % 0x4000);
    packed_.scales = scales;
    if (c.zeros) {
      packed_.n_zeros = tiles * groups;
      packed_.zeros = fill<std::uint64_t>(packed_.n_zeros, c.at_start);
    }
    if (c.kept < 0) {
      packed_.n_offsets = starts.size();
      std::uint64_t* offsets = make<std::uint64_t>(starts.size(), c.at_start);
      std::memcpy(offsets, starts.data(), starts.size() * sizeof *offsets);
      packed_.offsets = offsets;
    }
  }

  const Packed& packed() const { return packed_; }

  // Every code and every zero point becomes 15.
  void enlarge() {
    std::memset(const_cast<std::uint8_t*>(packed_.codes), 0xff, packed_.n_codes);
    if (packed_.zeros) std::memset(const_cast<std::uint64_t*>(packed_.zeros), 0xff, packed_.n_zeros * sizeof *packed_.zeros);
  }

  template <class T> T* make(std::size_t count, bool at_start) {
    parts_.push_back(std::make_unique<Fenced>(count * sizeof(T), at_start));
    return parts_.back()->as<T>();
  }

  template <class T> T* fill(std::size_t count, bool at_start) {
    T* data = make<T>(count, at_start);
    unsigned char* bytes = reinterpret_cast<unsigned char*>(data);
    for (std::size_t i = 0; i < count * sizeof(T); ++i) bytes[i] = static_cast<unsigned char>(random_());
    return data;
  }

 private:
  std::uint64_t mask(std::size_t kept) {
    std::uint64_t bits = 0;
    while (static_cast<std::size_t>(__builtin_popcountll(bits)) < kept) bits |= std::uint64_t{1} << random_() % 64;
    return bits;
  }

  static std::size_t bytes(const std::uint64_t* masks, std::size_t blocks, std::size_t tile) {
    std::size_t total = 0;
    const auto count = [&](std::size_t block, std::size_t row) {
      return static_cast<std::size_t>(__builtin_popcountll(masks[(tile * blocks + block) * kTile + row]));
    };
    for (std::size_t row = 0; row < kTile; ++row) {
      for (std::size_t block = 0; block + 1 < blocks; block += 2) total += std::max(count(block, row), count(block + 1, row));
      if (blocks % 2 != 0) total += (count(blocks - 1, row) + 1) / 2;
    }
    return total;
  }

  std::mt19937 random_;
  Packed packed_{};
  std::vector<std::unique_ptr<Fenced>> parts_;
};

inline std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int kept : {0, 1, 7, 16, 17, 24, 31, 32, 33, 48, 49, 64, -1})
    for (const std::size_t blocks : {1, 2, 3, 6})
      for (const std::size_t group : {64, 128})
        if (blocks * kBlock % group == 0) all.push_back({blocks % 2 ? std::size_t{19} : std::size_t{16}, blocks, group, kept, kept % 2 == 0, blocks == 3});
  return all;
}

// Inputs of several rows at the edge of their memory, and what the kernels take of them.  largest: all 1, or all -1.
struct Rows {
  std::vector<Quantized> rows;
  float* x;
};

inline Rows inputs(Sample& sample, const Weights& w, std::size_t count, bool at_start, bool largest) {
  Rows made{{}, sample.make<float>(count * w.inputs, at_start)};
  const std::vector<float> values = normal<float>(count * w.inputs, 5);
  for (std::size_t i = 0; i < values.size(); ++i) made.x[i] = !largest ? values[i] : i / w.inputs % 2 ? -1.0f : 1.0f;
  for (std::size_t i = 0; i < count; ++i) {
    auto* steps = sample.make<std::int8_t>(w.inputs, at_start);
    auto* scales = sample.make<float>(w.groups(), at_start);
    auto* sums = sample.make<std::int32_t>(w.groups(), at_start);
    kReference.quantize(w, made.x + i * w.inputs, false, steps, scales, sums);
    made.rows.push_back({steps, scales, sums});
  }
  return made;
}

// Bits equal for int8 inputs, closely equal for float ones.  largest: codes, zero points and inputs that make the largest
// sums.
inline void check_table(const Table& table, bool largest) {
  constexpr std::size_t kRows = 11;
  unsigned seed = 0;
  for (const Case& c : cases()) {
    Sample sample(c, ++seed);
    if (largest) sample.enlarge();
    Weights w;
    const char* wrong = check(sample.packed(), &w);
    check(wrong == nullptr, wrong ? wrong : "", c.kept, static_cast<long>(c.blocks), static_cast<long>(c.group));
    if (wrong) continue;
    const Rows in = inputs(sample, w, kRows, c.at_start, largest);
    for (std::size_t tile = 0; tile < w.tiles(); ++tile) {
      Expanded* bytes[2] = {sample.make<Expanded>(w.inputs * kTile, c.at_start), sample.make<Expanded>(w.inputs * kTile, false)};
      kReference.expand(w, tile, bytes[0]);
      table.expand(w, tile, bytes[1]);
      check(std::memcmp(bytes[0], bytes[1], w.inputs * kTile) == 0, "expand", c.kept, static_cast<long>(c.blocks));
      float* y[4];
      for (float*& out : y) out = sample.make<float>(kRows * kTile, c.at_start);
      kReference.dense(w, tile, bytes[0], in.rows.data(), kRows, y[0], kTile);
      table.dense(w, tile, bytes[1], in.rows.data(), kRows, y[1], kTile);
      check(std::memcmp(y[0], y[1], kRows * kTile * sizeof(float)) == 0, "dense", c.kept, static_cast<long>(c.blocks));
      for (std::size_t i = 0; i < kRows; ++i) table.decode(w, tile, in.rows[i], y[1] + i * kTile);
      check(std::memcmp(y[0], y[1], kRows * kTile * sizeof(float)) == 0, "decode", c.kept, static_cast<long>(c.blocks));
      kReference.dense_float(w, tile, bytes[0], in.x, kRows, y[2], kTile);
      table.dense_float(w, tile, bytes[1], in.x, kRows, y[3], kTile);
      for (std::size_t i = 0; i < kRows * kTile; ++i)
        check(std::abs(y[2][i] - y[3][i]) <= 1e-3f * (1 + std::abs(y[2][i])), "dense_float", c.kept, static_cast<long>(i));
    }
  }
}

// Steps, scales and sums equal in every bit, whatever the inputs: also halves of a step, what is not finite, what is tiny.
inline void check_quantize(const Table& table) {
  Sample memory({16, 1, 64, 32, false, false}, 1);
  const float odd[] = {INFINITY, -INFINITY, std::nanf(""), -std::nanf(""), 1e-45f, -0.0f, 3e38f, 63.5f, 1.4e-36f, -127.0f};
  for (const std::size_t group : {64, 128})
    for (std::size_t blocks = group / 64; blocks < 40; blocks += blocks < 18 ? group / 64 : 10)
      for (const bool interleaved : {false, true})
        for (const bool at_start : {false, true})
          for (const std::size_t odds : {0, 1, 5}) {
            Weights w{};
            w.rows = kTile, w.inputs = blocks * kBlock, w.group = group;
            float* x = memory.make<float>(w.inputs, at_start);
            const std::vector<float> values = normal<float>(w.inputs, static_cast<unsigned>(blocks));
            for (std::size_t i = 0; i < w.inputs; ++i) x[i] = odds == 1 ? 1e-42f : odds == 5 ? std::rint(2 * values[i]) : values[i];
            for (std::size_t i = 0; i < odds; ++i) x[(7 + 41 * i * blocks) % w.inputs] = odd[(i + blocks) % 10];
            std::int8_t* steps[2];
            float* scales[2];
            std::int32_t* sums[2];
            for (std::size_t i = 0; i < 2; ++i) {
              steps[i] = memory.make<std::int8_t>(w.inputs, at_start);
              scales[i] = memory.make<float>(w.groups(), at_start);
              sums[i] = memory.make<std::int32_t>(w.groups(), at_start);
              (i == 0 ? kReference : table).quantize(w, x, interleaved, steps[i], scales[i], sums[i]);
            }
            const bool same = std::memcmp(steps[0], steps[1], w.inputs) == 0 &&
                              std::memcmp(scales[0], scales[1], w.groups() * sizeof(float)) == 0 &&
                              std::memcmp(sums[0], sums[1], w.groups() * sizeof(std::int32_t)) == 0;
            check(same, "quantize", static_cast<long>(blocks), static_cast<long>(group), interleaved);
          }
}

inline void check_table(const Table& table) {
  check_quantize(table);
  for (const bool largest : {false, true}) check_table(table, largest);
}

}  // namespace awp_test
