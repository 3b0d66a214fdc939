// Every table this machine runs against the reference; refusal of packed bytes that are not what they claim to be.
#include <algorithm>
#include <atomic>
#include <thread>

#include "../kernels/expansion.h"
#include "sparse_checks.hpp"

using namespace awp_test;

namespace {

void run_here(void*, void (*task)(void*, std::size_t), std::size_t count, void* data) {
  for (std::size_t i = 0; i < count; ++i) task(data, i);
}

void run_on_three(void*, void (*task)(void*, std::size_t), std::size_t count, void* data) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i; (i = next++) < count;) task(data, i);
  };
  std::thread others[] = {std::thread(work), std::thread(work)};
  work();
  for (std::thread& other : others) other.join();
}

// Changes one thing at random; the answer is a refusal or a weight that every table can multiply by.
void test_damaged(unsigned seed) {
  std::mt19937 random(seed);
  const std::vector<Case> all = cases();
  Sample sample(all[random() % all.size()], seed);
  Packed packed = sample.packed();
  std::int64_t* numbers[] = {&packed.rows, &packed.inputs, &packed.group, &packed.kept, &packed.gated};
  std::size_t* sizes[] = {&packed.n_masks, &packed.n_codes, &packed.n_scales, &packed.n_zeros, &packed.n_offsets};
  const std::int64_t odd[] = {-1, 0, 1, 63, 65, 128, std::int64_t{1} << 31, std::int64_t{1} << 62, INT64_MIN, INT64_MAX};
  auto* masks = const_cast<std::uint64_t*>(packed.masks);
  auto* offsets = const_cast<std::uint64_t*>(packed.offsets);
  switch (random() % 6) {
    case 0: *numbers[random() % 5] = odd[random() % 10]; break;
    case 1: *numbers[random() % 5] += random() % 2 ? 1 : -1; break;
    case 2: *sizes[random() % 5] = random() % 2 ? 0 : std::size_t{1} << random() % 64; break;
    case 3: masks[random() % packed.n_masks] ^= std::uint64_t{1} << random() % 64; break;
    case 4: packed.n_codes -= std::min<std::size_t>(packed.n_codes, 1 + random() % 200); break;
    default:
      if (offsets) offsets[random() % packed.n_offsets] ^= std::uint64_t{1} << random() % 64;
      else packed.zeros = nullptr;
  }
  Weights w;
  // A size larger than its memory cannot be told from here; the caller, who knows the tensor, gives true sizes.
  const Packed& real = sample.packed();
  if (packed.n_masks > real.n_masks || packed.n_codes > real.n_codes || packed.n_scales > real.n_scales ||
      packed.n_zeros > real.n_zeros || packed.n_offsets > real.n_offsets)
    return;
  if (check(packed, &w) != nullptr) return;
  const std::vector<float> x = normal<float>(5 * w.inputs, seed);
  std::vector<float> y(5 * w.rows);
  for (const char* isa : {"base", "avx2", "avx512", "avx512vnni", "neon", "neondot"})
    if (const Table* table = choose(isa))
      for (const std::size_t rows : {1, 5})
        check(multiply(w, *table, {x.data(), rows, seed % 2 == 0, Level::int8_inputs}, y.data(), {run_here, nullptr}), "multiply");
}

// Whole rows through the driver: interleaving, few and many rows, a last tile that is not full.
void test_driver() {
  Sample sample({19, 3, 64, 32, true, false}, 3);
  Weights w;
  check(check(sample.packed(), &w) == nullptr, "check");
  const std::vector<float> x = normal<float>(9 * w.inputs, 4);
  std::vector<float> turned(x.size()), one(9 * w.rows), all(9 * w.rows), again(9 * w.rows);
  for (std::size_t row = 0; row < 9; ++row)
    for (std::size_t i = 0; i < w.inputs; ++i)
      turned[row * w.inputs + i] = x[row * w.inputs + i % kBlock * w.blocks() + i / kBlock];
  const Table& table = *choose("");
  const Parallel here{run_here, nullptr};
  for (std::size_t row = 0; row < 9; ++row)
    multiply(w, table, {x.data() + row * w.inputs, 1, true, Level::int8_inputs}, one.data() + row * w.rows, here);
  multiply(w, table, {x.data(), 9, true, Level::int8_inputs}, all.data(), here);
  multiply(w, table, {turned.data(), 9, false, Level::int8_inputs}, again.data(), here);
  check(one == all, "one row and nine rows");
  check(one == again, "interleaved inputs");
  check(multiply(w, table, {x.data(), 0, true, Level::int8_inputs}, nullptr, here), "no rows");
}

// Weights that were expanded beforehand give the bits of `decode`.
void test_nibbles(const char* isa) {
  const Table* table = choose(isa);
  if (!table || !table->decode_nibbles) return;
  unsigned seed = 0;
  for (const Case& c : cases()) {
    Sample sample(c, ++seed);
    if (seed % 3 == 0) sample.enlarge();
    Weights w;
    check(check(sample.packed(), &w) == nullptr, "check");
    const std::size_t bytes = nibble_bytes(w, *table);
    check((bytes == 0) == (c.kept >= 0 && c.kept <= 16), "what is expanded", c.kept);
    if (bytes == 0) continue;
    Fenced nibbles(bytes, c.at_start);
    const std::vector<float> x = normal<float>(2 * w.inputs, seed);
    const Inputs in{x.data(), 2, true, Level::int8_inputs};
    std::vector<float> stored(2 * w.rows), expanded(2 * w.rows);
    check(multiply(w, *table, in, stored.data(), {run_here, nullptr}), "multiply");
    check(fill_nibbles(w, *table, nibbles.as<std::uint8_t>(), {run_on_three, nullptr}), "fill_nibbles");
    w.nibbles = nibbles.as<std::uint8_t>();
    check(multiply(w, *table, in, expanded.data(), {run_here, nullptr}), "multiply");
    check(stored == expanded, "expanded weights", c.kept, static_cast<long>(w.blocks()));
  }
}

using Form = Trial::Form;

// One product of each form at a time, taking what it is said to.
void run_trial(Trial& trial, std::int64_t stored, std::int64_t expanded) {
  for (std::size_t i = 0; !trial.decided(); ++i) {
    const Form form = trial.next();
    const std::int64_t time = form == Form::stored ? stored : expanded;
    trial.took(form, i % 5 == 0 ? 100 * time : time);  // some are disturbed
    check(i < 4 * (Trial::kSkipped + Trial::kTimed), "a trial ends");
  }
}

void test_trial() {
  Trial one, other;
  run_trial(one, 7, 8);
  check(one.next() == Form::stored && one.next() == Form::stored, "stored is sooner");
  run_trial(other, 8, 7);
  other.took(Form::stored, 1);
  check(other.next() == Form::expanded, "expanded is sooner");
  // Two weights of a shape in every layer, one of which takes longer in either form: by turns it would be the stored one.
  Trial pairs;
  for (std::size_t i = 0; !pairs.decided(); ++i) {
    const Form form = pairs.next();
    pairs.took(form, (form == Form::stored ? 100 : 103) + (i % 2 == 0 ? 20 : 0));
  }
  check(pairs.next() == Form::stored, "a weight that takes longer decides nothing");
}

// Products of several threads before, at and after the decision have the bits of one; the copy goes where it has lost.
void test_expansion(const char* isa) {
  const Table* table = choose(isa);
  if (!table || !table->decode_nibbles) return;
  for (const bool wins : {false, true}) {
    Sample sample({80, 6, 64, wins ? 40 : 32, true, false}, 10);
    Weights w;
    check(check(sample.packed(), &w) == nullptr, "check");
    Trial& trial = *trial_of(w, *table);
    const std::vector<float> x = normal<float>(2 * w.inputs, 11);
    const Inputs in{x.data(), 1, true, Level::int8_inputs}, two{x.data(), 2, true, Level::int8_inputs};
    std::vector<float> wanted(2 * w.rows);
    check(multiply(w, *table, two, wanted.data(), {run_here, nullptr}), "multiply");
    Expansion expansion;
    expansion.prepare(w, *table);
    check(expansion.multiply(w, *table, {x.data(), 0, true, Level::int8_inputs}, nullptr, {run_here, nullptr}), "no rows");
    check(!expansion.held(), "no copy before it is wanted");
    const auto work = [&] {
      std::vector<float> y(2 * w.rows);
      for (std::size_t i = 0; i < 40; ++i) {
        const Inputs& rows = i % 8 == 0 ? two : in;
        check(expansion.multiply(w, *table, rows, y.data(), {run_here, nullptr}), "multiply");
        check(std::equal(y.begin(), y.begin() + static_cast<std::ptrdiff_t>(rows.rows * w.rows), wanted.begin()), "either form");
        if (i == 20) run_trial(trial, wins ? 1 << 30 : 0, wins ? 0 : 1 << 30);
      }
    };
    std::thread others[] = {std::thread(work), std::thread(work)};
    work();
    for (std::thread& thread : others) thread.join();
    std::vector<float> y(w.rows);
    check(expansion.multiply(w, *table, in, y.data(), {run_here, nullptr}), "multiply");
    check(expansion.held() == wins, "the copy that lost goes");
    Expansion later;
    later.prepare(w, *table);
    check(later.multiply(w, *table, in, y.data(), {run_here, nullptr}) && later.held() == wins, "a later weight of the shape");
  }
}

// Several threads give the bits of one, for few rows and for many.
void test_threads(const char* isa) {
  const Table* table = choose(isa);
  if (!table) return;
  for (const int kept : {32, -1}) {
    Sample sample({259, 8, 64, kept, true, false}, 6);  // four tasks, the last tile not full
    Weights w;
    check(check(sample.packed(), &w) == nullptr, "check");
    const std::vector<float> x = normal<float>(40 * w.inputs, 7);
    for (const std::size_t rows : {1, 4, 40})
      for (const Level level : {Level::float_inputs, Level::int8_inputs}) {
        std::vector<float> one(rows * w.rows), three(one.size());
        const Inputs in{x.data(), rows, true, level};
        check(multiply(w, *table, in, one.data(), {run_here, nullptr}), "multiply");
        check(multiply(w, *table, in, three.data(), {run_on_three, nullptr}), "multiply");
        check(one == three, "threads of the kernels", kept, static_cast<long>(rows));
      }
  }
}

// A gated product is silu of the first half of the rows times the second, on any number of threads.
void test_gate(const char* isa) {
  const Table* table = choose(isa);
  if (!table) return;
  for (const int kept : {32, -1}) {
    Sample sample({192, 8, 64, kept, true, false}, 8);
    Packed packed = sample.packed();
    Weights plain, gated;
    check(check(packed, &plain) == nullptr, "check");
    packed.gated = 1;
    check(check(packed, &gated) == nullptr && gated.outputs() == 96, "a gated weight");
    const std::vector<float> x = normal<float>(9 * plain.inputs, 9);
    for (const std::size_t rows : {1, 9})
      for (const Level level : {Level::float_inputs, Level::int8_inputs}) {
        std::vector<float> both(rows * 192), one(rows * 96), three(one.size());
        const Inputs in{x.data(), rows, true, level};
        check(multiply(plain, *table, in, both.data(), {run_here, nullptr}), "multiply");
        check(multiply(gated, *table, in, one.data(), {run_here, nullptr}), "multiply");
        check(multiply(gated, *table, in, three.data(), {run_on_three, nullptr}), "multiply");
        check(one == three, "threads of a gated product", kept, static_cast<long>(rows));
        for (std::size_t i = 0; i < one.size(); ++i) {
          const double gate = both[i / 96 * 192 + i % 96], up = both[i / 96 * 192 + 96 + i % 96];
          const double wanted = gate / (1 + std::exp(-gate)) * up;
          check(std::abs(one[i] - wanted) <= 1e-6 * std::abs(wanted) + 1e-30, "a gated product", kept, static_cast<long>(i));
        }
      }
    packed.gated = 2;
    check(check(packed, &gated) != nullptr, "gated is 0 or 1");
    packed.gated = 1, packed.rows = 176;
    check(check(packed, &gated) != nullptr, "a gate in whole tiles");
  }
}

void test_quantize() {
  Sample sample({16, 1, 64, 32, false, false}, 3);
  Weights w;
  check(check(sample.packed(), &w) == nullptr, "check");
  std::vector<float> x(64, 0.0f);
  std::int8_t values[64];
  float scale;
  std::int32_t sum;
  kReference.quantize(w, x.data(), false, values, &scale, &sum);
  check(scale == 0 && sum == 0, "zeros");
  x[3] = -2;
  x[4] = 1;
  kReference.quantize(w, x.data(), false, values, &scale, &sum);
  check(values[3] == -127 && values[4] == 64 && sum == -63 && scale == 2.0f / 127, "halves go to even");
  x[9] = INFINITY;
  kReference.quantize(w, x.data(), false, values, &scale, &sum);
  check(std::isnan(scale) && sum == 0, "infinity");
  x[9] = std::nanf("");
  kReference.quantize(w, x.data(), false, values, &scale, &sum);
  check(std::isnan(scale), "NaN");
  x.assign(64, 1e-45f);
  kReference.quantize(w, x.data(), false, values, &scale, &sum);
  check(sum == 0, "subnormal");
}

}  // namespace

// test_sparse [how many damaged weights]
int main(int argc, char** argv) {
  unsetenv("AWP_EXPAND");
  const unsigned damaged = argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : 3000;
  for (const char* isa : {"avx2", "avx512", "avx512vnni", "neon", "neondot"})
    if (const Table* table = choose(isa)) {
      std::printf("%s\n", table->name);
      check_table(*table);
    }
  check(choose("nonsense") == nullptr && choose("base") == &kReference, "choose");
  test_driver();
  for (const char* isa : {"base", "avx2", "avx512", "avx512vnni", "neon", "neondot"})
    test_threads(isa), test_gate(isa), test_nibbles(isa), test_expansion(isa);
  test_trial();
  test_quantize();
  for (unsigned seed = 0; seed < damaged; ++seed) test_damaged(seed);
  return result("sparse");
}
