#include "expansion.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>

namespace awp::kernels {
namespace {

constexpr std::size_t kFewCodes = 16;  // of a block; they decode fast enough everywhere

bool wished(const char* value) {
  const char* wish = std::getenv("AWP_EXPAND");
  return wish != nullptr && std::strcmp(wish, value) == 0;
}

// What must be equal for two weights to take the same time.
struct Shape {
  const Table* table;
  std::size_t rows, inputs, group, kept;
  bool fixed, gated;

  Shape(const Weights& w, const Table& t)
      : table(&t), rows(w.rows), inputs(w.inputs), group(w.group), kept(w.kept), fixed(w.offsets == nullptr), gated(w.gated) {}
  bool operator==(const Shape& o) const {
    return table == o.table && rows == o.rows && inputs == o.inputs && group == o.group && kept == o.kept &&
           fixed == o.fixed && gated == o.gated;
  }
};

struct Entry {
  Shape shape;
  Entry* next;
  Trial trial;
  Entry(const Shape& s, Entry* n) : shape(s), next(n) {}
};

struct Filling {
  const Weights& w;
  const Table& table;
  std::uint8_t* out;
  std::atomic<bool> failed;

  void tile(std::size_t tile) {
    const Buffer<Expanded> expanded = allocate<Expanded>(w.inputs * kTile);
    if (!expanded) {
      failed = true;
      return;
    }
    table.expand(w, tile, expanded.get());
    std::uint8_t* to = out + tile * w.tile_nibbles();
    for (std::size_t block = 0; block < w.blocks(); ++block)
      for (std::size_t row = 0; row < kTile; ++row)
        for (std::size_t j = 0; j < kBlock / 2; ++j) {
          const Expanded* at = expanded.get() + (block * kBlock + j) / 4 * 4 * kTile + 4 * row + j % 4;
          *to++ = static_cast<std::uint8_t>(*at | at[kBlock / 2 * kTile] << 4);
        }
  }
};

}  // namespace

std::size_t nibble_bytes(const Weights& w, const Table& table) {
  const bool few = w.offsets == nullptr && w.kept <= kFewCodes;
  return table.decode_nibbles == nullptr || few || wished("0") ? 0 : w.tiles() * w.tile_nibbles();
}

bool fill_nibbles(const Weights& w, const Table& table, std::uint8_t* out, const Parallel& parallel) {
  Filling filling{w, table, out, {false}};
  const auto task = [](void* data, std::size_t tile) { static_cast<Filling*>(data)->tile(tile); };
  parallel.run(parallel.context, task, w.tiles(), &filling);
  return !filling.failed;
}

Trial::Form Trial::next() {
  if (decided()) return form_;
  const std::lock_guard<std::mutex> guard(lock_);
  if (decided()) return form_;
  return __builtin_parityll(products_++) ? Form::expanded : Form::stored;  // the sequence of Thue and Morse
}

void Trial::took(Form form, std::int64_t nanoseconds) {
  const std::lock_guard<std::mutex> guard(lock_);
  const auto which = static_cast<std::size_t>(form);
  if (decided() || count_[which] == kSkipped + kTimed) return;
  if (count_[which] >= kSkipped) times_[which][count_[which] - kSkipped] = nanoseconds;
  ++count_[which];
  if (std::min(count_[0], count_[1]) < kSkipped + kTimed) return;
  std::int64_t sums[2] = {};
  for (std::size_t i = 0; i < 2; ++i) {
    std::sort(times_[i], times_[i] + kTimed);
    for (std::size_t j = kTimed / 4; j < kTimed / 2; ++j) sums[i] += times_[i][j];
  }
  form_ = sums[1] < sums[0] ? Form::expanded : Form::stored;
  decided_.store(true, std::memory_order_release);
}

Trial* trial_of(const Weights& w, const Table& table) {
  static std::mutex lock;
  static Entry* first = nullptr;  // never freed: sessions may outlive this library's other objects
  const std::lock_guard<std::mutex> guard(lock);
  const Shape shape(w, table);
  for (Entry* entry = first; entry != nullptr; entry = entry->next)
    if (entry->shape == shape) return &entry->trial;
  Entry* made = new (std::nothrow) Entry(shape, first);
  if (made == nullptr) return nullptr;
  first = made;
  return &made->trial;
}

int expands(const Weights& w, const Table& table) {
  if (nibble_bytes(w, table) == 0) return 0;
  if (wished("1")) return 1;
  Trial* trial = trial_of(w, table);
  return trial == nullptr || !trial->decided() ? -1 : trial->next() == Trial::Form::expanded;
}

void Expansion::prepare(const Weights& w, const Table& table) {
  bytes_ = nibble_bytes(w, table);
  if (bytes_ == 0 || wished("1")) return;
  trial_ = trial_of(w, table);
  if (trial_ == nullptr) bytes_ = 0;
}

bool Expansion::multiply(const Weights& w, const Table& table, const Inputs& in, float* y, const Parallel& parallel) {
  using Clock = std::chrono::steady_clock;
  if (bytes_ == 0 || in.rows == 0 || !decodes(in)) return kernels::multiply(w, table, in, y, parallel);
  const bool decided = trial_ == nullptr || trial_->decided();
  const Trial::Form form = trial_ == nullptr ? Trial::Form::expanded : trial_->next();
  if (form == Trial::Form::expanded && !held() && !make(w, table, parallel)) return kernels::multiply(w, table, in, y, parallel);
  if (form == Trial::Form::stored && decided && held()) drop();
  const std::shared_lock<std::shared_mutex> reading(lock_);
  Weights used = w;
  used.nibbles = form == Trial::Form::expanded ? nibbles_.data() : nullptr;  // null where it lost meanwhile
  const Clock::time_point start = Clock::now();
  const bool done = kernels::multiply(used, table, in, y, parallel);
  const auto taken = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
  if (done && !decided) trial_->took(form, taken / static_cast<std::int64_t>(in.rows));
  return done;
}

bool Expansion::make(const Weights& w, const Table& table, const Parallel& parallel) {
  const std::unique_lock<std::shared_mutex> writing(lock_);
  if (held() || refused_) return held();
  if (!nibbles_.allocate(bytes_) || !fill_nibbles(w, table, nibbles_.data(), parallel)) {
    nibbles_.free();
    refused_ = true;
    return false;
  }
  held_.store(true, std::memory_order_release);
  return true;
}

// Frees the copy, unless a product reads it: then a later one does.
void Expansion::drop() {
  const std::unique_lock<std::shared_mutex> writing(lock_, std::try_to_lock);
  if (!writing) return;
  nibbles_.free();
  held_.store(false, std::memory_order_release);
}

}  // namespace awp::kernels
