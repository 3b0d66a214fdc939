// Counts failed checks; a test's main returns result().
#pragma once
#include <cstdio>
#include <random>
#include <vector>

namespace awp_test {

inline int& failures() {
  static int count = 0;
  return count;
}

inline void check(bool good, const char* what, long a = 0, long b = 0, long c = 0) {
  if (good) return;
  ++failures();
  std::printf("FAILED %s (%ld, %ld, %ld)\n", what, a, b, c);
}

inline int result(const char* name) {
  std::printf(failures() == 0 ? "%s: all checks passed\n" : "%s: %d checks failed\n", name, failures());
  return failures() != 0;
}

template <class T> std::vector<T> normal(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<T> distribution;
  std::vector<T> values(size);
  for (T& value : values) value = distribution(random);
  return values;
}

}  // namespace awp_test
