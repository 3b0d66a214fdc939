#include "awp/low_rank.hpp"

#include <Eigen/Dense>

namespace awp {

// With C = S S^T and U_r the first left singular vectors of W S, the weighted Eckart-Young theorem gives
// T S = [W S]_r = U_r U_r^T W S: T = U_r (U_r^T W) is a minimiser, and U_r are eigenvectors of W C W^T, so neither S nor
// an inverse is needed. Where d_out > d_in the problem is first turned into that of R in W = Q R.
template <class T>
void low_rank(View<const T> weight, View<const T> gram, View<T> left, View<T> right) {
  using Matrix = Eigen::MatrixXd;
  using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const auto map = [](auto view) {
    using Scalar = std::remove_const_t<std::remove_pointer_t<decltype(view.data)>>;
    return Eigen::Map<const Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
        view.data, static_cast<Eigen::Index>(view.rows), static_cast<Eigen::Index>(view.cols));
  };
  const Matrix w = map(weight).template cast<double>(), c = map(gram).template cast<double>();
  const Eigen::Index rank = static_cast<Eigen::Index>(left.cols), small = std::min(w.rows(), w.cols());
  const bool tall = w.rows() > w.cols();
  Eigen::HouseholderQR<Matrix> qr;
  if (tall) qr.compute(w);
  const Matrix reduced = tall ? Matrix(qr.matrixQR().topRows(small).template triangularView<Eigen::Upper>()) : w;
  const Eigen::SelfAdjointEigenSolver<Matrix> eigen(reduced * c * reduced.transpose());
  const Matrix u = eigen.eigenvectors().rightCols(rank);  // ascending eigenvalues
  Matrix lifted = Matrix::Zero(w.rows(), rank);
  lifted.topRows(small) = u;
  if (tall) lifted.applyOnTheLeft(qr.householderQ());
  Eigen::Map<RowMajor>(left.data, w.rows(), rank) = lifted.template cast<T>();
  Eigen::Map<RowMajor>(right.data, rank, w.cols()) = (u.transpose() * reduced).template cast<T>();
}

template void low_rank(View<const float>, View<const float>, View<float>, View<float>);
template void low_rank(View<const double>, View<const double>, View<double>, View<double>);

}  // namespace awp
