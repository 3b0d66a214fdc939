#include "awp/swap.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "awp/cholesky.hpp"
#include "awp/parallel.hpp"

namespace awp {

namespace {

using Columns = std::vector<std::size_t>;

constexpr double kTolerance = 1e-7;
constexpr std::size_t kTenure = 8;  // swaps for which an exchanged entry stays where it is

// A small dense symmetric problem 1/2 y A y - b y with a support S, swapped to a 1-swap optimum and beyond.
//
// The tableau is A swept on S (Goodnight 1979): with P = (A_SS)^-1 and N the rest it holds -P at (S, S), P A_SN and its
// transpose at (S, N), A_NN - A_NS P A_SN at (N, N), and beside it t = P b_S and g = b_N - A_NS t. Moving an entry in or
// out is one sweep.
class SmallProblem {
 public:
  std::size_t n = 0;
  std::vector<double> a, b, y, labels;  // A (n x n), b, the solution, and labels as exact as they come
  std::vector<char> inside;             // the support

  void resize(std::size_t size) {
    n = size;
    a.resize(n * n);
    for (auto* part : {&b, &y, &labels, &first_, &second_, &precision_, &shift_, &loss_, &label_, &enough_, &gain_})
      part->resize(n);
    inside.resize(n);
    until_.assign(n, 0);
  }

  // Overwrites A and b by the tableau; y is that of the best support met.
  void solve(std::size_t patience) {
    right_ = b;
    for (std::size_t i = 0; i < n; ++i)
      if (inside[i]) enter(i);
    keep();
    double fallen = 0, most = 0;  // what f fell by so far, and at the best support
    Pair pair;
    for (std::size_t step = 0, since = 0; step < 2 * n * (1 + patience); ++step) {
      const double enough = most - fallen + prepare();
      if (!best_pair(step, enough, &pair)) return;
      const bool better = pair.gain > enough;
      if (!better && since == patience) return;
      exchange(pair.leaving, pair.entering);
      inside[pair.leaving] = 0;
      inside[pair.entering] = 1;
      until_[pair.leaving] = until_[pair.entering] = step + 1 + kTenure;
      fallen += pair.gain;
      ++since;
      if (better) {
        most = fallen;
        since = 0;
        keep();
      }
    }
  }

 private:
  struct Pair {
    std::size_t entering = 0, leaving = 0;
    double gain = 0;
  };

  void keep() {
    for (std::size_t i = 0; i < n; ++i) y[i] = inside[i] ? b[i] : 0;
  }

  // Moves k into the support.
  void enter(std::size_t k) {
    double* row = &a[k * n];
    const double inverse = 1 / row[k];
    std::copy(row, row + n, first_.begin());
    for (std::size_t i = 0; i < n; ++i) {
      if (i == k) continue;
      const double share = first_[i] * inverse;
      double* to = &a[i * n];
#pragma omp simd
      for (std::size_t j = 0; j < n; ++j) to[j] -= share * first_[j];
      to[k] = share;
    }
    for (std::size_t j = 0; j < n; ++j) row[j] = first_[j] * inverse;
    row[k] = -inverse;
    move(first_, k, inverse, 1);
  }

  // Moves u out of the support, then p into it: both sweeps in one pass over the tableau.
  void exchange(std::size_t u, std::size_t p) {
    double *row_u = &a[u * n], *row_p = &a[p * n];
    const double inverse_u = 1 / row_u[u], share_p = row_p[u] * inverse_u;
    std::copy(row_u, row_u + n, first_.begin());
#pragma omp simd
    for (std::size_t j = 0; j < n; ++j) {
      row_u[j] = -first_[j] * inverse_u;
      second_[j] = row_p[j] - share_p * first_[j];  // row p without u
    }
    row_u[u] = -inverse_u;
    second_[u] = -share_p;
    const double inverse_p = 1 / second_[p], share_u = second_[u] * inverse_p;
    for (std::size_t i = 0; i < n; ++i) {
      if (i == u || i == p) continue;
      const double out = first_[i] * inverse_u, in = second_[i] * inverse_p;
      double* to = &a[i * n];
#pragma omp simd
      for (std::size_t j = 0; j < n; ++j) to[j] -= out * first_[j] + in * second_[j];
      to[u] = -out - in * second_[u];
      to[p] = in;
    }
#pragma omp simd
    for (std::size_t j = 0; j < n; ++j) {
      row_u[j] -= share_u * second_[j];
      row_p[j] = second_[j] * inverse_p;
    }
    row_u[p] = share_u;
    row_p[p] = -inverse_p;
    move(first_, u, inverse_u, -1);
    move(second_, p, inverse_p, 1);
  }

  // b after the sweep on k, from the row of k before it: sign 1 into the support, -1 out of it.
  void move(const std::vector<double>& row, std::size_t k, double inverse, double sign) {
    const double moved = b[k] * inverse;
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) b[i] -= row[i] * moved;
    b[k] = sign * moved;
  }

  // What the gains of all pairs share, for the support in order; returns the least gain that counts.
  double prepare() {
    kept_.clear();
    double energy = 0;
    for (std::size_t u = 0; u < n; ++u) {
      if (!inside[u]) continue;
      const std::size_t i = kept_.size();
      const double t = b[u], precision = -1 / a[u * n + u];
      kept_.push_back(u);
      energy += t * right_[u];
      precision_[i] = precision;
      shift_[i] = t * precision;
      loss_[i] = t * t * precision / 2;
      label_[i] = labels[u];
    }
    return kTolerance * energy;
  }

  // The pair with the largest gain, the first of equals, of those that may move or gain enough; false where none may.
  bool best_pair(std::size_t step, double enough, Pair* best) {
    constexpr double none = -std::numeric_limits<double>::infinity();
    const std::size_t m = kept_.size();
    best->gain = none;
    for (std::size_t i = 0; i < m; ++i) enough_[i] = until_[kept_[i]] <= step ? none : enough;
    for (std::size_t p = 0; p < n; ++p) {
      if (inside[p]) continue;
      const double *row = &a[p * n], left = row[p], gradient = b[p], label = labels[p];
      const double least = until_[p] <= step ? none : enough;
#pragma omp simd
      for (std::size_t i = 0; i < m; ++i) {
        const double x = row[kept_[i]], raised = gradient + x * shift_[i];
        const double gain = raised * raised / (2 * (left + x * x * precision_[i])) - loss_[i];
        const bool may = (label_[i] == label) & (gain > enough_[i]) & (gain > least);
        gain_[i] = may ? gain : none;
      }
      const double largest = largest_gain(m);
      if (largest > best->gain)
        *best = {p, kept_[static_cast<std::size_t>(std::find(gain_.begin(), gain_.end(), largest) - gain_.begin())],
                 largest};
    }
    return std::isfinite(best->gain);
  }

  // The largest of the first m gains: of eight partial maxima, so that they are found side by side.
  double largest_gain(std::size_t m) const {
    constexpr std::size_t lanes = 8;
    double most[lanes];
    std::fill_n(most, lanes, -std::numeric_limits<double>::infinity());
    std::size_t u = 0;
    for (; u + lanes <= m; u += lanes)
#pragma omp simd
      for (std::size_t lane = 0; lane < lanes; ++lane)
        most[lane] = gain_[u + lane] > most[lane] ? gain_[u + lane] : most[lane];
    for (; u < m; ++u) most[0] = std::max(most[0], gain_[u]);
    return *std::max_element(most, most + lanes);
  }

  std::vector<double> first_, second_, right_;  // rows that are swept; b as given
  std::vector<std::size_t> until_;  // the step from which an entry may move again
  Columns kept_;  // the support; below, one number for each of its entries
  std::vector<double> precision_, shift_, loss_, label_;  // 1 / P_uu, t_u / P_uu, t_u^2 / (2 P_uu)
  std::vector<double> enough_, gain_;                     // what a pair must gain; gains of one p
};

// One thread's row: the fixed weights first, which a Cholesky factor eliminates, then the candidates.
template <class T> class RowSwap {
 public:
  void run(const SwapProblem<T>& problem, std::size_t row, T* theta, const SwapOptions& options) {
    choose(problem, row, theta, options.candidates);
    if (n_leaving_ == 0 || promised() < problem.least.data[row]) return;
    factor(problem.gram);
    forward(problem.gradient.row(row));
    reduce(problem, theta);
    small_.solve(options.patience);
    write(theta);
  }

 private:
  // Pairs of equal label and place, those with the largest g^2 - theta^2 first.
  void choose(const SwapProblem<T>& problem, std::size_t row, const T* theta, std::size_t candidates) {
    const std::uint8_t* mask = problem.mask.row(row);
    const T* gradient = problem.gradient.row(row);
    const std::int64_t* labels = problem.labels.data;
    inside_.clear();
    outside_.clear();
    for (std::size_t j = 0; j < problem.mask.cols; ++j) {
      if (mask[j]) inside_.push_back({labels[j], std::abs(theta[j]), j});
      else outside_.push_back({labels[j], -std::abs(gradient[j]), j});
    }
    rank(inside_, candidates);
    rank(outside_, candidates);
    pairs_.clear();
    for (std::size_t i = 0, j = 0; i < inside_.size() && j < outside_.size();) {
      const Ranked &u = inside_[i], &p = outside_[j];
      if (u.label == p.label) pairs_.push_back({u.size * u.size - p.size * p.size, u.column, p.column});
      i += u.label <= p.label;
      j += p.label <= u.label;
    }
    std::stable_sort(pairs_.begin(), pairs_.end(), [](const Pair& a, const Pair& b) { return a.loss < b.loss; });
    pairs_.resize(std::min(candidates, pairs_.size()));
    order(problem.mask.cols, mask);
  }

  struct Ranked {
    std::int64_t label;
    T size;
    std::size_t column;
    bool operator<(const Ranked& other) const {
      return std::tie(label, size, column) < std::tie(other.label, other.size, other.column);
    }
  };

  // In order; where all have one label, only the first `count`.
  static void rank(std::vector<Ranked>& columns, std::size_t count) {
    const auto other = [&](const Ranked& one) { return one.label != columns.front().label; };
    if (std::any_of(columns.begin(), columns.end(), other)) return std::sort(columns.begin(), columns.end());
    const std::size_t size = std::min(count, columns.size());
    const auto smaller = [](const Ranked& one, const Ranked& another) {
      return one.size < another.size || (one.size == another.size && one.column < another.column);
    };
    std::nth_element(columns.begin(), columns.begin() + static_cast<std::ptrdiff_t>(size), columns.end(), smaller);
    columns.resize(size);
    std::sort(columns.begin(), columns.end(), smaller);
  }

  // The gain that the candidates' sizes promise.
  double promised() const {
    double sum = 0;
    for (const Pair& pair : pairs_) sum -= std::min(static_cast<double>(pair.loss), 0.0);
    return sum / 2;
  }

  // The fixed columns in order, then those that may leave, then those that may enter.
  void order(std::size_t d, const std::uint8_t* mask) {
    n_leaving_ = pairs_.size();
    std::vector<char> leaves(d, 0);
    for (const Pair& pair : pairs_) leaves[pair.kept] = 1;
    order_.clear();
    for (std::size_t j = 0; j < d; ++j)
      if (mask[j] && !leaves[j]) order_.push_back(j);
    n_fixed_ = order_.size();
    for (const Pair& pair : pairs_) order_.push_back(pair.kept);
    for (const Pair& pair : pairs_) order_.push_back(pair.absent);
  }

  void factor(View<const T> gram) {
    const std::size_t k = order_.size();
    upper_.resize(k * k);
    T largest = 0;
    for (std::size_t i = 0; i < k; ++i) {
      const T* from = gram.row(order_[i]);
      T* to = &upper_[i * k];
      for (std::size_t j = i; j < k; ++j) to[j] = from[order_[j]];
      largest = std::max(largest, to[i]);
    }
    const T ridge = T(1e-6) * std::max(largest, std::numeric_limits<T>::min());
    for (std::size_t i = 0; i < k; ++i) upper_[i * k + i] += ridge;
    cholesky<T>(upper_.data(), k, n_fixed_);
  }

  // U_BB^T seen_B = g_B; seen_Q = g_Q - U_BQ^T seen_B.
  void forward(const T* gradient) {
    const std::size_t k = order_.size();
    seen_.resize(k);
    for (std::size_t i = 0; i < k; ++i) seen_[i] = gradient[order_[i]];
    for (std::size_t i = 0; i < n_fixed_; ++i) {
      const T* row = &upper_[i * k];
      const double found = seen_[i] /= static_cast<double>(row[i]);
#pragma omp simd
      for (std::size_t j = i + 1; j < k; ++j) seen_[j] -= static_cast<double>(row[j]) * found;
    }
  }

  // A is what the fixed weights leave of C_QQ, and b = A theta_Q + seen_Q.
  void reduce(const SwapProblem<T>& problem, const T* theta) {
    const std::size_t k = order_.size(), q = k - n_fixed_;
    small_.resize(q);
    for (std::size_t i = 0; i < q; ++i) {
      const T* left = &upper_[(n_fixed_ + i) * k + n_fixed_];
      for (std::size_t j = i; j < q; ++j) small_.a[i * q + j] = small_.a[j * q + i] = static_cast<double>(left[j]);
    }
    for (std::size_t i = 0; i < q; ++i) {
      double sum = seen_[n_fixed_ + i];
      for (std::size_t j = 0; j < q; ++j) sum += small_.a[i * q + j] * static_cast<double>(theta[order_[n_fixed_ + j]]);
      small_.b[i] = sum;
      small_.inside[i] = i < n_leaving_;
      small_.labels[i] = static_cast<double>(problem.labels.data[order_[n_fixed_ + i]]);
    }
  }

  // The candidates take their new values, the fixed weights move along: U_BB delta = seen_B - U_BQ (y - y_0).
  void write(T* theta) {
    const std::size_t k = order_.size();
    for (std::size_t i = n_fixed_; i < k; ++i) {
      T& value = theta[order_[i]];
      seen_[i] = small_.y[i - n_fixed_] - static_cast<double>(value);
      value = static_cast<T>(small_.y[i - n_fixed_]);
    }
    for (std::size_t i = n_fixed_; i-- > 0;) {
      const T* row = &upper_[i * k];
      double sum = seen_[i];
#pragma omp simd reduction(- : sum)
      for (std::size_t j = i + 1; j < k; ++j) sum -= static_cast<double>(row[j]) * seen_[j];
      seen_[i] = sum / static_cast<double>(row[i]);
      theta[order_[i]] += static_cast<T>(seen_[i]);
    }
  }

  struct Pair {
    T loss;
    std::size_t kept, absent;
  };
  std::vector<Ranked> inside_, outside_;
  std::vector<Pair> pairs_;
  Columns order_;  // columns of the factor: fixed, leaving, entering
  std::size_t n_fixed_ = 0, n_leaving_ = 0;
  std::vector<T> upper_;
  std::vector<double> seen_;
  SmallProblem small_;
};

}  // namespace

template <class T> void swap(const SwapProblem<T>& problem, View<T> theta, const SwapOptions& options) {
  ThreadPool pool(options.threads, options.checkpoint);
  std::vector<RowSwap<T>> rows(pool.threads());
  pool.parallel_for(theta.rows, [&](std::size_t row, std::size_t thread) {
    rows[thread].run(problem, row, theta.row(row), options);
  });
}

template void swap(const SwapProblem<float>&, View<float>, const SwapOptions&);
template void swap(const SwapProblem<double>&, View<double>, const SwapOptions&);

}  // namespace awp
