// Sparse kernels beside a dense INT4 kernel of our own, without a runtime; one JSON line per shape and count.
//   bench_sparse [isa [threads [gigabytes]]]
// Products of one row, from the first and the second cache of every core and streamed over copies that no cache holds,
// all kernels in turns; the dense one is AVX2 without VNNI, groups of 128 inputs with float16 scales and zero points,
// rows in the same tiles.
// Rates in 1e9 weights a second, medians of 7; memory allows read_gb_s / bytes a weight.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../kernels/sparse_matmul.h"

namespace {

using namespace awp::kernels;

constexpr std::size_t kGroup = 128;

#define AWP_AVX2 __attribute__((target("avx2,fma,f16c")))

AWP_AVX2 inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// 64 bytes a row and group: nibbles of inputs j and j + 32 share a byte, for 64 inputs at a time.
AWP_AVX2 void dense_tile(const std::uint8_t* codes, const std::uint16_t* scales, const std::uint64_t* zeros,
                         const Quantized& input, std::size_t groups, float* y) {
  const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  __m256 total[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (std::size_t group = 0; group < groups; ++group) {
    const std::int8_t* values = input.values + group * kGroup;
    const __m256i a[4] = {load(values), load(values + 32), load(values + 64), load(values + 96)};
    for (int half = 0; half < 2; ++half) {
      __m256i v[8];
      for (int row = 0; row < 8; ++row, codes += 64) {
        __m256i pairs = _mm256_setzero_si256();
        _mm_prefetch(reinterpret_cast<const char*>(codes) + 2048, _MM_HINT_T0);  // as the sparse kernels do
        for (int part = 0; part < 2; ++part) {
          const __m256i packed = load(codes + 32 * part);
          pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(_mm256_and_si256(packed, nibble), a[2 * part]));
          const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble);
          pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(high, a[2 * part + 1]));
        }
        v[row] = _mm256_madd_epi16(pairs, ones);
      }
      __m256i t[4], u[2];
      for (int i = 0; i < 4; ++i)
        t[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
      for (int i = 0; i < 2; ++i)
        u[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(t[2 * i], t[2 * i + 1]), _mm256_unpackhi_epi64(t[2 * i], t[2 * i + 1]));
      const __m256i sums = _mm256_add_epi32(_mm256_permute2x128_si256(u[0], u[1], 0x20), _mm256_permute2x128_si256(u[0], u[1], 0x31));
      const __m256i zero = _mm256_and_si256(
          _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(zeros[group] >> 32 * half)), shifts), _mm256_set1_epi32(15));
      const __m256i whole = _mm256_sub_epi32(sums, _mm256_mullo_epi32(zero, _mm256_set1_epi32(input.sums[group])));
      const __m256 scale = _mm256_mul_ps(
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + group * kTile + 8 * half))),
          _mm256_set1_ps(input.scales[group]));
      total[half] = _mm256_add_ps(total[half], _mm256_mul_ps(_mm256_cvtepi32_ps(whole), scale));
    }
  }
  _mm256_storeu_ps(y, total[0]);
  _mm256_storeu_ps(y + 8, total[1]);
}

struct Bench {
  std::size_t rows, inputs, threads;
  std::size_t copies = 1, repeats = 1;  // a resident weight is one copy, multiplied again and again

  // So many copies or repeats that a run takes in the bytes.
  void cover(std::size_t bytes, std::size_t one, bool streamed) { (streamed ? copies : repeats) = bytes / one + 1; }

  std::size_t tiles() const { return rows / kTile; }
  std::size_t groups() const { return inputs / kGroup; }

  // Seconds of work(copy, tile) over all copies, tiles shared among threads.
  template <class Work> double seconds(const Work& work) const {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> team;
    for (std::size_t thread = 0; thread < threads; ++thread)
      team.emplace_back([this, thread, &work] {
        for (std::size_t i = 0; i < copies * repeats; ++i)
          for (std::size_t tile = tiles() * thread / threads; tile < tiles() * (thread + 1) / threads; ++tile)
            work(i % copies, tile);
      });
    for (std::thread& thread : team) thread.join();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
};

// A kernel with its operands.
struct Product {
  Bench bench;
  std::function<void(std::size_t copy, std::size_t tile)> work;
};

// Medians of 7 runs, in turns after one that is not timed: 1e9 weights a second.
std::vector<double> rates(const std::vector<Product>& products) {
  std::vector<std::vector<double>> seconds(products.size());
  for (int run = 0; run < 8; ++run)
    for (std::size_t i = 0; i < products.size(); ++i) {
      const double taken = products[i].bench.seconds(products[i].work);
      if (run > 0) seconds[i].push_back(taken);
    }
  std::vector<double> found;
  for (std::size_t i = 0; i < products.size(); ++i) {
    const Bench& bench = products[i].bench;
    std::nth_element(seconds[i].begin(), seconds[i].begin() + 3, seconds[i].end());
    const std::size_t weights = bench.rows * bench.inputs * bench.copies * bench.repeats;
    found.push_back(1e-9 * static_cast<double>(weights) / seconds[i][3]);
  }
  return found;
}

// The same random bytes again and again, at places of their own.
template <class T> std::vector<T> repeated(const std::vector<T>& one, std::size_t copies) {
  std::vector<T> all(one.size() * copies);
  for (std::size_t copy = 0; copy < copies; ++copy) std::copy(one.begin(), one.end(), all.begin() + static_cast<std::ptrdiff_t>(copy * one.size()));
  return all;
}

template <class T> std::vector<T> random_words(std::size_t count, std::mt19937_64& random) {
  std::vector<T> words(count);
  for (T& word : words) word = static_cast<T>(random());
  return words;
}

std::uint64_t random_mask(std::size_t kept, std::mt19937_64& random) {
  std::uint64_t mask = 0;
  while (static_cast<std::size_t>(__builtin_popcountll(mask)) < kept) mask |= std::uint64_t{1} << random() % 64;
  return mask;
}

struct Case {
  const char* from;
  std::size_t rows, inputs;
};

struct Input {
  std::vector<std::int8_t> values;
  std::vector<float> scales;
  std::vector<std::int32_t> sums;
  Quantized view() const { return {values.data(), scales.data(), sums.data()}; }
};

// Bytes a weight of scales and zero points.
constexpr double kGroupBytes = 2.5 / kGroup;

Product dense_product(Bench bench, const Input& input, std::size_t bytes, bool streamed, std::mt19937_64& random) {
  struct Operands {
    std::vector<std::uint8_t> codes;
    std::vector<std::uint16_t> scales;
    std::vector<std::uint64_t> zeros;
  };
  const std::size_t one = bench.rows * bench.inputs / 2, groups = bench.tiles() * bench.groups();
  bench.cover(bytes, one, streamed);
  const auto w = std::make_shared<Operands>();
  w->codes = repeated(random_words<std::uint8_t>(one, random), bench.copies);
  w->scales = repeated(std::vector<std::uint16_t>(groups * kTile, 0x2c00), bench.copies);
  w->zeros = repeated(random_words<std::uint64_t>(groups, random), bench.copies);
  return {bench, [=, &input](std::size_t copy, std::size_t tile) {
            float y[kTile];
            const std::size_t at = copy * bench.tiles() + tile;
            dense_tile(w->codes.data() + at * (one / bench.tiles()), w->scales.data() + at * bench.groups() * kTile,
                       w->zeros.data() + at * bench.groups(), input.view(), bench.groups(), y);
            __asm__ volatile("" : : "r"(y) : "memory");
          }};
}

Product sparse_product(Bench bench, const Table& table, const Input& input, std::size_t kept, std::size_t bytes,
                       bool streamed, std::mt19937_64& random) {
  struct Operands {
    std::vector<std::uint64_t> masks, zeros;
    std::vector<std::uint8_t> codes;
    std::vector<std::uint16_t> scales;
    Weights all;  // the copies as one tall weight
  };
  const std::size_t words = bench.rows * bench.inputs / kBlock, one = words / 2 * kept;
  const std::size_t groups = bench.tiles() * bench.groups();
  bench.cover(bytes, one + words * 8, streamed);
  const auto w = std::make_shared<Operands>();
  std::vector<std::uint64_t> some(words);
  for (std::uint64_t& mask : some) mask = random_mask(kept, random);
  w->masks = repeated(some, bench.copies);
  w->codes = repeated(random_words<std::uint8_t>(one, random), bench.copies);
  w->codes.insert(w->codes.begin(), kGuard, 0);
  w->codes.resize(w->codes.size() + kGuard);
  w->scales = repeated(std::vector<std::uint16_t>(groups * kTile, 0x2c00), bench.copies);
  w->zeros = repeated(random_words<std::uint64_t>(groups, random), bench.copies);
  w->all = {w->masks.data(), w->codes.data() + kGuard, w->scales.data(), w->zeros.data(), nullptr,
            bench.rows * bench.copies, bench.inputs, kGroup, kept};
  return {bench, [=, &table, &input](std::size_t copy, std::size_t tile) {
            float y[kTile];
            table.decode(w->all, copy * bench.tiles() + tile, input.view(), y);
            __asm__ volatile("" : : "r"(y) : "memory");
          }};
}

double read_rate(std::size_t threads, std::size_t bytes) {
  const std::vector<std::uint64_t> data(bytes / 8, 1);
  const Bench bench{kTile * threads, 1, threads};
  const std::size_t share = data.size() / threads;
  const auto read = [&](std::size_t, std::size_t tile) {
    std::uint64_t sum = 0;
    for (std::size_t i = tile * share; i < (tile + 1) * share; ++i) sum += data[i];
    __asm__ volatile("" : : "r"(sum) : "memory");
  };
  return rates({{bench, read}})[0] * static_cast<double>(bytes) / static_cast<double>(bench.rows);
}

}  // namespace

int main(int argc, char** argv) {
  const Table* table = choose(argc > 1 ? argv[1] : "");
  const std::size_t threads = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 2;
  const std::size_t bytes = static_cast<std::size_t>((argc > 3 ? std::atof(argv[3]) : 1.0) * 1e9);
  if (table == nullptr || threads == 0) {
    std::fprintf(stderr, "bench_sparse [isa [threads [gigabytes]]]\n");
    return 2;
  }
  std::mt19937_64 random(1);
  const double read = read_rate(threads, bytes);
  const Case cases[] = {{"L1", kTile * threads, 1536}, {"L2", 16 * kTile * threads, 1536}, {"memory", 4096, 4096},
                        {"memory", 4096, 11008}};
  for (const Case& c : cases) {
    const Bench bench{c.rows, c.inputs, threads};
    const bool streamed = std::strcmp(c.from, "memory") == 0;
    const std::size_t groups = c.inputs / kGroup;
    Input input{std::vector<std::int8_t>(c.inputs), std::vector<float>(groups, 0.01f), std::vector<std::int32_t>(groups)};
    for (std::int8_t& value : input.values) value = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
    const std::size_t counts[] = {32, 24, 16};
    std::vector<Product> products{dense_product(bench, input, bytes, streamed, random)};
    for (const std::size_t kept : counts)
      products.push_back(sparse_product(bench, *table, input, kept, bytes, streamed, random));
    const std::vector<double> rate = rates(products);
    for (std::size_t i = 0; i < 3; ++i) {
      const std::size_t kept = counts[i];
      const double dense = rate[0], sparse = rate[i + 1];
      std::printf("{\"from\": \"%s\", \"rows\": %zu, \"inputs\": %zu, \"kept\": %zu, \"kernels\": \"%s\", "
                  "\"threads\": %zu, \"sparse_gweights\": %.2f, \"dense_avx2_gweights\": %.2f, \"ratio\": %.3f, "
                  "\"sparse_bytes\": %.4f, \"dense_bytes\": %.4f, \"read_gb_s\": %.2f}\n",
                  c.from, c.rows, c.inputs, kept, table->name, threads, sparse, dense, sparse / dense,
                  1.0 / 8 + static_cast<double>(kept) / 128 + kGroupBytes, 0.5 + kGroupBytes, read);
      std::fflush(stdout);
    }
  }
  return 0;
}
