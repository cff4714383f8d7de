"""The convex problems that weight noise solves in Orvieto et al. 2022's simple models.

Each function gives the minimiser (or maximiser) and its value, by singular values, block descent
with a duality gap, linear programming or scikit-learn; none of them knows of noise or networks. The
Lasso of §2.3 is in `lasso`.
"""

import warnings

import numpy as np
from scipy.optimize import linprog
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoLars

from dither.errors import DitherError
from dither.lab import Array


def nuclear_value(M: Array, X: Array, Y: Array, sigma: float) -> float:
    """Eq. 10: ‖Yᵀ − MXᵀ‖²/2n + σ²/n √d₂ ‖X‖_F ‖MXᵀ‖_*;  M [d₂, d₀], X [n, d₀], Y [n, d₂]."""
    norm = np.linalg.svd(M @ X.T, compute_uv=False).sum()
    penalty = sigma**2 * np.sqrt(Y.shape[1]) * np.linalg.norm(X) * norm
    return float((np.square(Y.T - M @ X.T).sum() / 2 + penalty) / len(X))


def nuclear(X: Array, Y: Array, sigma: float) -> tuple[Array, float]:
    """The minimiser M of eq. 10, and its value.

    MXᵀ ranges over the matrices with rows in the column space of X; there eq. 10 is solved by
    lowering the singular values of Yᵀ's projection by σ²√d₂‖X‖_F, and cutting at 0.
    """
    back = np.linalg.pinv(X)  # [d₀, n]
    U, s, Vt = np.linalg.svd(Y.T @ X @ back, full_matrices=False)
    s = np.maximum(s - sigma**2 * np.sqrt(Y.shape[1]) * np.linalg.norm(X), 0)
    M = (U * s) @ Vt @ back.T
    return M, nuclear_value(M, X, Y, sigma)


def group_value(beta: Array, X: Array, y: Array, sigma: float) -> float:
    """Eq. 38: ‖y − Σ_j X_jβ_j‖²/2n + σ²/n Σ_j ‖X_j‖_F ‖X_jβ_j‖;  X [d, n, k], β [d, k], y [n]."""
    parts = np.einsum("dnk,dk->dn", X, beta)
    penalty = np.linalg.norm(X, axis=(1, 2)) @ np.linalg.norm(parts, axis=1)
    return float((np.square(y - parts.sum(0)).sum() / 2 + sigma**2 * penalty) / len(y))


def group_lasso(
    X: Array, y: Array, sigma: float, *, gap: float = 1e-10, sweeps: int = 100_000
) -> tuple[Array, float]:
    """The minimiser β [d, k] of eq. 38, and its value, to a relative duality gap of `gap`.

    With X_j = Q_jR_j, u_j = R_jβ_j it is a group Lasso with orthonormal blocks, where one block's
    minimiser is closed: u_j = (1 − λ_j/‖Q_jᵀr‖)₊ Q_jᵀr, λ_j = σ²‖X_j‖_F, r the residual without j.
    Raises DitherError if `sweeps` don't reach the gap.
    """
    Q, R = np.linalg.qr(X)  # [d, n, k], [d, k, k]
    weight = sigma**2 * np.linalg.norm(X, axis=(1, 2))
    u, r = np.zeros(X.shape[::2]), y.astype(float)
    for sweep in range(sweeps):
        for j in range(len(X)):
            c = Q[j].T @ r + u[j]
            new = max(1 - weight[j] / max(np.linalg.norm(c), 1e-300), 0) * c
            r = r + Q[j] @ (u[j] - new)
            u[j] = new
        if sweep % 10 == 9:
            primal = np.square(r).sum() / 2 + weight @ np.linalg.norm(u, axis=1)
            pulls = np.linalg.norm(np.einsum("dnk,n->dk", Q, r), axis=1)
            a = r * min(1, (weight / np.maximum(pulls, 1e-300)).min())  # feasible for the dual
            if primal - (a @ y - a @ a / 2) <= gap * primal:
                beta: Array = np.linalg.solve(R, u[:, :, None])[:, :, 0].astype(float)
                return beta, group_value(beta, X, y, sigma)
    raise DitherError(f"group_lasso: {sweeps} sweeps left a gap above {gap:g}: give more")


def psd_value(M: Array, Y: Array, strength: float) -> float:
    """½‖Y − M‖²_F + strength · tr M."""
    return float(np.square(Y - M).sum() / 2 + strength * np.trace(M))


def psd(Y: Array, strength: float) -> tuple[Array, float]:
    """The minimiser M ⪰ 0 of ½‖Y − M‖²_F + strength · tr M for a symmetric Y, and its value: Y with
    eigenvalues lowered by `strength` and cut at 0.
    """
    values, vectors = np.linalg.eigh(Y)
    M = (vectors * np.maximum(values - strength, 0)) @ vectors.T
    return M, psd_value(M, Y, strength)


def margin(squares: Array, X: Array, y: Array, sigma: float) -> float:
    """min_i {y_iΦ_i − σ²/2 ‖DΦ_i‖²}, Φ = X(w₁∘w₁ − w₂∘w₂), DΦ_i = 2x_i∘(w₁, −w₂); squares are
    (w₁∘w₁, w₂∘w₂) [2d].   App. B, corrected
    """
    return float((_margins(X, y, sigma) @ squares).min())


def max_margin(X: Array, y: Array, sigma: float) -> tuple[Array, float]:
    """max_{‖w‖ ≤ 1} of `margin`: squares [2d] and the value t.

    It is linear in the squares: max t, y_i x_iᵀ(a − b) − 2σ² (x_i∘x_i)ᵀ(a + b) ≥ t, a, b ≥ 0,
    1ᵀ(a + b) ≤ 1, solved by scipy's HiGHS. Raises DitherError where no solver ends well.
    """
    G = _margins(X, y, sigma)
    n, m = G.shape
    rows = np.vstack([np.hstack([-G, np.ones((n, 1))]), np.r_[np.ones(m), 0.0]])
    bounds = [(0, None)] * m + [(None, None)]
    solution = linprog(np.r_[np.zeros(m), -1.0], rows, np.r_[np.zeros(n), 1.0], bounds=bounds)
    if not solution.success:
        raise DitherError(f"max_margin: the linear program was not solved: {solution.message}")
    return solution.x[:-1], float(solution.x[-1])


def _margins(X: Array, y: Array, sigma: float) -> Array:
    """[n, 2d]: what each square adds to each sample's penalised margin."""
    signed, cost = y[:, None] * X, 2 * sigma**2 * np.square(X)
    return np.hstack([signed - cost, -signed - cost])


def variation_weight(b: Array, X: Array) -> Array:
    """√(E‖x‖² 1[bᵀx > 0]) of directions b [K, d], E over the rows of X: [K]."""
    active = 1e-12 * np.linalg.norm(X, axis=1)[:, None] < X @ b.T
    return np.sqrt((np.square(X).sum(1)[:, None] * active).mean(0))


def variation(a: Array, b: Array, X: Array) -> float:
    """Σ_j |a_j| √(E‖x‖² 1[b_jᵀx > 0]) √(E(b_jᵀx)₊²) of x ↦ Σ_j a_j (b_jᵀx)₊: the weighted variation
    norm of App. D.3, with a, b as in Φ (the paper's 1/m is in a). a [m], b [m, d].
    """
    size = np.sqrt(np.square(np.maximum(X @ b.T, 0)).mean(0))
    return float(np.abs(a) @ (variation_weight(b, X) * size))


def function_space(
    X: Array, y: Array, sigma: float, *, angles: int = 20_000, gap: float = 1e-7
) -> tuple[Array, Array, float, float]:
    """Min over nets of any width of ‖y − Φ‖²/2n + σ² · `variation`, for inputs in the plane [n, 2].

    A Lasso over directions b: a grid of angles and the normals of the x_i, where the price is lower
    than beside them. The direction that pulls most is added to a few until none pulls harder than
    its price. Returns a, b, the value, and how far below it the minimum over the grid can be, at
    most (duality). Raises DitherError for other inputs, or if `gap` (relative) is not reached.
    """
    if X.ndim != 2 or X.shape[1] != 2:
        raise DitherError(f"function_space: inputs are in the plane, [n, 2]: got {list(X.shape)}")
    turn, n = 2 * np.pi, len(y)
    normals = np.arctan2(X[:, 1], X[:, 0])[:, None] + np.array([0.25, -0.25]) * turn
    theta = np.r_[np.arange(angles) / angles * turn, normals.ravel()]
    b = np.stack([np.cos(theta), np.sin(theta)], 1)
    unit = np.maximum(X @ b.T, 0)  # [n, K]
    unit[unit < 1e-12 * np.linalg.norm(X, axis=1)[:, None]] = 0
    price = variation_weight(b, X) * np.sqrt(np.square(unit).mean(0))
    b, unit, price = b[price > 0], unit[:, price > 0], price[price > 0]
    chosen, nu, r, below = np.array([], dtype=int), np.array([]), y, np.inf
    for _ in range(40 * n):
        pull = np.abs(unit.T @ r) / n / price / sigma**2
        value = np.square(r).mean() / 2 + sigma**2 * np.abs(nu) @ price[chosen]
        dual = r * min(1, 1 / pull.max())
        below = value - (dual @ y - dual @ dual / 2) / n
        if below <= gap * value:
            return nu, b[chosen], float(value), float(below)
        chosen = np.append(chosen, pull.argmax())
        nu = _few(unit[:, chosen], price[chosen], y, sigma)
        chosen, nu = chosen[nu != 0], nu[nu != 0]
        r = y - unit[:, chosen] @ nu
    raise DitherError(f"function_space: {40 * n} directions left a gap of {below:.1g}")


def _few(unit: Array, price: Array, y: Array, sigma: float) -> Array:
    """The Lasso over a few directions [K], by homotopy: neighbours are too alike for descent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the gap is looked at outside
        path = LassoLars(alpha=sigma**2, fit_intercept=False, max_iter=10_000)
        return path.fit(unit / price, y).coef_ / price
