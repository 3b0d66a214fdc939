"""The proved bounds as functions; imported by tests and reports only. Each names the proof it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from types import MappingProxyType

import numpy as np

from .constraints import Mask
from .problem import Array

#: The sharp constant of hard thresholding (T08 a).
GOLDEN = (1 + 5**0.5) / 2
#: Who proved a contraction by c delta_3k for hard thresholding (T08 c).
RECOVERY_FACTORS: Mapping[str, float] = MappingProxyType(
    {
        "Blumensath and Davies, halving": 32**0.5,
        "Blumensath and Davies": 8**0.5,
        "Foucart": 2.0,
        "Foucart and Rauhut": 3**0.5,
        "sharp": GOLDEN,
    }
)


def unit_roundoff(dtype: np.dtype[np.floating]) -> float:
    """Return u, the largest relative error of one rounded operation."""
    return float(np.finfo(dtype).eps) / 2


def projection_distance(z: Array, kept_gain: float) -> float:
    """Return ||Z - P(Z)||_F^2 = ||Z||_F^2 - (total gain of the best support), for support x values (T01 b)."""
    return float(np.sum(z.astype(np.float64) ** 2)) - kept_gain


def projection_slack(z: Array) -> float:
    """Return 20 u ||Z||_F^2: a computed projection's squared distance exceeds the optimum by no more (T01 e)."""
    return 20 * unit_roundoff(z.dtype) * float(np.sum(z.astype(np.float64) ** 2))


def low_rank_distance(singular_values: Array, rank: int) -> float:
    """Return min ||A - B||_F^2 over rank(B) <= r: sum_{i > r} sigma_i^2, sigma descending (T01 d)."""
    return float(np.sum(singular_values[rank:] ** 2))


def exact_decrease(moved: Array, gram: Array, *, step: float) -> float:
    """Return 1/2 (||D||_F^2 / eta - tr(D C D^T)): f falls at least this much in the step D, for any eta (T02 a)."""
    return 0.5 * (float(np.sum(moved * moved)) / step - float(np.sum((moved @ gram) * moved)))


def sufficient_decrease(moved: Array, *, step: float, lipschitz: float) -> float:
    """Return 1/2 (1/eta - L) ||D||_F^2: f falls at least this much in the step D (T02 b)."""
    return 0.5 * (1 / step - lipschitz) * float(np.sum(moved * moved))


def smallest_move(gap: float, *, step: float, lipschitz: float, n_steps: int) -> float:
    """Return 2 (f_0 - inf f) / (T (1/eta - L)): some ||Theta(t+1) - Theta(t)||_F^2 of T steps is no larger (T02 c).

    Raises:
        ValueError: eta >= 1/L, where nothing is promised (T03).
    """
    if step * lipschitz >= 1:
        raise ValueError(f"a step of {step:.4g} is not below 1/L = {1 / lipschitz:.4g}: nothing is promised")
    return 2 * gap / (n_steps * (1 / step - lipschitz))


def stable_rank(gram: Array) -> float:
    """Return ||C||_F^2 / lambda_max(C)^2, between 1 and d; infinity for C = 0 (T03 c)."""
    largest = float(np.linalg.eigvalsh(gram)[-1])
    return float(np.sum(gram * gram)) / largest**2 if largest > 0 else float("inf")


def relative_step(gram: Array, *, numerator: float = 2.0) -> float:
    """Return eta L for the step eta = numerator / ||C||_F: numerator / sqrt(stable rank) (T03 c).

    Below 1 the step is covered by T02; the paper's numerators are 2 for pruning and 1.5 for quantization.
    """
    return numerator / float(np.sqrt(stable_rank(gram)))


def low_rank_optimum(weight: Array, gram: Array, rank: int) -> float:
    """Return min f over rank(Theta) <= r: 1/2 sum_{i > r} sigma_i(W S)^2 with C = S S^T, in float64 (T09 a)."""
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    singular = np.linalg.svd(weight.astype(np.float64) @ root, compute_uv=False)
    return 0.5 * low_rank_distance(singular, rank)


def junction_parameters(shape: tuple[int, int], rank: int) -> int:
    """Return how many numbers a rank-r weight needs in junction form: r (d_out + d_in - r) (T09 d)."""
    return rank * (sum(shape) - rank)


def stationary_step(theta: Array, gradient: Array, k: int) -> float:
    """Return the largest eta for which a row with at most k nonzeros is fixed, 0 where g != 0 on its support (T04 c).

    inf where g = 0, for k = d among others; then every step leaves the row alone.
    """
    if k == 0 or not gradient.any():
        return float("inf")
    if gradient[theta != 0].any():
        return 0.0
    kept = float(np.sort(np.abs(theta))[-k])
    return kept / float(np.abs(gradient).max())


def grid_stationary_step(gradient: Array, steps: Array, *, inner: tuple[Array, Array]) -> float:
    """Return the largest eta for which a row of grid points is fixed: min s_j / (2 |g_j|) (T04 e).

    inner: whether each entry has a code below it, and one above; an outward pull at the end of the grid is free.
    """
    below, above = inner
    pull = np.maximum(np.where(below, gradient, 0), np.where(above, -gradient, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.min(np.where(pull > 0, steps / (2 * pull), np.inf)))


def coordinate_slack(gradient: Array, steps: Array, diagonal: Array) -> Array:
    """Return C_jj s_j / 2 - |g_j|: an entry inside its grid is coordinate-wise minimal where this is >= 0 (T04 e)."""
    return diagonal * steps / 2 - np.abs(gradient)


def rounding_step(gram: Array) -> float:
    """Return 1/||C||_inf: up to this step, descent leaves round-to-nearest on a fixed grid where it is (T04 f)."""
    return 1 / float(np.abs(gram).sum(axis=1).max())


def moves_until_fixed(gap: float, *, step: float, lipschitz: float, spacing: float) -> float:
    """Return 2 (f_0 - min f) / ((1/eta - L) delta^2): on a finite set no more steps change anything (T05 a).

    Raises:
        ValueError: eta >= 1/L, where nothing is promised (T03).
    """
    return smallest_move(gap, step=step, lipschitz=lipschitz, n_steps=1) / spacing**2


def linear_rate(gram: Array, *, step: float) -> float:
    """Return q = max |1 - eta lambda| over the positive eigenvalues of C_SS, 0 if there is none (T06 a)."""
    values = np.linalg.eigvalsh(gram) if gram.size else np.zeros(0)
    positive = (
        values[values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)]
        if values.size
        else values
    )
    return float(np.abs(1 - step * positive).max(initial=0.0))


def excess_after(distance_squared: float, *, step: float, n_steps: int) -> float:
    """Return ||theta(0) - theta_S||^2 / (4 e eta T): f - f_S is no larger after T steps, eta <= 1/L (T06 b)."""
    return distance_squared / (4 * np.e * step * n_steps)


def identification_radius(theta: Array, gradient: Array, *, step: float) -> float:
    """Return gamma = (min_S |theta_j| - eta max_offS |g_j|) / 2: nearer than this the support is found (T06 c)."""
    on = theta != 0
    return (
        float(np.abs(theta[on]).min(initial=np.inf)) - step * float(np.abs(gradient[~on]).max(initial=0.0))
    ) / 2


def restricted_eigenvalues(gram: Array, size: int) -> tuple[float, float]:
    """Return (alpha_s, beta_s): the extreme eigenvalues over all principal s x s submatrices; C(d, s) of them (T07)."""
    size = min(size, len(gram))
    if size == 0:
        return float("inf"), 0.0
    chosen = np.array(list(combinations(range(len(gram)), size)))
    values = np.linalg.eigvalsh(gram[chosen[:, :, None], chosen[:, None, :]])
    return max(0.0, float(values[:, 0].min())), float(values[:, -1].max())


def grades_bound(objective: float, best: float, *, kappa: float) -> float:
    """Return f* + (kappa - 1)(sqrt f + sqrt f*)^2: f is no larger after a step of 1/beta_2k (T07 a, b)."""
    return best + (kappa - 1) * (np.sqrt(objective) + np.sqrt(best)) ** 2


def grades_limit(best: float, *, kappa: float) -> float:
    """Return (kappa / (2 - kappa))^2 f*: limsup f is no larger; infinity for kappa >= 2 (T07 c)."""
    return (kappa / (2 - kappa)) ** 2 * best if kappa < 2 else float("inf")


def restricted_condition_floor(gram: Array) -> float:
    """Return kappa_2, a lower bound of kappa_s for every s >= 2, from the pairs alone: O(d^2) (T07 e, T08 e).

    With a = (C_ii + C_jj)/2 and r^2 = ((C_ii - C_jj)/2)^2 + C_ij^2 it is max (a + r) / min (a - r); infinity where
    two inputs are proportional.
    """
    diagonal = gram.diagonal()
    i, j = np.triu_indices(len(gram), 1)
    mean, radius = (diagonal[i] + diagonal[j]) / 2, np.hypot((diagonal[i] - diagonal[j]) / 2, gram[i, j])
    least, largest = float((mean - radius).min(initial=np.inf)), float((mean + radius).max(initial=0.0))
    return largest / least if least > 0 else float("inf")


def isometry_constant(gram: Array, size: int, *, step: float) -> float:
    """Return delta_s of eta C: the largest deviation from 1 of an eigenvalue of an s x s submatrix (T08)."""
    alpha, beta = restricted_eigenvalues(gram, size)
    return max(1 - step * alpha, step * beta - 1)


def recovery_error(distance: float, noise: float, *, rate: float, n_steps: int) -> float:
    """Return rho^t ||theta(0) - x*|| + phi epsilon / (1 - rho), rho = phi delta_3k; infinity for rho >= 1 (T08 b)."""
    if rate >= 1:
        return float("inf")
    return rate**n_steps * distance + GOLDEN * noise / (1 - rate)


def largest_condition(factor: float) -> float:
    """Return (1 + 1/c)/(1 - 1/c): a contraction by c delta needs a restricted condition number below it (T08 c)."""
    return (1 + 1 / factor) / (1 - 1 / factor)


def rounding_weights(gram: Array, order: Array) -> Array:
    """Return D in processing order, C = M^T D M: D_i is the Schur complement of C_ii in what follows it (T10 a).

    Raises:
        numpy.linalg.LinAlgError: C is not positive definite; damp it (T10 f).
    """
    backwards = np.asarray(order)[::-1]
    factor = np.linalg.cholesky(gram[np.ix_(backwards, backwards)].astype(np.float64))
    return factor.diagonal()[::-1] ** 2


def rounding_bound(weights: Array, steps: Array) -> float:
    """Return 1/8 sum D_i s_i^2: rounding with feedback has no larger f where no code clips (T10 b)."""
    return float(np.sum(weights * steps * steps)) / 8


def expected_rounding_error(weights: Array, steps: Array) -> float:
    """Return 1/24 sum D_i s_i^2, the mean of f for rows uniform modulo the grid; plain rounding: D = C_ii (T10 d)."""
    return float(np.sum(weights * steps * steps)) / 24


def deletion_costs(gram: Array, row: Array, support: Mask) -> Array:
    """Return t_u^2 / (2 P_uu) of every u in S, in the order of S (T11 a)."""
    inverse, fitted = _refitted(gram, row, support)
    return fitted**2 / (2 * inverse.diagonal())


def insertion_gains(gram: Array, row: Array, support: Mask) -> Array:
    """Return g_p^2 / (2 s_p) of every p outside S, in order; 0 where s_p = 0 (T11 b)."""
    return swap_parts(gram, row, support)[0]


def swap_gains(gram: Array, row: Array, support: Mask) -> Array:
    """Return gain(u, p), (|S|, d - |S|): how much f falls when p takes u's place, both refitted (T11 c)."""
    return swap_parts(gram, row, support)[1]


def swap_parts(gram: Array, row: Array, support: Mask) -> tuple[Array, Array]:
    """Return insertion and swap gains of a support with positive definite C_SS; O(k^3 + k^2 (d - k)) (T11)."""
    inverse, fitted = _refitted(gram, row, support)
    inside, outside = np.flatnonzero(support), np.flatnonzero(~support)
    cross = gram[np.ix_(outside, inside)]
    spread, pull = cross @ inverse, gram[outside] @ row - cross @ fitted
    rest = gram.diagonal()[outside] - np.sum(spread * cross, axis=1)
    own = inverse.diagonal()[:, None]
    numerator = (pull + spread.T * fitted[:, None] / own) ** 2
    gains = _share(numerator, rest + spread.T**2 / own, gram) - fitted[:, None] ** 2 / (2 * own)
    return _share(pull**2, rest, gram), gains


def _refitted(gram: Array, row: Array, support: Mask) -> tuple[Array, Array]:
    inside = np.flatnonzero(support)
    inverse = np.linalg.inv(gram[np.ix_(inside, inside)])
    return inverse, inverse @ (gram @ row)[inside]


def _share(numerator: Array, denominator: Array, gram: Array) -> Array:
    """Return numerator / (2 denominator), 0 where the denominator is rounding."""
    real = denominator > 1e-12 * float(np.abs(gram).max())
    return np.where(real, numerator / np.where(real, 2 * denominator, 1), 0.0)


def plain_swap_change(gram: Array, row: Array, support: Mask) -> Array:
    """Return the change of 2 f for every (u in S, p outside) without refit, theta = w on S: (|S|, d - |S|) (T11 d)."""
    inside, outside = np.flatnonzero(support), np.flatnonzero(~support)
    pull, diagonal = gram @ np.where(support, 0, row), gram.diagonal()
    removed = 2 * row * pull + diagonal * row**2
    added = -2 * row * pull + diagonal * row**2
    cross = 2 * np.outer(row[inside], row[outside]) * gram[np.ix_(inside, outside)]
    return removed[inside][:, None] + added[outside] - cross


def gram_mean_square_error(fourth_moment: float, gram: Array, n_tokens: int) -> float:
    """Return E ||C^ - C||_F^2 = (E ||x||^4 - ||C||_F^2) / n for independent tokens (T12 a)."""
    return (fourth_moment - float(np.sum(gram * gram))) / n_tokens


def gram_error(mean_square: float, probability: float) -> float:
    """Return sqrt(E ||C^ - C||_F^2 / p): exceeded with probability at most p (T12 a)."""
    return float(np.sqrt(max(mean_square, 0.0) / probability))


def objective_error(gram_gap: float, moved_squared: float) -> float:
    """Return 1/2 ||C^ - C|| ||W - Theta||_F^2: f measured with C^ is off by no more (T12 c)."""
    return gram_gap * moved_squared / 2


def damped_excess(damping: float, moved_squared: float) -> float:
    """Return l ||W - Theta||_F^2: minimising with C^ + l I, l >= ||C^ - C||, loses no more against Theta (T12 e)."""
    return damping * moved_squared


def bernstein_tail(deviation: float, *, n_tokens: int, bound: float, lipschitz: float, d: int) -> float:
    """Return 2 d exp(-(n t^2/2)/(B L + 2 B t/3)), the probability of ||C^ - C|| >= t where ||x||^2 <= B (T12 f)."""
    exponent = -(n_tokens * deviation**2 / 2) / (bound * lipschitz + 2 * bound * deviation / 3)
    return float(min(1.0, 2 * d * np.exp(exponent)))
