"""Orvieto et al. 2022, Fig. 1, §2.3: closed forms and the λ map against slow oracles; claims."""

import io
import itertools

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import dither
from dither.lab.data.sets import Data
from dither.lab.figure import Silent
from dither.lab.runs.execute import execute
from dither.lab.table import Table
from dither.papers.orvieto2022 import depth, exact, fig1, lasso


def problem(n=6, d0=3, d1=4, d2=2):
    rng = torch.Generator().manual_seed(1)
    shapes = {"W1": (d1, d0), "W2": (d2, d1), "X": (n, d0), "Y": (n, d2)}
    return {k: torch.randn(*s, generator=rng, dtype=torch.float64) for k, s in shapes.items()}


def smoke(figure) -> Table:
    return Table.of({k: execute(run, (0, 1), Silent()) for k, run in figure.at("smoke").items()})


def verdict(figure, claim: str, table: Table):
    return next(c for c in figure.claims if c.id == claim).check(table)


# ------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize(("a", "s"), [(0.3, 0.7), (-1.2, 0.4), (0.0, 1.0), (2.0, 0.1)])
def test_rectified_moments_are_the_integrals(a, s):
    mean, variance = exact.moments(*torch.tensor([[a], [s]], dtype=torch.float64), True)
    density = stats.norm(a, s).pdf
    first, second = (
        integrate.quad(lambda u, k=k: u**k * density(u), 0, a + 12 * s, epsabs=0, epsrel=1e-11)[0]
        for k in (1, 2)
    )
    assert mean.item() == pytest.approx(first, rel=1e-8)
    assert variance.item() == pytest.approx(second - first**2, rel=1e-7)


def test_moments_without_noise_are_the_activation():
    a = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    mean, variance = exact.moments(a, torch.zeros(1, dtype=torch.float64), True)
    assert mean.tolist() == [0, 0, 2]
    assert variance.tolist() == [0, 0, 0]


def test_linear_R_sigma_is_the_recursion_over_layers():
    # S₀ = XᵀX, S_j = W_j S_{j−1} W_jᵀ + σ² tr(S_{j−1}) I
    p, sigma = problem(), 0.3
    W1, W2, X, Y = p.values()
    S = X.T @ X
    for W in (W1, W2):
        S = W @ S @ W.T + sigma**2 * S.trace() * torch.eye(len(W), dtype=W.dtype)
    Phi = X @ W1.T @ W2.T
    expected = (S.trace() - 2 * (Y * Phi).sum() + Y.square().sum()) / (2 * len(X))
    assert exact.exact(**p, s1=sigma, s2=sigma, relu=False) == pytest.approx(expected.item(), 1e-12)


def test_second_moments_over_depth_are_those_of_the_noise():
    """E ‖Φ(w + noise)‖² of three matrices: degree 2 in each ε, so three Hermite nodes are exact."""
    rng = torch.Generator().manual_seed(3)
    shapes, sigmas = [(2, 1), (1, 2), (1, 1)], (0.3, 0.0, 0.5)
    weights = [torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in shapes]
    X = torch.randn(4, 1, generator=rng, dtype=torch.float64)
    nodes, weight = np.polynomial.hermite_e.hermegauss(3)
    weight = weight / weight.sum()
    known = 0.0
    for chosen in itertools.product(range(3), repeat=3):  # the entries of W₁ and of W₃
        a, b, c = (float(nodes[i]) for i in chosen)
        W1 = weights[0] + sigmas[0] * torch.tensor([[a], [b]], dtype=torch.float64)
        Phi = (weights[2] + sigmas[2] * c) @ weights[1] @ W1 @ X.T
        known += float(np.prod(weight[list(chosen)])) * Phi.square().sum().item()
    assert depth.moment(weights, X, sigmas) == pytest.approx(known, rel=1e-12)


def test_noise_on_one_matrix_leaves_no_excess_at_any_depth():
    for m in (2, 5):
        rows = {(d, q): v for d, q, v in
                depth.depths(0, Silent(), matrices=m, widths=(3, 20), sigma=0.1)}  # fmt: skip
        for d in (3, 20):
            assert abs(rows[d, "layer-wise"]) < 1e-9 * rows[d, "R"]
            assert rows[d, "full"] > 0


@pytest.mark.parametrize("relu", [False, True])
def test_R_eff_is_half_the_squared_jacobian(relu):
    p, sigma = problem(), 0.3
    W1, W2, X, Y = p.values()

    def net(W1, W2):
        h = X @ W1.T
        return (torch.relu(h) if relu else h) @ W2.T

    jacobians = torch.autograd.functional.jacobian(net, (W1, W2))
    R = sigma**2 / (2 * len(X)) * sum(J.square().sum() for J in jacobians)
    loss = (net(W1, W2) - Y).square().sum() / (2 * len(X))
    assert exact.effective(**p, sigma=sigma, relu=relu) == pytest.approx(float(loss + R), rel=1e-12)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("s1", "s2"), [(0.3, 0.3), (0.4, 0.0), (0.0, 0.4)])
def test_R_sigma_is_the_mean_over_draws(relu, s1, s2):
    p, N = problem(), 200_000
    W1, W2, X, Y = p.values()
    rng = torch.Generator().manual_seed(2)
    E1, E2 = (torch.randn(N, *W.shape, generator=rng, dtype=W.dtype) for W in (W1, W2))
    h = X @ (W1 + s1 * E1).mT
    z = (torch.relu(h) if relu else h) @ (W2 + s2 * E2).mT
    losses = (z - Y).square().sum(-1).mean(-1) / 2
    found = exact.exact(**p, s1=s1, s2=s2, relu=relu)
    assert abs(found - losses.mean()) < 4 * losses.std() / N**0.5  # lies once in 16 000


def test_full_noise_adds_the_exploding_term_and_layer_wise_noise_nothing():
    p, sigma = problem(), 0.3
    R_eff = exact.effective(**p, sigma=sigma, relu=False)
    term = sigma**4 * 4 * 2 * p["X"].square().sum().item() / (2 * 6)  # d₁ = 4, d₂ = 2, n = 6
    full = exact.exact(**p, s1=sigma, s2=sigma, relu=False)
    one, two = (
        exact.exact(**p, s1=a * sigma, s2=b * sigma, relu=False)
        for a, b in ((2**0.5, 0), (0, 2**0.5))
    )
    assert full - R_eff == pytest.approx(term, rel=1e-10)
    assert (one + two) / 2 == pytest.approx(R_eff, rel=1e-12)


# ------------------------------------------------------------------------------------- Lasso


def ista(X, y, sigma, steps=20_000):
    """Proximal gradient on eq. 8, as slow and as plain as can be."""
    n, c = len(X), np.square(X).mean(0)
    rate, beta = n / np.linalg.norm(X, 2) ** 2, np.zeros(X.shape[1])
    for _ in range(steps):
        beta = beta + rate * X.T @ (y - X @ beta) / n
        beta = np.sign(beta) * np.maximum(np.abs(beta) - rate * 2 * sigma**2 * c, 0)
    return beta


def test_the_lambda_map_gives_the_minimiser_of_eq_8():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 20)) * rng.uniform(0.3, 3, 20)  # columns of unlike lengths
    y, sigma = X[:, 0] - X[:, 5] + 0.1 * rng.standard_normal(12), 0.2
    beta = lasso.lasso(X, y, sigma)
    np.testing.assert_allclose(beta, ista(X, y, sigma), atol=1e-7)
    pull, c = X.T @ (y - X @ beta) / len(X), np.square(X).mean(0)
    on = beta != 0  # optimality: the pull is 2σ²c where β ≠ 0, and at most that elsewhere
    assert 0 < on.sum() < 20
    np.testing.assert_allclose(pull[on], 2 * sigma**2 * c[on] * np.sign(beta[on]), atol=1e-7)
    assert (np.abs(pull[~on]) <= 2 * sigma**2 * c[~on]).all()


def test_eq_7_and_the_exact_rest_of_a_diagonal_net():
    # R_σ is a polynomial of degree 4 in ε: three Gauss–Hermite nodes per variable are exact
    rng = np.random.default_rng(0)
    n, d, sigma = 3, 2, 0.7
    X, y, w = rng.standard_normal((n, d)), rng.standard_normal(n), rng.standard_normal(2 * d)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()

    def loss(v):
        return np.square(y - X @ (v[:d] ** 2 - v[d:] ** 2)).mean() / 2

    R_sigma = sum(
        np.prod(weights[list(i)]) * loss(w + sigma * nodes[list(i)])
        for i in itertools.product(range(3), repeat=2 * d)
    )
    R_eff = loss(w) + 2 * sigma**2 * np.square(X).mean(0) @ (w[:d] ** 2 + w[d:] ** 2)
    assert R_sigma == pytest.approx(R_eff + 2 * sigma**4 * np.square(X).sum() / n, rel=1e-12)


def test_at_a_sparse_pair_eq_7_is_eq_8():
    rng = np.random.default_rng(0)
    X, y, beta, sigma = (
        rng.standard_normal((4, 6)),
        rng.standard_normal(4),
        rng.standard_normal(6),
        0.3,
    )
    w1, w2 = np.sqrt(np.maximum(beta, 0)), np.sqrt(np.maximum(-beta, 0))
    eq7 = np.square(y - X @ (w1**2 - w2**2)).mean() / 2 + 2 * sigma**2 * np.square(X).mean(0) @ (
        w1**2 + w2**2
    )
    assert lasso.penalised(beta, X, y, sigma) == pytest.approx(eq7, rel=1e-12)


def test_the_librarys_R_is_eq_7():
    net = lasso.DiagonalNet(7, spread=0.3).build(0).double().train()
    data = Data("planted", train=5, features=7).load(0)
    x, y = data.x_train.double(), data.y_train.double()
    with dither.inject(net, dither.Weight(0.2), seed=0) as noise:
        R = dither.explicit(noise, x, y, "half_square").R
    closed = 2 * 0.2**2 * x.square().mean(0) @ (net.w1**2 + net.w2**2)
    torch.testing.assert_close(R, closed, rtol=1e-10, atol=0)


# ----------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("figure", [fig1.figure, lasso.figure], ids=["fig1", "lasso"])
def test_a_smoke_run_gives_a_picture_and_a_verdict_on_every_claim(figure):
    table = smoke(figure)
    picture = io.BytesIO()
    figure.plot(table).savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")
    for claim in figure.claims:
        holds, numbers = claim.check(table)
        assert holds in (True, False, None)
        assert numbers


def grown(full: float, layerwise: float) -> Table:
    """Fig. 1 where the excess over R = 1 grows as d₁^full and d₁^layerwise."""
    rows = []
    for d1 in (10, 100, 1000, 10_000):
        term = 1e-3 * d1
        rows += [
            (d1, "R", 1.0),
            (d1, "R_eff", 2.0),
            (d1, "R_eff closed", 2.0),
            (d1, "σ⁴/2n d₁d₂‖X‖²", term),
        ]
        for scheme, excess in (("full", 1e-3 * d1**full), ("layer-wise", 1e-3 * d1**layerwise)):
            rows += [(d1, f"{q} {scheme}", excess) for q in ("exact", "sampled")]
            rows += [(d1, f"sem {scheme}", 0.1)]
    labels = [f"{activation}, {init} init" for activation, init in fig1.NETS]
    return Table.of({label: dict.fromkeys(range(5), rows) for label in labels})


@pytest.mark.parametrize(
    ("claim", "full", "layerwise", "holds"),
    [
        ("O8", 1, 0, True),
        ("O8", 0.5, 0, False),
        ("O8", 1.5, 0, False),
        ("O8 ReLU", 1, 0, True),
        ("O8 ReLU", 0.5, 0, False),
        ("O8 term", 1, 0, True),
        ("O8 term", 1.1, 0, False),
        ("O9", 1, 0, True),
        ("O9", 1, 1, False),
        ("O9 ReLU", 1, 0, True),
        ("O9 ReLU", 1, 1, False),
    ],
)
def test_claims_of_fig1_can_fail(claim, full, layerwise, holds):
    assert verdict(fig1.figure, claim, grown(full, layerwise))[0] is holds


def test_o8_is_about_the_mean_over_seeds():
    """One seed with a negative excess does not change a mean that grows; a negative mean does."""
    rows = {}
    for label in (f"{activation}, {init} init" for activation, init in fig1.NETS):
        rows[label] = {seed: [] for seed in range(5)}
        for d1 in (100, 1000, 10_000):
            for seed, excess in enumerate(1e-3 * d1 * np.array([-1, 3, 2, 2, 2])):
                values = {"exact full": excess, "sampled full": excess, "sem full": 1.0}
                rows[label][seed] += [(d1, quantity, value) for quantity, value in values.items()]
    holds, numbers = verdict(fig1.figure, "O8 ReLU", Table.of(rows))
    assert holds
    assert all(abs(n.mean - 1) < 1e-9 for name, n in numbers.items() if "slope" in name)
    turned = {
        label: {s: [(d, q, -v) for d, q, v in part] for s, part in seeds.items()}
        for label, seeds in rows.items()
    }
    holds, numbers = verdict(fig1.figure, "O8 ReLU", Table.of(turned))
    assert holds is None  # a mean excess below 0 has no logarithm
    assert "not finite" in numbers["why"]


def test_pseudovalues_of_a_mean_are_its_values_and_of_a_slope_have_the_jackknifes_error():
    rng = np.random.default_rng(0)
    rows = rng.random((7, 3)) + 1
    np.testing.assert_allclose(fig1.pseudovalues(rows, lambda x: x[:, 0].mean()), rows[:, 0])
    fit = lambda x: fig1.slope(np.array([1.0, 10.0, 100.0]), x)  # noqa: E731
    values, without = fig1.pseudovalues(rows, fit), [fit(np.delete(rows, s, 0)) for s in range(7)]
    error = np.sqrt(6 / 7 * np.square(without - np.mean(without)).sum())
    assert values.std(ddof=1) / 7**0.5 == pytest.approx(error)


def ended(noise=1.0, gd_is_sparse=False, explicit=1.0, second=2.0, fourth=4.0) -> Table:
    """The Lasso figure with β at the Lasso solution times a factor (noise, explicit)."""
    results = {}
    for label, factor in (("GD", 0), ("GD + noise", noise), ("GD on R_eff", explicit)):
        results[label] = {}
        for seed in range(5):
            _, _, best = lasso.problem(lasso.DATA, seed, lasso.SIGMA)
            beta = factor * best if factor or gd_is_sparse else np.ones_like(best)
            results[label][seed] = [(1, f"β{j:03d}", b) for j, b in enumerate(beta)]
    rows = []
    for s in (0.05, 0.1, 0.2, 0.4, 0.8):
        rest = 0.1 * s**fourth
        rows += [(s, "R", s**2), (s, "R eq. 7", s**2), (s, "R_σ − L", s**second), (s, "sem", 1e-4)]
        rows += [(s, "R_σ − R_eff", rest), (s, "2σ⁴‖X‖²/n", 0.1 * s**4)]
    return Table.of({**results, "theorems": dict.fromkeys(range(5), rows)})


@pytest.mark.parametrize(
    ("claim", "case", "holds"),
    [
        ("O1", {}, True),
        ("O1", {"noise": 1.2}, False),
        ("O1", {"gd_is_sparse": True, "noise": 1.001}, False),
        ("O1", {"explicit": 2.0}, None),
        ("O5", {}, True),
        ("O5", {"second": 3.0}, False),
        ("O6", {}, True),
        ("O6", {"fourth": 3.0}, False),
    ],
)
def test_claims_of_the_lasso_can_fail(claim, case, holds):
    assert verdict(lasso.figure, claim, ended(**case))[0] is holds
