#include "awp/support.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

namespace awp {

Support make_support(const std::string& kind, std::vector<std::size_t> counts, std::size_t a, std::size_t b) {
  if (counts.empty()) throw std::invalid_argument("a support needs a count");
  if (kind == "dense") return Dense{};
  if (kind == "row") return RowSparse{std::move(counts)};
  if (kind == "nm") return NM{counts[0], a};
  if (kind == "balanced") return BalancedBlock{counts[0], a};
  if (kind == "block") return BlockSparse{counts[0], a, b};
  throw std::invalid_argument("the native core does not know the support '" + kind + "'");
}

namespace {

template <class... F> struct Cases : F... { using F::operator()...; };
template <class... F> Cases(F...) -> Cases<F...>;

constexpr std::size_t kStrip = 16;  // enough rows to fill a register with interleaved blocks of 576 inputs

// x + 0 makes -0 the equal of 0, which it is for the reference's comparisons.
template <class T> Key<T> to_key(T gain) {
  const T x = gain + T(0);
  Key<T> bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ ((bits >> (8 * sizeof bits - 1)) & std::numeric_limits<Key<T>>::max());
}

template <class T> Key<T> above_all_keys() { return to_key(std::numeric_limits<T>::infinity()) + 1; }

template <class K> std::size_t count_at_least(const K* keys, std::size_t size, K threshold) {
  K count = 0;
  for (std::size_t j = 0; j < size; ++j) count += keys[j] >= threshold;
  return static_cast<std::size_t>(count);
}

// A first guess for the threshold: the mean is within a few octaves of any common quantile.
template <class T> Key<T> mean_key(const T* gain, std::size_t size) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::size_t j = 0; j < size; ++j) sum += gain[j];
  return to_key(sum / static_cast<T>(size));
}

// Floor of the mean, without overflow; strictly inside unless the two are neighbours.
template <class K> K middle(K low, K high) { return (low & high) + ((low ^ high) >> 1); }

// Bracket of the threshold: count(>= low) = above_low >= k > above_high = count(>= high).
template <class K> struct Bracket {
  K low, high;
  std::size_t above_low, above_high;
  bool probed_low = false, probed_high = false;

  bool closed() const { return low + 1 == high; }

  void probe(const K* keys, std::size_t size, std::size_t k, K at) {
    const std::size_t count = count_at_least(keys, size, at);
    if (count >= k) low = at, above_low = count, probed_low = true;
    else high = at, above_high = count, probed_high = true;
  }

  // The next key to probe, strictly inside. `gap` is the expected distance between neighbouring keys.
  K next(std::size_t k, double gap, int round) const {
    const double excess = static_cast<double>(above_low) - static_cast<double>(k) + 0.5;
    double guess;
    if (probed_low && probed_high && round % 3 == 2) return middle(low, high);
    if (probed_low && probed_high)
      guess = static_cast<double>(low) + (static_cast<double>(high) - static_cast<double>(low)) * excess /
                                             static_cast<double>(above_low - above_high);
    else if (probed_low)
      guess = static_cast<double>(low) + gap * (1 << std::min(round, 16)) * (excess + 1);
    else
      guess = static_cast<double>(high) -
              gap * (1 << std::min(round, 16)) * (static_cast<double>(k - above_high) + 0.5);
    const double first = static_cast<double>(low) + 1, last = static_cast<double>(high) - 1;
    return std::clamp(static_cast<K>(std::clamp(guess, first, last)), low + 1, high - 1);
  }
};

// Finds t with count(keys >= t) = k, or, where ties forbid that, the k-th largest key; O(size) per probe and a handful
// of probes. Requires 0 < k < size.
template <class T>
Bracket<Key<T>> find_threshold(const Key<T>* keys, std::size_t size, std::size_t k, Key<T> guess) {
  using K = Key<T>;
  // Keys per octave times the octaves between neighbours of the middle of `size` squared Gaussians.
  const double gap = static_cast<double>(K(1) << (std::numeric_limits<T>::digits - 1)) * 7.0 / static_cast<double>(size);
  const K bound = above_all_keys<T>();
  Bracket<K> bracket{-bound, bound, size, 0};
  K at = std::clamp(guess, K(-bound + 1), K(bound - 1));
  for (int round = 0; !bracket.closed() && bracket.above_low != k; ++round) {
    bracket.probe(keys, size, k, at);
    if (!bracket.closed()) at = bracket.next(k, gap, round);
  }
  return bracket;
}

template <class T>
void select_row(const T* gain, std::uint8_t* mask, std::size_t size, std::size_t k, Key<T>* keys, Key<T>* hint) {
  if (k == 0 || k >= size) return void(std::memset(mask, k != 0, size));
  for (std::size_t j = 0; j < size; ++j) keys[j] = to_key(gain[j]);
  const Key<T> guess = hint && *hint ? *hint : mean_key(gain, size);
  const auto bracket = find_threshold<T>(keys, size, k, guess);
  const Key<T> threshold = bracket.low;
  if (hint) *hint = threshold;
  for (std::size_t j = 0; j < size; ++j) mask[j] = keys[j] >= threshold;
  // Too many only where ties straddle the k-th place: drop the last ones.
  for (std::size_t j = size, extra = bracket.above_low - k; extra > 0 && j-- > 0;)
    if (keys[j] == threshold) mask[j] = 0, --extra;
}

// Independent small selections ("lanes") that run side by side in the lanes of a register: lane l takes the `length`
// entries begin(l), begin(l) + stride, ... of a strip.
struct Lanes {
  std::size_t count, length, stride;
  std::size_t per_row, row_stride, step;
  std::size_t begin(std::size_t lane) const { return lane / per_row * row_stride + lane % per_row * step; }
};

#if defined(__AVX512F__)
constexpr std::size_t kRegister = 64;
#elif defined(__AVX2__)
constexpr std::size_t kRegister = 32;
#else
constexpr std::size_t kRegister = 16;
#endif
template <class K> constexpr std::size_t kWidth = kRegister / sizeof(K);
template <class K> struct Register { typedef K type __attribute__((vector_size(kRegister))); };
constexpr std::size_t kCountRanks = 8;  // up to this length comparing all pairs beats bisection

// The k-th largest key of every lane by bisection, all lanes at once; counts of keys >= it.
template <class K, class V>
void lane_thresholds(const V* keys, std::size_t length, K k, V& threshold, V& above) {
  V low = keys[0], high = keys[0];
  for (std::size_t i = 1; i < length; ++i) {
    low = keys[i] < low ? keys[i] : low;
    high = keys[i] > high ? keys[i] : high;
  }
  ++high;
  V count = V{} + static_cast<K>(length);
  for (;;) {
    const V open = (count != k) & (low + 1 != high);
    bool any = false;
    for (std::size_t l = 0; l < kWidth<K>; ++l) any |= open[l] != 0;
    if (!any) break;
    const V at = (low & high) + ((low ^ high) >> 1);
    V at_least{};
    for (std::size_t i = 0; i < length; ++i) at_least -= keys[i] >= at;
    const V enough = at_least >= k;
    low = (open & enough) ? at : low;
    count = (open & enough) ? at_least : count;
    high = (open & ~enough) ? at : high;
  }
  threshold = low;
  above = count;
}

// Replaces every key by -1 where it is among the k largest of its lane, else 0.
template <class K, class V> void keep_by_rank(V* keys, std::size_t length, K k) {
  V kept[kCountRanks];
  for (std::size_t i = 0; i < length; ++i) {
    V rank{};
    for (std::size_t j = 0; j < length; ++j) rank -= j < i ? keys[j] >= keys[i] : keys[j] > keys[i];
    kept[i] = rank < k;
  }
  for (std::size_t i = 0; i < length; ++i) keys[i] = kept[i];
}

template <class K, class V> void keep_by_threshold(V* keys, std::size_t length, K k) {
  V threshold, extra;
  lane_thresholds<K>(keys, length, k, threshold, extra);
  extra -= k;
  for (std::size_t i = length; i-- > 0;) {  // ties: the last ones go
    const V dropped = (keys[i] == threshold) & (extra > 0);
    extra += dropped;
    keys[i] = (keys[i] >= threshold) & ~dropped;
  }
}

template <class T>
void select_register(const T* gain, std::uint8_t* mask, const Lanes& lanes, std::size_t first, std::size_t k,
                     typename Register<Key<T>>::type* keys) {
  using K = Key<T>;
  constexpr std::size_t width = kWidth<K>;
  std::size_t begin[width];
  // Lanes past the end repeat the last one: they write the same mask again.
  for (std::size_t l = 0; l < width; ++l) begin[l] = lanes.begin(std::min(first + l, lanes.count - 1));
  for (std::size_t i = 0; i < lanes.length; ++i) {
    K row[width];
    for (std::size_t l = 0; l < width; ++l) row[l] = to_key(gain[begin[l] + i * lanes.stride]);
    std::memcpy(&keys[i], row, sizeof row);
  }
  if (lanes.length <= kCountRanks) keep_by_rank<K>(keys, lanes.length, static_cast<K>(k));
  else keep_by_threshold<K>(keys, lanes.length, static_cast<K>(k));
  for (std::size_t i = 0; i < lanes.length; ++i)
    for (std::size_t l = 0; l < width; ++l) mask[begin[l] + i * lanes.stride] = keys[i][l] != 0;
}

template <class T> void select_lanes(View<const T> gain, Mask mask, const Lanes& lanes, std::size_t k) {
  if (k == 0 || k >= lanes.length) return void(std::memset(mask.data, k != 0, mask.size()));
  using V = typename Register<Key<T>>::type;
  std::vector<V> keys(lanes.length);
  for (std::size_t first = 0; first < lanes.count; first += kWidth<Key<T>>)
    select_register(gain.data, mask.data, lanes, first, k, keys.data());
}

template <class T> void select_blocks(View<const T> gain, Mask mask, const BlockSparse& support) {
  const std::size_t blocks = gain.cols / support.cols;
  std::vector<double> total(blocks);
  std::vector<Key<double>> keys(blocks);
  std::vector<std::uint8_t> kept(blocks);
  for (std::size_t strip = 0; strip < gain.rows; strip += support.rows) {
    // The reference's order of additions: columns of a row, then rows.
    std::fill(total.begin(), total.end(), 0.0);
    for (std::size_t i = 0; i < support.rows; ++i)
      for (std::size_t b = 0; b < blocks; ++b)
        for (std::size_t j = 0; j < support.cols; ++j) total[b] += gain.row(strip + i)[b * support.cols + j];
    select_row<double>(total.data(), kept.data(), blocks, support.k, keys.data(), nullptr);
    for (std::size_t i = 0; i < support.rows; ++i)
      for (std::size_t b = 0; b < blocks; ++b)
        std::memset(mask.row(strip + i) + b * support.cols, kept[b], support.cols);
  }
}

}  // namespace

std::size_t strip_rows(const Support& support) {
  if (const auto* blocks = std::get_if<BlockSparse>(&support)) return blocks->rows;
  return std::holds_alternative<NM>(support) || std::holds_alternative<BalancedBlock>(support) ? kStrip : 1;
}

template <class T>
void select(const Support& support, View<const T> gain, Mask mask, std::size_t first_row, Key<T>* hints) {
  const std::size_t d = gain.cols;
  std::visit(Cases{[&](Dense) { std::memset(mask.data, 1, mask.size()); },
                   [&](const RowSparse& s) {
                     std::vector<Key<T>> keys(d);
                     for (std::size_t i = 0; i < gain.rows; ++i)
                       select_row(gain.row(i), mask.row(i), d, s.count(first_row + i), keys.data(),
                                  hints ? hints + i : nullptr);
                   },
                   [&](NM s) {
                     const std::size_t groups = d / s.m;
                     select_lanes(gain, mask, Lanes{gain.rows * groups, s.m, 1, groups, d, s.m}, s.n);
                   },
                   [&](BalancedBlock s) {
                     const std::size_t blocks = d / s.block;
                     select_lanes(gain, mask, Lanes{gain.rows * blocks, s.block, blocks, blocks, d, 1}, s.k);
                   },
                   [&](BlockSparse s) { select_blocks(gain, mask, s); }},
             support);
}

template void select(const Support&, View<const float>, Mask, std::size_t, Key<float>*);
template void select(const Support&, View<const double>, Mask, std::size_t, Key<double>*);

}  // namespace awp
