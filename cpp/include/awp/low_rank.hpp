// The activation-aware rank-r optimum. Twin of weighted_factors() in awp_edge/baselines/asvd.py.
#pragma once
#include "awp/matrix.hpp"

namespace awp {

// left (d_out, r) right (r, d_in) minimises tr((W - T) C (W - T)^T) over rank(T) <= r; C may be singular.
// Any pair of factors of a minimiser may differ from the reference's; the objective does not.
template <class T>
void low_rank(View<const T> weight, View<const T> gram, View<T> left, View<T> right);

}  // namespace awp
