// Integer grids fitted to the layer objective. Twins of ranges.py, nearest_plane.py and descent.py in awp_edge/solvers.
#pragma once
#include <vector>

#include "awp/grid.hpp"
#include "awp/parallel.hpp"
#include "awp/pgd.hpp"

namespace awp {

using Order = std::vector<std::size_t>;

// index[i][g] = the candidate with the least sum over the group's j of importance_j (w_j - Q(w_j))^2, first of equals.
// scales and zeros hold the candidates one after another, (n d_out, groups); importance is (1, d_in).
template <class T>
void cheapest_range(View<const T> weight, View<const T> importance, const Grid<T>& candidates,
                    View<std::int32_t> index, std::size_t threads, const Checkpoint& checkpoint = {});

// Writes upper triangular U with C[o, o] = U U^T, computed in double.
template <class T>
void factor(View<const T> gram, const Order& order, View<T> upper, std::size_t threads,
            const Checkpoint& checkpoint = {});

// Rounds the target column by column in an order of all columns; upper = factor(gram, order).
template <class T>
void nearest_plane(View<const T> target, View<const T> upper, const Order& order, const Grid<T>& grid, View<T> theta,
                   std::size_t threads, const Checkpoint& checkpoint = {});

// Refits every row of start on its mask (start is zero elsewhere) and rounds it there, in that order of its columns.
template <class T>
void masked_nearest_plane(const LayerProblem<T>& problem, View<const T> start, Mask mask, const Order& order,
                          const Grid<T>& grid, View<T> theta, std::size_t threads, const Checkpoint& checkpoint = {});

struct DescentOptions {
  std::size_t passes;
  bool rescale;      // move the scales too
  bool half_scales;  // scales stay float16 numbers
  std::size_t threads;
  Checkpoint checkpoint = {};
};

// Coordinate descent on the codes and scales, in place: theta lies on the grid of `scales` before and after.
// An empty mask allows every entry.
template <class T>
void descend(const LayerProblem<T>& problem, View<T> theta, View<T> scales, const Grid<T>& grid, Mask mask,
             const DescentOptions& options);

}  // namespace awp
