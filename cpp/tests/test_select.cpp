// Checks every support's selection against a stable sort, over ties, k = 0, k = d, hints and odd sizes.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "awp/support.hpp"
#include "check.hpp"

namespace {

using namespace awp;
using awp_test::check;

// Keeps the k largest of the entries at `where`, ties to the first.
template <class T>
void keep_largest(const std::vector<T>& gain, std::vector<std::size_t> where, std::size_t k, std::vector<std::uint8_t>& mask) {
  std::stable_sort(where.begin(), where.end(), [&](auto a, auto b) { return gain[a] > gain[b]; });
  for (std::size_t i = 0; i < where.size(); ++i) mask[where[i]] = i < k;
}

template <class T>
std::vector<std::uint8_t> expected(const Support& support, const std::vector<T>& gain, std::size_t rows, std::size_t d) {
  std::vector<std::uint8_t> mask(gain.size(), 1);
  const auto groups = [&](std::size_t count, std::size_t length, std::size_t step, std::size_t stride, std::size_t k) {
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t g = 0; g < count; ++g) {
        std::vector<std::size_t> where(length);
        for (std::size_t j = 0; j < length; ++j) where[j] = i * d + g * step + j * stride;
        keep_largest(gain, where, k, mask);
      }
  };
  if (const auto* s = std::get_if<RowSparse>(&support)) groups(1, d, 0, 1, s->k[0]);
  if (const auto* s = std::get_if<NM>(&support)) groups(d / s->m, s->m, s->m, 1, s->n);
  if (const auto* s = std::get_if<BalancedBlock>(&support)) groups(d / s->block, s->block, 1, d / s->block, s->k);
  if (const auto* s = std::get_if<BlockSparse>(&support))
    for (std::size_t strip = 0; strip < rows; strip += s->rows) {
      std::vector<double> total(d / s->cols);
      for (std::size_t i = 0; i < s->rows; ++i)
        for (std::size_t j = 0; j < d; ++j) total[j / s->cols] += gain[(strip + i) * d + j];
      std::vector<std::size_t> where(total.size());
      std::iota(where.begin(), where.end(), 0);
      std::vector<std::uint8_t> kept(total.size());
      keep_largest(total, where, s->k, kept);
      for (std::size_t i = 0; i < s->rows; ++i)
        for (std::size_t j = 0; j < d; ++j) mask[(strip + i) * d + j] = kept[j / s->cols];
    }
  return mask;
}

// Gains of several kinds: generic, few levels (ties), constant, all zero, huge and subnormal mixed.
template <class T> std::vector<T> gains(std::size_t size, int kind) {
  std::vector<T> values = awp_test::normal<T>(size, static_cast<unsigned>(size + 7 * kind));
  for (std::size_t j = 0; j < size; ++j) {
    const T square = values[j] * values[j];
    values[j] = kind == 0   ? square
                : kind == 1 ? std::round(square * 2)
                : kind == 2 ? T(3)
                : kind == 3 ? T(0)
                            : std::exp2(values[j] * (sizeof(T) == 4 ? 45 : 330));
  }
  return values;
}

template <class T> void test(const Support& support, std::size_t rows, std::size_t d) {
  std::vector<Key<T>> hints(rows);
  for (int kind = 0; kind < 5; ++kind) {
    const std::vector<T> gain = gains<T>(rows * d, kind);
    std::vector<std::uint8_t> mask(gain.size());
    const auto right = expected(support, gain, rows, d);
    select<T>(support, {gain.data(), rows, d}, {mask.data(), rows, d}, 0);
    check(mask == right, "select", static_cast<long>(support.index()), kind, static_cast<long>(d));
    for (int again = 0; again < 2; ++again) {  // hints of other gains, then of its own
      select<T>(support, {gain.data(), rows, d}, {mask.data(), rows, d}, 0, hints.data());
      check(mask == right, "select with hints", static_cast<long>(support.index()), kind, static_cast<long>(d));
    }
  }
}

// Every row by its own count, in strips that begin anywhere.
template <class T> void test_counts(std::size_t rows, std::size_t d) {
  std::vector<std::size_t> counts(rows);
  for (std::size_t i = 0; i < rows; ++i) counts[i] = i * d / (rows - 1);
  const std::vector<T> gain = gains<T>(rows * d, 0);
  std::vector<std::uint8_t> mask(gain.size());
  for (std::size_t first = 0; first < rows; first += 4) {
    const std::size_t size = std::min<std::size_t>(4, rows - first);
    select<T>(RowSparse{counts}, {gain.data() + first * d, size, d}, {mask.data() + first * d, size, d}, first);
  }
  for (std::size_t i = 0; i < rows; ++i) {
    const std::vector<T> row(gain.begin() + static_cast<long>(i * d), gain.begin() + static_cast<long>((i + 1) * d));
    const auto right = expected<T>(RowSparse{{counts[i]}}, row, 1, d);
    check(std::equal(right.begin(), right.end(), mask.begin() + static_cast<long>(i * d)), "select by counts",
          static_cast<long>(i));
  }
}

template <class T> void test_all() {
  test_counts<T>(11, 100);
  test<T>(Dense{}, 3, 17);
  for (std::size_t d : {1, 2, 5, 16, 33, 64, 100, 576})
    for (std::size_t k : {std::size_t(0), std::size_t(1), d / 3, d / 2, d - 1, d}) test<T>(RowSparse{{k}}, 3, d);
  for (std::size_t m : {1, 2, 4, 8, 32, 60})
    for (std::size_t n : {std::size_t(0), std::size_t(1), m / 2, m - 1, m}) test<T>(NM{n, m}, 5, m * 9);
  for (std::size_t blocks : {1, 3, 9, 24})
    for (std::size_t k : {0, 1, 20, 32, 63, 64}) test<T>(BalancedBlock{k, 64}, 7, 64 * blocks);
  for (std::size_t k : {0, 1, 3, 5}) test<T>(BlockSparse{k, 4, 8}, 12, 40);
  test<T>(BlockSparse{2, 1, 1}, 3, 5);
}

}  // namespace

int main() {
  test_all<float>();
  test_all<double>();
  return awp_test::result("select");
}
