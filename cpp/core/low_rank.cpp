#include "awp/low_rank.hpp"

#include <Eigen/Dense>
#include <utility>

namespace awp {

namespace {

using Matrix = Eigen::MatrixXd;
template <class T> using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class T> Matrix widened(View<const T> view) {
  const auto rows = static_cast<Eigen::Index>(view.rows), cols = static_cast<Eigen::Index>(view.cols);
  return Eigen::Map<const RowMajor<T>>(view.data, rows, cols).template cast<double>();
}

template <class T> void narrow(const Matrix& from, View<T> to) {
  Eigen::Map<RowMajor<T>>(to.data, from.rows(), from.cols()) = from.cast<T>();
}

// With C = S S^T and U_r the first left singular vectors of W S, the weighted Eckart-Young theorem gives
// T S = [W S]_r = U_r U_r^T W S: T = U_r (U_r^T W) is a minimiser, and U_r are eigenvectors of W C W^T, so neither S nor
// an inverse is needed. Where d_out > d_in the problem is first turned into that of R in W = Q R.
std::pair<Matrix, Matrix> factors(const Matrix& w, const Matrix& c, Eigen::Index rank) {
  const Eigen::Index small = std::min(w.rows(), w.cols());
  const bool tall = w.rows() > w.cols();
  Eigen::HouseholderQR<Matrix> qr;
  Matrix reduced = w;
  if (tall) {
    qr.compute(w);
    reduced = qr.matrixQR().topRows(small).triangularView<Eigen::Upper>();
  }
  const Matrix moved = reduced * c;
  const Matrix energy = moved * reduced.transpose();
  const Eigen::SelfAdjointEigenSolver<Matrix> eigen(energy);
  const Matrix u = eigen.eigenvectors().rightCols(rank);  // ascending eigenvalues
  Matrix left = Matrix::Zero(w.rows(), rank);
  left.topRows(small) = u;
  if (tall) left.applyOnTheLeft(qr.householderQ());
  return {std::move(left), u.transpose() * reduced};
}

}  // namespace

template <class T>
void low_rank(View<const T> weight, View<const T> gram, View<T> left, View<T> right) {
  const auto [u, v] = factors(widened(weight), widened(gram), static_cast<Eigen::Index>(left.cols));
  narrow(u, left);
  narrow(v, right);
}

template void low_rank(View<const float>, View<const float>, View<float>, View<float>);
template void low_rank(View<const double>, View<const double>, View<double>, View<double>);

}  // namespace awp
