"""Camuto et al. 2020, Theorem 2 and App. B: integrals by quadrature, ridge, claims can fail."""

import io

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from dither.lab.data.sets import FREQUENCIES
from dither.lab.figure import Silent
from dither.lab.runs.execute import execute
from dither.lab.table import Table
from dither.papers.camuto2020 import theorem2, tikhonov
from dither.papers.camuto2020.theorem2 import FEW, ONE, TWO
from dither.papers.camuto2020.tikhonov import NETS, SIGMAS, WIDTHS

# ---------------------------------------------------------------- Theorem 2


def bump(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f = e^(−x²/2) cos 3x and f′."""
    f = np.exp(-(x**2) / 2) * np.cos(3 * x)
    return f, -x * f - 3 * np.exp(-(x**2) / 2) * np.sin(3 * x)


def gaussian(x, mean=0.7, std=0.3):
    return np.exp(-((x - mean) ** 2) / (2 * std**2)) / np.sqrt(2 * np.pi) / std


def G(omega):
    """ω F(ω) of `bump`, in closed form."""
    return omega * np.sqrt(np.pi / 2) * sum(np.exp(-((omega + s) ** 2) / 2) for s in (-3, 3))


def convolved(omega: float) -> complex:
    """(G ∗ P)(ω) by quadrature, P(ω) = exp(−0.7iω − 0.045ω²)."""

    def at(nu: float, part) -> float:
        return part(G(nu) * np.exp(-0.7j * (omega - nu) - 0.045 * (omega - nu) ** 2))

    return complex(*(quad(at, -12, 12, args=(p,), limit=200)[0] for p in (np.real, np.imag)))


def test_the_three_sides_are_what_quadrature_says():
    points = 1024
    x, _ = theorem2.grid(points, 1)
    f, slope = bump(x[:, 0])
    left, right, bound = theorem2.three(f, slope[:, None], gaussian(x[:, 0]), points, 1)
    truth = quad(lambda x: float(gaussian(x) * bump(np.array(x))[1] ** 2), -8, 8, limit=200)[0]
    assert left == pytest.approx(truth, rel=1e-9)
    scale = (2 * np.pi) ** -2
    whole = quad(lambda w: (G(w) * np.conj(convolved(w))).real, -10, 10, limit=100)[0]
    assert right == pytest.approx(scale * whole, rel=1e-6)
    assert right == pytest.approx(left, rel=1e-9)
    modulus = quad(lambda w: abs(G(w) * convolved(w)), -10, 10, limit=100)[0]
    assert bound == pytest.approx(scale * modulus, rel=1e-4)  # its ω step is π/8
    assert bound > 1.01 * left


def test_in_two_dimensions_a_product_is_a_sum_of_products():
    """f(x)f(y) under p(x)p(y): ∫p|∇f|² = 2 ∫pf′² ∫pf²."""
    points = 128
    x, axis = theorem2.grid(points, 2)
    (f, df), p = bump(axis), gaussian(axis)
    both = np.stack([np.outer(df, f).ravel(), np.outer(f, df).ravel()], 1)
    sides = theorem2.three(np.outer(f, f).ravel(), both, np.outer(p, p).ravel(), points, 2)
    cell = axis[1] - axis[0]
    truth = 2 * (p * df**2).sum() * (p * f**2).sum() * cell**2
    assert sides[0] == pytest.approx(truth, rel=1e-9)
    assert sides[1] == pytest.approx(truth, rel=1e-9)
    assert sides[2] > truth
    assert x[1].tolist() == [axis[0], axis[1]]


def test_the_density_is_one_and_the_functions_gradient_its_own():
    x, axis = theorem2.grid(64, 2)
    data = theorem2.components(2)[:20]
    p = theorem2.density(axis, data, 1.0)
    assert p.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-6)
    by_hand = np.mean([np.exp(-np.square(x[777] - d).sum() / 2) / 2 / np.pi for d in data])
    assert p[777] == pytest.approx(by_hand)
    h = 1e-6
    f, slope = theorem2.function(0, x, 4.0)
    up, _ = theorem2.function(0, x + np.array([0, h]), 4.0)
    assert (up - f) / h == pytest.approx(slope[:, 1], abs=1e-4)
    assert np.abs(f[0]) < 1e-6 * np.abs(f).max()


def sides(bound: dict[float, float], right: float = 1.0) -> Table:
    rows = [
        (h, q, v)
        for h, b in bound.items()
        for q, v in zip(theorem2.SIDES, (1.0, right, b), strict=True)
    ]
    return Table.of({label: dict.fromkeys(range(5), rows) for label in (ONE, TWO, FEW)})


def check(figure, claim: str, table: Table):
    return next(c for c in figure.claims if c.id == claim).check(table)[0]


@pytest.mark.parametrize(
    ("claim", "table", "holds"),
    [
        ("Theorem 2", sides({0.25: 1.005, 1.0: 1.2}), True),
        ("Theorem 2", sides({0.25: 1.02, 1.0: 1.0}), False),
        ("Theorem 2 ours", sides({0.25: 1.02}), True),
        ("Theorem 2 ours", sides({0.25: 1.02}, right=1.00001), False),
        ("Theorem 2 bound", sides({0.25: 1.02, 1.0: 1.0}), True),
        ("Theorem 2 bound", sides({0.25: 1.0, 1.0: 1.02}), False),
        ("Theorem 2 bound", sides({0.25: 1.0, 1.0: 0.99}), False),
    ],
)
def test_theorem_2s_claims_can_hold_and_fail(claim, table, holds):
    assert check(theorem2.figure, claim, table) is holds


# ---------------------------------------------------------------- App. B


def test_ridge_is_scikit_learns():
    from sklearn.linear_model import Ridge

    from dither.lab.data.sets import Data

    t = Data("boston").load(1)
    n = len(t.x_train)
    theirs = Ridge(alpha=n * 0.25, fit_intercept=False).fit(t.x_train, t.y_train[:, 0])
    assert tikhonov.ridge(1, 0.5) == pytest.approx(theirs.coef_.ravel(), abs=1e-5)


def test_bishops_penalty_of_an_affine_net_is_its_norm():
    net, x = torch.nn.Linear(4, 3).double(), torch.randn(5, 4).double()
    found = tikhonov.bishop(net, x, torch.zeros(5, 3).double(), "half_square")
    torch.testing.assert_close(found, net.weight.square().sum() / 2)


def test_the_filters_minimise_what_they_say():
    """Of a·sin(ωt) for sin(ωt) under noise of t: ½a² − a e^(−u²/2), but for constants."""
    u = np.linspace(0, 3, 7)
    a = np.linspace(0, 1.2, 12_001)[:, None]
    noisy = a**2 / 2 - a * np.exp(-(u**2) / 2)
    penalised = (1 - a) ** 2 / 2 + u**2 * a**2 / 2
    assert a[noisy.argmin(0), 0] == pytest.approx(tikhonov.law("noise", u), abs=1e-4)
    assert a[penalised.argmin(0), 0] == pytest.approx(tikhonov.law("R", u), abs=1e-4)


def test_smoke_runs_give_pictures():
    for figure in (theorem2.figure, tikhonov.figure):
        runs = figure.at("smoke")
        if figure is tikhonov.figure:
            runs.pop("Fashion-MNIST")  # the slow one; its rows are Boston's
        results = {label: execute(run, (0, 1), Silent()) for label, run in runs.items()}
        if figure is tikhonov.figure:
            results["Fashion-MNIST"] = results["Boston"]
        picture = io.BytesIO()
        table = Table.of(results)
        figure.plot(table).savefig(picture, format="png")
        assert picture.getvalue().startswith(b"\x89PNG")
        for claim in figure.claims:
            holds, numbers = claim.check(table)
            assert numbers
            if claim.id in ("App. B", "App. B ours", "Theorem 2 ours"):  # hold at any training
                assert holds, claim.id


def orders(mc=1.0, full=1.0, gap=0.0, w=1.0, left=0.0) -> Table:
    """Trained: E/R = mc, (R + residual)/R = full, coefficients w of the way to the ridge."""
    results = {}
    for net in NETS:
        row = [("R", 1.0), ("gap", gap), ("full", full)]
        row += [(f"E/{s:g}", mc) for s in SIGMAS] + [(f"sem/{s:g}", 0.001) for s in SIGMAS]
        results[net] = {s: [(t, q, v) for t in (0, 1000) for q, v in row] for s in range(5)}
    for method in tikhonov.LINEAR:
        results[f"linear, {method}"] = {}
        for seed in range(5):
            best, free = tikhonov.ridge(seed, tikhonov.RIDGE), tikhonov.ridge(seed, 0.0)
            at = free + (w if method != "none" else 0.0) * (best - free)
            rows = [(2000, f"w/{j:02d}", v) for j, v in enumerate(at)]
            results[f"linear, {method}"][seed] = [*rows, (2000, "loss/test", 1.0)]
    kept = [
        (u, f"{name}/{s:g}", float(tikhonov.law(name, np.array(u))) + left)
        for s in WIDTHS
        for u in (2 * np.pi * s * np.array(FREQUENCIES)).tolist()
        for name in ("noise", "R")
    ]
    return Table.of({**results, "filters": dict.fromkeys(range(5), kept)})


@pytest.mark.parametrize(
    ("claim", "case", "holds"),
    [
        ("App. B", {}, True),
        ("App. B", {"gap": 1e-6}, False),
        ("App. B ridge", {"w": 0.97}, True),
        ("App. B ridge", {"w": 0.9}, False),
        ("App. B low σ", {"mc": 1.04}, True),
        ("App. B low σ", {"mc": 1.06}, False),
        ("App. B ours", {"mc": 1.2, "full": 1.19}, True),
        ("App. B ours", {"mc": 1.2, "full": 1.17}, False),
        ("App. B filter", {"left": 0.01}, True),
        ("App. B filter", {"left": 0.03}, False),
    ],
)
def test_app_bs_claims_can_hold_and_fail(claim, case, holds):
    assert check(tikhonov.figure, claim, orders(**case)) is holds
