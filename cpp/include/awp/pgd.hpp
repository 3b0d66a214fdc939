// Projected gradient descent. Twin of awp_edge/solvers/pgd.py and of minimise() in solvers/base.py.
#pragma once
#include <functional>
#include <vector>

#include "awp/project.hpp"

namespace awp {

template <class T> struct LayerProblem {
  View<const T> weight;  // W (d_out, d_in)
  View<const T> gram;    // C (d_in, d_in), symmetric
};

struct PgdOptions {
  double step;                       // eta
  std::size_t max_iter;
  double tol;                        // stop at ||(W - Theta) C|| / ||W|| < tol
  double weight_norm;                // ||W||
  std::size_t ramp;                  // iterates before this step are infeasible: their supports are relaxed
  std::vector<Support> relaxed;      // supports of steps 1 to ramp - 1
  bool bfloat16_products;            // see solvers/pgd.py; the start and the last quarter stay exact
  std::size_t threads;
  std::function<void()> checkpoint;  // called by the calling thread after every iteration; may throw to stop the run
};

enum class StopReason { gradient, fixed_point, iterations, diverged };
const char* name(StopReason reason);

struct PgdRun {
  bool found = false;  // a feasible iterate was seen and `best` written
  double objective = 0;
  std::vector<double> objectives, residuals;  // one entry per iterate, the start included
  StopReason reason = StopReason::iterations;
};

// Runs Theta <- P(Theta + eta (W - Theta) C) from `start` and writes the best feasible iterate to `best`.
template <class T>
PgdRun pgd(const LayerProblem<T>& problem, View<const T> start, const SparseSet<T>& set, const PgdOptions& options,
           View<T> best);

}  // namespace awp
