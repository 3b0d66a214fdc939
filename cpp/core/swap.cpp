#include "awp/swap.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "awp/cholesky.hpp"
#include "awp/inverse.hpp"
#include "awp/parallel.hpp"

namespace awp {

namespace {

using Columns = std::vector<std::size_t>;

constexpr double kTolerance = 1e-7;

// A small dense symmetric problem 1/2 y A y - b y with a support, swapped greedily to a 1-swap optimum.
class SmallProblem {
 public:
  std::size_t n = 0;
  std::vector<double> a, b, y;       // A (n x n), b and the solution
  std::vector<std::int64_t> labels;  // (n)
  std::vector<char> inside;          // the support

  void resize(std::size_t size) {
    n = size;
    a.resize(n * n);
    for (auto* part : {&b, &y}) part->resize(n);
    labels.resize(n);
    inside.resize(n);
  }

  void solve() {
    for (std::size_t round = 0; round < 2 * n; ++round) {
      split();
      factor();
      multiply();
      const std::size_t best = best_pair();
      if (best == kept_.size() * absent_.size()) break;
      inside[kept_[best % kept_.size()]] = 0;
      inside[absent_[best / kept_.size()]] = 1;
    }
    std::fill(y.begin(), y.end(), 0.0);
    for (std::size_t i = 0; i < kept_.size(); ++i) y[kept_[i]] = t_[i];
  }

 private:
  void split() {
    kept_.clear();
    absent_.clear();
    for (std::size_t i = 0; i < n; ++i) (inside[i] ? kept_ : absent_).push_back(i);
  }

  // P = (A_SS)^-1.
  void factor() {
    const std::size_t k = kept_.size();
    p_.resize(k * k);
    for (std::size_t i = 0; i < k; ++i)
      for (std::size_t j = 0; j < k; ++j) p_[i * k + j] = a[kept_[i] * n + kept_[j]];
    invert<double>({p_.data(), k, k}, 1);
  }

  // t = P b_S, M = A_NS P, g = b_N - A_NS t and s = diag(A_NN - M A_SN).
  void multiply() {
    const std::size_t k = kept_.size(), m = absent_.size();
    t_.assign(k, 0);
    for (std::size_t i = 0; i < k; ++i)
      for (std::size_t j = 0; j < k; ++j) t_[i] += p_[i * k + j] * b[kept_[j]];
    m_.assign(m * k, 0);
    g_.resize(m);
    s_.resize(m);
    for (std::size_t p = 0; p < m; ++p) {
      double* row = &m_[p * k];
      const double* cross = &a[absent_[p] * n];
      g_[p] = b[absent_[p]];
      for (std::size_t j = 0; j < k; ++j) {
        const double c = cross[kept_[j]];
        g_[p] -= c * t_[j];
#pragma omp simd
        for (std::size_t i = 0; i < k; ++i) row[i] += c * p_[j * k + i];
      }
      s_[p] = cross[absent_[p]];
      for (std::size_t j = 0; j < k; ++j) s_[p] -= row[j] * cross[kept_[j]];
    }
  }

  // The pair with the largest gain as p * |S| + u, the first of equals; the number of pairs where none gains enough.
  std::size_t best_pair() const {
    const std::size_t k = kept_.size(), pairs = k * absent_.size();
    double energy = 0;
    for (std::size_t i = 0; i < k; ++i) energy += t_[i] * b[kept_[i]];
    double most = kTolerance * energy;
    std::size_t best = pairs;
    for (std::size_t pair = 0; pair < pairs; ++pair) {
      const std::size_t p = pair / k, u = pair % k;
      if (labels[absent_[p]] != labels[kept_[u]]) continue;
      const double variance = p_[u * k + u], regression = m_[pair];
      const double raised = g_[p] + regression * (t_[u] / variance);
      const double gain = raised * raised / (2 * (s_[p] + regression * regression / variance)) -
                          t_[u] * t_[u] / (2 * variance);
      if (gain > most) most = gain, best = pair;
    }
    return best;
  }

  Columns kept_, absent_;
  std::vector<double> p_, m_, t_, g_, s_;
};

// One thread's row: the fixed weights first, then the candidates, in one Cholesky factor.
template <class T> class RowSwap {
 public:
  void run(const SwapProblem<T>& problem, std::size_t row, T* theta, std::size_t candidates) {
    choose(problem, row, theta, candidates);
    if (n_leaving_ == 0) return;
    factor(problem.gram);
    forward(problem.gradient.row(row));
    reduce(problem, theta);
    small_.solve();
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
    rows[thread].run(problem, row, theta.row(row), options.candidates);
    if (thread == 0 && options.checkpoint) options.checkpoint();
  });
}

template void swap(const SwapProblem<float>&, View<float>, const SwapOptions&);
template void swap(const SwapProblem<double>&, View<double>, const SwapOptions&);

}  // namespace awp
