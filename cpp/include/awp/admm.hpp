// Search for a support by splitting, and the refit on a support that is given. Twins of awp_edge/solvers/admm.py and
// refit.py. Rows share nothing but C: a tile of rows runs all its steps on its own.
#pragma once
#include <cstdint>
#include <variant>
#include <vector>

#include "awp/gemm.hpp"
#include "awp/parallel.hpp"
#include "awp/project.hpp"

namespace awp {

struct AdmmOptions {
  Support support;
  std::size_t steps;                 // selections made; one product less
  double first_relaxation, last_relaxation;  // the length of the first and of the last move, in between by equal parts
  std::size_t threads;
  Checkpoint checkpoint;  // called by the calling thread after its steps, too
};

// A square matrix M as codes * scale (by column) + diag(diagonal), the codes within +-kRightLimit. A row times M is
// computed by rounding the row to kLeftLimit times its largest entry: sums of integers, the same on every machine.
template <class T> struct RoundedMatrix {
  View<const std::int8_t> codes;
  const T* scale;
  const T* diagonal;
};

// Runs V <- V + t (prox_f(2 P(V) - V) - P(V)) from V = W, t the relaxation, with prox_f(Y) = W - (W - Y) M,
// M = rho (C + rho I)^-1 (d_in, d_in), exact or rounded, P the projection onto the support; writes the last P(V).
template <class T>
void admm(View<const T> weight, const std::variant<View<const T>, RoundedMatrix<T>>& matrix, const AdmmOptions& options,
          View<T> out);

struct RefitOptions {
  std::size_t steps, threads;
  Checkpoint checkpoint;
};

// Minimises f over the weights inside the mask by conjugate gradients, every row for itself, preconditioned by the
// diagonal of C, from `theta`, which is overwritten; objectives: f of every row afterwards.
template <class T>
void refit(View<const T> weight, View<const T> gram, View<const std::uint8_t> mask, View<T> theta, double* objectives,
           const RefitOptions& options);

}  // namespace awp
