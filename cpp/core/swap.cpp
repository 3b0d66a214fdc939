#include "awp/swap.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
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
  std::vector<double> a, b, y;       // A (n x n), b and the solution
  std::vector<std::int64_t> labels;  // (n)
  std::vector<char> inside;          // the support

  void resize(std::size_t size) {
    n = size;
    a.resize(n * n);
    for (auto* part : {&b, &y, &pivot_, &precision_, &shift_, &loss_, &gain_}) part->resize(n);
    labels.resize(n);
    inside.resize(n);
    until_.assign(n, 0);
  }

  // Overwrites A and b by the tableau; y is that of the best support met.
  void solve(std::size_t patience) {
    right_ = b;
    for (std::size_t i = 0; i < n; ++i)
      if (inside[i]) sweep(i, 1);
    keep();
    double fallen = 0, most = 0;  // what f fell by so far, and at the best support
    Pair pair;
    for (std::size_t step = 0, since = 0; step < 2 * n * (1 + patience); ++step) {
      const double enough = most - fallen + prepare();
      if (!best_pair(step, enough, &pair)) return;
      const bool better = pair.gain > enough;
      if (!better && since == patience) return;
      sweep(pair.leaving, -1);
      sweep(pair.entering, 1);
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

  // Moves k into the support (sign 1) or out of it (-1).
  void sweep(std::size_t k, double sign) {
    double* row = &a[k * n];
    const double inverse = 1 / row[k], moved = b[k] * inverse;
    std::copy(row, row + n, pivot_.begin());
    for (std::size_t i = 0; i < n; ++i) {
      if (i == k) continue;
      const double share = pivot_[i] * inverse;
      double* to = &a[i * n];
#pragma omp simd
      for (std::size_t j = 0; j < n; ++j) to[j] -= share * pivot_[j];
      to[k] = sign * share;
      b[i] -= pivot_[i] * moved;
    }
    for (std::size_t j = 0; j < n; ++j) row[j] = sign * pivot_[j] * inverse;
    row[k] = -inverse;
    b[k] = sign * moved;
  }

  // What the gains of all pairs share; returns the least gain that counts.
  double prepare() {
    double energy = 0;
    for (std::size_t u = 0; u < n; ++u) {
      const double t = b[u], precision = inside[u] ? -1 / a[u * n + u] : 0;
      energy += inside[u] ? t * right_[u] : 0;
      precision_[u] = precision;
      shift_[u] = t * precision;
      loss_[u] = inside[u] ? t * t * precision / 2 : std::numeric_limits<double>::infinity();
    }
    return kTolerance * energy;
  }

  // The pair with the largest gain, the first of equals, of those that may move or gain enough; false where none may.
  bool best_pair(std::size_t step, double enough, Pair* best) {
    best->gain = -std::numeric_limits<double>::infinity();
    for (std::size_t p = 0; p < n; ++p) {
      if (inside[p]) continue;
      const double *row = &a[p * n], left = row[p], gradient = b[p];
#pragma omp simd
      for (std::size_t u = 0; u < n; ++u) {
        const double raised = gradient + row[u] * shift_[u];
        gain_[u] = raised * raised / (2 * (left + row[u] * row[u] * precision_[u])) - loss_[u];
      }
      for (std::size_t u = 0; u < n; ++u) {
        const bool free = until_[p] <= step && until_[u] <= step;
        if (gain_[u] > best->gain && labels[p] == labels[u] && (free || gain_[u] > enough)) *best = {p, u, gain_[u]};
      }
    }
    return std::isfinite(best->gain);
  }

  std::vector<double> pivot_, right_;
  std::vector<std::size_t> until_;  // the step from which an entry may move again
  std::vector<double> precision_, shift_, loss_, gain_;  // 1 / P_uu, t_u / P_uu, t_u^2 / (2 P_uu); gains of one p
};

// One thread's row: the fixed weights first, then the candidates, in one Cholesky factor.
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
    Columns inside, outside;
    for (std::size_t j = 0; j < problem.mask.cols; ++j) (mask[j] ? inside : outside).push_back(j);
    std::stable_sort(inside.begin(), inside.end(), [&](std::size_t i, std::size_t j) {
      return labels[i] != labels[j] ? labels[i] < labels[j] : std::abs(theta[i]) < std::abs(theta[j]);
    });
    std::stable_sort(outside.begin(), outside.end(), [&](std::size_t i, std::size_t j) {
      return labels[i] != labels[j] ? labels[i] < labels[j] : std::abs(gradient[i]) > std::abs(gradient[j]);
    });
    pairs_.clear();
    for (std::size_t i = 0, j = 0; i < inside.size() && j < outside.size();) {
      const std::size_t u = inside[i], p = outside[j];
      if (labels[u] == labels[p]) pairs_.push_back({theta[u] * theta[u] - gradient[p] * gradient[p], u, p});
      i += labels[u] <= labels[p];
      j += labels[p] <= labels[u];
    }
    std::stable_sort(pairs_.begin(), pairs_.end(), [](const Pair& a, const Pair& b) { return a.loss < b.loss; });
    pairs_.resize(std::min(candidates, pairs_.size()));
    order(problem.mask.cols, mask);
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
    lower_.resize(k * k);
    T largest = 0;
    for (std::size_t i = 0; i < k; ++i) {
      const T* from = gram.row(order_[i]);
      T* to = &lower_[i * k];
      for (std::size_t j = 0; j <= i; ++j) to[j] = from[order_[j]];
      largest = std::max(largest, to[i]);
    }
    const T ridge = T(1e-6) * std::max(largest, std::numeric_limits<T>::min());
    for (std::size_t i = 0; i < k; ++i) lower_[i * k + i] += ridge;
    cholesky<T>(lower_.data(), k, scratch_);
  }

  // L seen = g.
  void forward(const T* gradient) {
    const std::size_t k = order_.size();
    seen_.resize(k);
    for (std::size_t i = 0; i < k; ++i) {
      const T* row = &lower_[i * k];
      double sum = gradient[order_[i]];
#pragma omp simd reduction(- : sum)
      for (std::size_t j = 0; j < i; ++j) sum -= static_cast<double>(row[j]) * seen_[j];
      seen_[i] = sum / static_cast<double>(row[i]);
    }
  }

  // A = L_QQ L_QQ^T and b = A theta_Q + L_QQ seen_Q.
  void reduce(const SwapProblem<T>& problem, const T* theta) {
    const std::size_t k = order_.size(), q = k - n_fixed_;
    small_.resize(q);
    for (std::size_t i = 0; i < q; ++i) {
      const T* li = corner(i);
      for (std::size_t j = 0; j <= i; ++j) {
        const T* lj = corner(j);
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::size_t c = 0; c <= j; ++c) sum += static_cast<double>(li[c]) * static_cast<double>(lj[c]);
        small_.a[i * q + j] = small_.a[j * q + i] = sum;
      }
    }
    for (std::size_t i = 0; i < q; ++i) {
      double sum = 0;
      for (std::size_t c = 0; c <= i; ++c) sum += static_cast<double>(corner(i)[c]) * seen_[n_fixed_ + c];
      for (std::size_t j = 0; j < q; ++j) sum += small_.a[i * q + j] * static_cast<double>(theta[order_[n_fixed_ + j]]);
      small_.b[i] = sum;
      small_.inside[i] = i < n_leaving_;
      small_.labels[i] = problem.labels.data[order_[n_fixed_ + i]];
    }
  }

  // The candidates take their new values, the fixed weights move along: L_BB^T delta = seen_B - L_QB^T (y - y_0).
  void write(T* theta) {
    const std::size_t k = order_.size();
    for (std::size_t i = 0; i < k - n_fixed_; ++i) {
      const double moved = small_.y[i] - static_cast<double>(theta[order_[n_fixed_ + i]]);
      const T* row = &lower_[(n_fixed_ + i) * k];
      for (std::size_t j = 0; j < n_fixed_; ++j) seen_[j] -= static_cast<double>(row[j]) * moved;
      theta[order_[n_fixed_ + i]] = static_cast<T>(small_.y[i]);
    }
    for (std::size_t i = n_fixed_; i-- > 0;) {
      const T* row = &lower_[i * k];
      seen_[i] /= static_cast<double>(row[i]);
      for (std::size_t j = 0; j < i; ++j) seen_[j] -= static_cast<double>(row[j]) * seen_[i];
      theta[order_[i]] += static_cast<T>(seen_[i]);
    }
  }

  const T* corner(std::size_t i) const { return &lower_[(n_fixed_ + i) * order_.size() + n_fixed_]; }

  struct Pair {
    T loss;
    std::size_t kept, absent;
  };
  std::vector<Pair> pairs_;
  Columns order_;  // columns of the factor: fixed, leaving, entering
  std::size_t n_fixed_ = 0, n_leaving_ = 0;
  std::vector<T> lower_;
  std::vector<double> seen_;
  CholeskyScratch<T> scratch_;
  SmallProblem small_;
};

}  // namespace

template <class T> void swap(const SwapProblem<T>& problem, View<T> theta, const SwapOptions& options) {
  ThreadPool pool(options.threads);
  std::vector<RowSwap<T>> rows(pool.threads());
  pool.parallel_for(theta.rows, [&](std::size_t row, std::size_t thread) {
    rows[thread].run(problem, row, theta.row(row), options);
    if (thread == 0 && options.checkpoint) options.checkpoint();
  });
}

template void swap(const SwapProblem<float>&, View<float>, const SwapOptions&);
template void swap(const SwapProblem<double>&, View<double>, const SwapOptions&);

}  // namespace awp
