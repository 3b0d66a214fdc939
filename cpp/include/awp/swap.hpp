// Exact 1-swaps among the likeliest candidates of every row. Twin of awp_edge/solvers/swap.py.
#pragma once
#include <cstdint>

#include "awp/matrix.hpp"
#include "awp/parallel.hpp"

namespace awp {

template <class T> struct SwapProblem {
  View<const T> gram, gradient;    // C (d, d) and (W - Theta) C (rows, d)
  View<const std::uint8_t> mask;   // the support
  View<const std::int64_t> labels; // (1, d): inputs with equal labels may be swapped
  View<const double> least;        // (1, rows): f that a row must be predicted to gain, else it stays as it is
};

struct SwapOptions {
  std::size_t candidates, patience, threads;  // swaps made beyond the best point before a row ends there
  Checkpoint checkpoint;
};

// Overwrites theta, refitted on the mask, by the weight after the swaps.
template <class T> void swap(const SwapProblem<T>& problem, View<T> theta, const SwapOptions& options);

}  // namespace awp
