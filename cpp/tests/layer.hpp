// A small random layer with correlated inputs, and its objective by the definition.
#pragma once
#include <cmath>

#include "awp/pgd.hpp"
#include "check.hpp"

namespace awp_test {

using namespace awp;

template <class T> struct Layer {
  std::size_t rows, d;
  std::vector<T> weight, gram;

  Layer(std::size_t rows_, std::size_t d_) : rows(rows_), d(d_), weight(normal<T>(rows * d, 1)), gram(d * d) {
    const auto x = normal<T>(2 * d * d, 2);
    for (std::size_t i = 0; i < d; ++i)
      for (std::size_t j = 0; j < d; ++j)
        for (std::size_t n = 0; n < 2 * d; ++n) gram[i * d + j] += x[n * d + i] * x[n * d + j] / static_cast<T>(2 * d);
  }
  LayerProblem<T> problem() const { return {{weight.data(), rows, d}, {gram.data(), d, d}}; }

  double objective(const std::vector<T>& theta) const {
    double sum = 0;
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t a = 0; a < d; ++a)
        for (std::size_t b = 0; b < d; ++b)
          sum += static_cast<double>(weight[i * d + a] - theta[i * d + a]) * gram[a * d + b] *
                 (weight[i * d + b] - theta[i * d + b]);
    return sum / 2;
  }
  double norm(const std::vector<T>& values) const {
    double sum = 0;
    for (T value : values) sum += static_cast<double>(value) * value;
    return std::sqrt(sum);
  }
};

}  // namespace awp_test
