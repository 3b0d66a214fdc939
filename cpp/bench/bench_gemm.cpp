// Rates of the dense products, one JSON line per shape: bench_gemm [threads] [rows per tile] [seconds per shape].
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "awp/gemm.hpp"

namespace {

using awp::External;
using awp::Index;

struct Options {
  int threads;
  Index tile_rows;
  double seconds;
};

template <class T> constexpr const char* kName = "float32";
template <> constexpr const char* kName<double> = "float64";
template <> constexpr const char* kName<awp::bfloat16> = "bfloat16";
template <> constexpr const char* kName<std::int8_t> = "int8";

template <class S> std::vector<S> values(Index size) {
  std::vector<S> x(static_cast<std::size_t>(size));
  for (Index i = 0; i < size; ++i) x[i] = static_cast<S>((i * 7919) % 2003) / 1001 - 1;
  return x;
}

// Runs task(tile, workspace) for every tile, each thread taking the next one that is free.
void for_tiles(int threads, Index tiles, const std::function<void(Index, awp::Workspace&)>& task) {
  std::atomic<Index> next{0};
  const auto work = [&] {
    awp::Workspace workspace;
    for (Index tile; (tile = next++) < tiles;) task(tile, workspace);
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work);
  work();
  for (auto& thread : others) thread.join();
}

// Best time of repeated runs.
double best_seconds(double budget, const std::function<void()>& run) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30, total = 0;
  while (total < budget) {
    const auto start = Clock::now();
    run();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, seconds), total += seconds;
  }
  return best;
}

void report(const char* what, const char* type, const std::string& shape, const Options& options, double gflops) {
  std::printf(R"({"what": "%s", "type": "%s", "shape": "%s", "threads": %d, "gflops": %.1f})", what, type,
              shape.c_str(), options.threads, gflops);
  std::printf("\n");
  std::fflush(stdout);
}

template <class T> void bench_multiply(const Options& options, Index m, Index k, Index n) {
  using S = External<T>;
  const auto a = values<S>(m * k), b = values<S>(k * n);
  std::vector<awp::Result<T>> out(static_cast<std::size_t>(m * n));
  const awp::PackedMatrix<T> packed(b.data(), k, n, n);
  const double seconds = best_seconds(options.seconds, [&] {
    for_tiles(options.threads, (m + options.tile_rows - 1) / options.tile_rows, [&](Index tile, auto& workspace) {
      const Index row = tile * options.tile_rows, rows = std::min(options.tile_rows, m - row);
      awp::multiply<T>(a.data() + row * k, rows, k, packed, out.data() + row * n, n, workspace);
    });
  });
  const std::string shape = std::to_string(m) + "x" + std::to_string(k) + "x" + std::to_string(n);
  report("multiply", kName<T>, shape, options, 2e-9 * static_cast<double>(m * k * n) / seconds);
}

// Packing included; the rate counts the n d (d + 1) operations of the upper triangle.
template <class T> void bench_gram(const Options& options, Index n, Index d) {
  const auto x = values<External<T>>(n * d);
  std::vector<double> gram(static_cast<std::size_t>(d * d));
  const double seconds = best_seconds(options.seconds, [&] {
    awp::PackedMatrix<T> packed(n, d);
    for_tiles(options.threads, packed.panels(),
              [&](Index panel, auto&) { packed.pack(x.data(), d, panel, panel + 1); });
    for_tiles(options.threads, awp::gram_tiles<T>(d),
              [&](Index tile, auto& workspace) { awp::gram_tile(packed, tile, gram.data(), workspace); });
  });
  const std::string shape = std::to_string(n) + "x" + std::to_string(d);
  report("gram", kName<T>, shape, options, 1e-9 * static_cast<double>(n * d * (d + 1)) / seconds);
}

template <class T> void bench_products(const Options& options) {
  bench_multiply<T>(options, 576, 576, 576);
  bench_multiply<T>(options, 1536, 576, 576);
  bench_multiply<T>(options, 576, 1536, 1536);
  bench_multiply<T>(options, 4096, 4096, 4096);
}

template <class T> void bench_all(const Options& options) {
  bench_products<T>(options);
  bench_gram<T>(options, 2048, 576);
  bench_gram<T>(options, 2048, 1536);
  bench_gram<T>(options, 2048, 4096);
}

}  // namespace

int main(int argc, char** argv) {
  const Options options{argc > 1 ? std::atoi(argv[1]) : 2, argc > 2 ? std::atoi(argv[2]) : 96,
                        argc > 3 ? std::atof(argv[3]) : 0.5};
  bench_all<float>(options);
  bench_all<double>(options);
  bench_products<std::int8_t>(options);
  if (awp::amx_request_permission()) bench_all<awp::bfloat16>(options);
}
