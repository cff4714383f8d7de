"""Orvieto et al. 2022, simple models: convex problems against slow solvers, figures' claims."""

import io

import numpy as np
import pytest
import torch
from scipy import optimize
from sklearn.linear_model import Lasso

import dither
from dither.lab.figure import Silent
from dither.lab.nets.specs import DiagonalNet
from dither.lab.runs.execute import execute
from dither.lab.table import Table
from dither.papers.orvieto2022 import (
    convex,
    drawing,
    fig2,
    function_space,
    group_lasso,
    logistic,
    nuclear,
    psd,
    simple,
)

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 4)), RNG.normal(size=(12, 3))
FIGURES = {m.__name__.rpartition(".")[2]: m.figure for m in (nuclear, group_lasso, psd, logistic,
                                                             function_space, fig2)}  # fmt: skip


def verdict(module, claim: str, table: Table):
    return next(c for c in module.figure.claims if c.id == claim).check(table)


def scipy_minimum(f, start: np.ndarray) -> float:
    """By L-BFGS on a smooth form, from several starts' best."""
    ends = [
        optimize.minimize(f, start * s, method="L-BFGS-B",
                          options={"maxiter": 10_000, "maxfun": 10**6, "ftol": 1e-15}).fun
        for s in (1.0, 0.5, 2.0)
    ]  # fmt: skip
    return min(ends)


# ------------------------------------------------------------------- convex problems, by others


def test_nuclear_is_the_least_of_eq_9_over_factorisations():
    sigma, d0, d2 = 0.6, 4, 3

    def eq9(w: np.ndarray) -> float:
        W1, W2 = w[: 4 * d0].reshape(4, d0), w[4 * d0 :].reshape(d2, 4)
        fit = np.square(Y.T - W2 @ W1 @ X.T).sum() / 2
        R = d2 * np.square(W1 @ X.T).sum() + np.square(W2).sum() * np.square(X).sum()
        return float((fit + sigma**2 / 2 * R) / 12)

    M, value = convex.nuclear(X, Y, sigma)
    assert value == convex.nuclear_value(M, X, Y, sigma)
    assert scipy_minimum(eq9, RNG.normal(size=28)) == pytest.approx(value, rel=1e-4)
    assert np.linalg.matrix_rank(M, 1e-9) < 3  # the penalty bites


def test_the_nuclear_solution_is_optimal_to_first_order():
    """(Yᵀ − Z)P = λ(UVᵀ + W) with ‖W‖ ≤ 1 and W ⟂ U, V: the subgradient's condition."""
    sigma = 0.6
    Z = convex.nuclear(X, Y, sigma)[0] @ X.T
    P = X @ np.linalg.pinv(X)
    lam = sigma**2 * np.sqrt(3) * np.linalg.norm(X)
    U, s, Vt = np.linalg.svd(Z, full_matrices=False)
    U, Vt = U[:, s > 1e-9], Vt[s > 1e-9]
    W = (Y.T @ P - Z) / lam - U @ Vt
    assert np.linalg.norm(W, 2) <= 1 + 1e-9
    np.testing.assert_allclose(U.T @ W, 0, atol=1e-9)
    np.testing.assert_allclose(W @ Vt.T, 0, atol=1e-9)


def test_group_lasso_is_the_least_of_eq_37_over_factors():
    sigma, blocks, y = 0.5, RNG.normal(size=(3, 12, 2)), Y[:, 0]

    def eq37(p: np.ndarray) -> float:
        v, w = p[:3], p[3:].reshape(3, 2)
        parts = np.einsum("dnk,dk->dn", blocks, w)
        fit = np.square(y - v @ parts).sum() / 2
        R = np.square(parts).sum() + np.square(v) @ np.square(blocks).sum((1, 2))
        return float((fit + sigma**2 / 2 * R) / 12)

    beta, value = convex.group_lasso(blocks, y, sigma)
    assert beta.shape == (3, 2)
    assert scipy_minimum(eq37, RNG.normal(size=9)) == pytest.approx(value, rel=1e-4)


def test_groups_of_one_are_the_lasso():
    sigma, y = 0.4, Y[:, 0]
    norms = np.linalg.norm(X, axis=0)
    weight = sigma**2 * np.square(norms) / 12  # |β_j|'s price: σ²/n ‖X_j‖²
    model = Lasso(alpha=1, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(X / weight, y)
    beta, _ = convex.group_lasso(X.T[:, :, None], y, sigma)
    np.testing.assert_allclose(beta[:, 0], model.coef_ / weight, atol=1e-6)


def test_psd_is_the_least_over_factors():
    S = RNG.normal(size=(4, 4))
    S = S + S.T

    def of(w: np.ndarray) -> float:
        W = w.reshape(4, 5)
        return convex.psd_value(W @ W.T, S, 0.3)

    M, value = convex.psd(S, 0.3)
    assert np.linalg.eigvalsh(M).min() > -1e-12
    assert scipy_minimum(of, RNG.normal(size=20)) == pytest.approx(value, rel=1e-4)


def test_max_margin_is_no_worse_than_a_search_over_directions():
    y = np.sign(X[:, 0])
    squares, t = convex.max_margin(X, y, 0.1)
    assert squares.sum() == pytest.approx(1)
    assert convex.margin(squares, X, y, 0.1) == pytest.approx(t)
    random = RNG.dirichlet(np.full(8, 0.3), size=5000)
    assert max(convex.margin(s, X, y, 0.1) for s in random) <= t
    found = optimize.minimize(
        lambda p: -convex.margin(np.exp(p) / np.exp(p).sum(), X, y, 0.1),
        np.log(squares + 0.01), method="Nelder-Mead", options={"maxiter": 20_000, "maxfev": 20_000},
    )  # fmt: skip
    assert -found.fun == pytest.approx(t, rel=0.05)
    assert -found.fun <= t + 1e-9


def test_margin_is_the_networks_own():
    net, sigma = DiagonalNet(4, spread=0.3).build(0).double(), 0.3
    y = np.sign(X[:, 0])
    w = torch.cat([net.w1, net.w2]).detach().requires_grad_()
    x = torch.from_numpy(X)
    Phi = x @ (w[:4] ** 2 - w[4:] ** 2)
    each = [
        y[i] * Phi[i].item()
        - sigma**2 / 2 * torch.autograd.grad(Phi[i], w, retain_graph=True)[0].square().sum().item()
        for i in range(12)
    ]
    squares = (w.detach() ** 2).numpy()
    assert convex.margin(squares, X, y, sigma) == pytest.approx(min(each), rel=1e-12)


def test_function_space_beats_every_network_and_is_attained_by_one():
    x, y, sigma = X[:8, :2], Y[:8, 0], 0.2
    a, b, value, gap = convex.function_space(x, y, sigma)
    assert 0 <= gap <= 1e-7 * value
    fit = np.square(y - np.maximum(x @ b.T, 0) @ a).mean() / 2
    assert fit + sigma**2 * convex.variation(a, b, x) == pytest.approx(value, rel=1e-9)
    for _ in range(200):
        m = RNG.integers(1, 6)
        other, units = RNG.normal(size=m), RNG.normal(size=(m, 2))
        phi = np.maximum(x @ units.T, 0)
        scale = (y @ phi @ other) / max(np.square(phi @ other).sum(), 1e-12)  # the best multiple
        fit = np.square(y - scale * phi @ other).mean() / 2
        assert fit + sigma**2 * convex.variation(scale * other, units, x) >= value


@pytest.mark.parametrize("seed", range(4))
def test_the_convex_solution_as_a_network_has_its_value_and_no_scale_is_better(seed):
    x, y = function_space.problem(seed)
    a, b, value, _ = convex.function_space(x.numpy(), y[:, 0].numpy(), 0.2)
    net = function_space.as_network(a, b, x.numpy())

    def total() -> float:
        with dither.inject(net, dither.Weight(0.2), seed=0) as noise, torch.no_grad():
            loss, R, _ = dither.explicit(noise, x, y, "half_square")
        return float(loss + R)

    assert total() == pytest.approx(value, rel=1e-8)
    W1, W2 = net.parameters()
    for c in (0.9, 1.1):
        with torch.no_grad():
            W1[0] *= c
            W2[:, 0] /= c
        assert total() > value * (1 + 1e-6)
        with torch.no_grad():
            W1[0] /= c
            W2[:, 0] *= c


@pytest.mark.parametrize(("gap", "holds"), [(1e-9, True), (-1e-9, True), (2e-4, False)])
def test_the_solution_is_attained_or_not(gap, holds):
    rows = [(0, "gap as a network", gap), (0, "directions", 4), (0, "duality gap", 1e-8)]
    table = Table.of({"plane": dict.fromkeys(range(5), rows)})
    assert verdict(function_space, "D3 solution", table)[0] is holds


def test_the_variation_norm_is_r_at_the_best_scale():
    a, b = RNG.normal(size=5), RNG.normal(size=(5, 4))

    def R(scale: np.ndarray) -> float:
        h = X @ (b * np.exp(scale)[:, None]).T
        slope = (h > 0) * np.square(a * np.exp(-scale)) * np.square(X).sum(1)[:, None]
        return float((np.square(np.maximum(h, 0)) + slope).sum() / 24)

    least = optimize.minimize(R, np.zeros(5)).fun
    assert convex.variation(a, b, X) == pytest.approx(least, rel=1e-8)


def test_what_is_not_in_the_plane_is_refused():
    with pytest.raises(dither.DitherError, match=r"in the plane, \[n, 2\]: got \[12, 4\]"):
        convex.function_space(X, Y[:, 0], 0.1)
    with pytest.raises(dither.DitherError, match="1 sweeps left a gap"):
        convex.group_lasso(RNG.normal(size=(3, 12, 2)), Y[:, 0], 0.1, sweeps=1)


@pytest.mark.parametrize(
    ("gd", "noise", "holds"), [(0.99, 0.99, True), (0.99, 0.7, False), (0.8, 0.99, None)]
)
def test_separable_data_are_judged_once_the_control_is_at_its_limit(gd, noise, holds, monkeypatch):
    """Attained values by run, of GD's own program (σ = 0) and of the noise's."""

    def ends(t, label, sigma):
        value = {logistic.NOISE: noise, logistic.GD: gd if sigma == 0 else 0.6}[label]
        return np.full(5, value)

    monkeypatch.setattr(logistic, "ends", ends)
    monkeypatch.setattr(logistic, "attained", lambda *_: np.full((5, 3), 0.5))
    monkeypatch.setattr(logistic, "_solution_at_zero", lambda _: np.full(5, 0.6))
    found, numbers = verdict(logistic, "O7", Table.of({"x": {0: [(0, "y", 0.0)]}}))
    assert found is holds
    assert ("the control" in numbers.get("why", "")) == (holds is None)


def test_steps_along_the_gradient_over_the_loss_come_to_the_largest_margin():
    """σ = 0: Lyu & Li's theorem, on the way to ‖w‖² = 300; with noise the other program's value."""
    rows = list(logistic.normalised(0, Silent(), norms=(20.0, 300.0), rate=0.01))
    value = {(norm, quantity): v for norm, quantity, v in rows}
    own = [value[300.0, f"attained {label}, σ = {s:g}"]
           for label, s in ((logistic.GD, 0.0), (logistic.NOISE, logistic.SIGMA))]  # fmt: skip
    early = value[20.0, f"attained {logistic.GD}, σ = 0"]
    assert min(own) > 0.9
    assert max(value.values()) <= 1 + 1e-9
    assert own[0] > early


# --------------------------------------------------------------------- what the noise minimises


def test_noise_on_a_psd_factor_is_a_trace_penalty_of_its_own_strength():
    """E ½‖Y − (w + σE)(w + σE)ᵀ‖² against ½‖Y − M‖² + σ²(d + 1 + r) tr M + c, by differences."""
    rng = torch.Generator().manual_seed(0)
    d, r, sigma = 3, 4, 0.3
    S = torch.randn(d, d, generator=rng, dtype=torch.float64)
    S, x = S + S.T, torch.ones(1, 1, dtype=torch.float64)
    rest = []
    for size in (0.3, 1.0):
        net = psd.Square(size * torch.randn(d, r, generator=rng, dtype=torch.float64))
        M = (net.w @ net.w.T).detach()
        with dither.inject(net, dither.Weight(sigma), seed=0) as noise, torch.no_grad():
            loss, R, _ = dither.explicit(noise, x, S.reshape(1, -1), "half_square")
            excess = dither.expected(noise, x, S.reshape(1, -1), "half_square", draws=1000,
                                     antithetic=True, seed=0)  # fmt: skip
        assert R.item() == pytest.approx(sigma**2 * (d + 1) * M.trace().item(), rel=1e-10)
        # E ‖EEᵀ − rI‖² = d r (d + 1), and the fourth order of ½‖σ² r I‖²
        fourth = sigma**4 / 2 * (d * r**2 + d * r * (d + 1))
        first = sigma**2 * ((d + 1 + r) * M.trace() - r * S.trace()).item()
        rest.append((excess.value - first - fourth) / excess.sem)
        assert loss.item() == pytest.approx(0.5 * (S - M).square().sum().item())
    assert np.abs(rest).max() < 4.5


@pytest.mark.parametrize(("m", "s2"), [(2.0, 1.0), (20.0, 9.0), (300.0, 100.0)])
def test_log_noisy_is_the_integral(m, s2):
    z = np.linspace(-60, 60, 2_000_001)
    u = -(m + np.sqrt(s2) * z)
    logs = np.where(u < -30, u, np.log(np.log1p(np.exp(np.clip(u, -30, 500))))) - z**2 / 2
    known = logs.max() + np.log(np.exp(logs - logs.max()).sum() * (z[1] - z[0]))
    got = logistic.log_noisy(*torch.tensor([[m], [s2]], dtype=torch.float64)).item()
    assert got + np.log(80 / 2000) == pytest.approx(known, abs=1e-3)
    assert np.isfinite(got)


def test_log_explicit_is_the_loss_and_its_r():
    m, s2 = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)
    p = torch.sigmoid(-m)
    known = (torch.log1p((-m).exp()) + p * (1 - p) * s2 / 2).log()
    torch.testing.assert_close(logistic.log_explicit(m, s2), known, rtol=1e-12, atol=0)


# ---------------------------------------------------------------------------------- the figures


@pytest.mark.parametrize("name", FIGURES)
def test_figures_run_and_draw(name):
    figure = FIGURES[name]
    table = Table.of({k: execute(r, (0, 1), Silent()) for k, r in figure.at("smoke").items()})
    for claim in figure.claims:
        holds, numbers = claim.check(table)
        assert holds in (True, False, None)
        assert numbers
    figure.plot(table).savefig(io.BytesIO())


@pytest.mark.parametrize(
    ("noise", "control", "holds"), [(0.01, 0.5, True), (0.2, 0.5, False), (0.01, 0.02, False)]
)
def test_reaching_means_the_noise_and_not_the_control(noise, control, holds):
    found = {f"gap {simple.NOISE}": noise, f"gap {simple.GD}": control}
    rows = [(0, q, v) for q, v in found.items()]
    for n, said in ((5, holds), (4, None)):
        table = Table.of({"net": dict.fromkeys(range(n), rows)})
        assert simple.reaches(table, "net")[0] is said


@pytest.mark.parametrize(
    ("gaps", "holds"), [([5e-5, 0.3], True), ([2e-4], False), ([-1e-3], False)]
)
def test_attained_means_to_1e_4_both_ways(gaps, holds):
    found = [(i, f"gap {simple.MINIMISED}", g) for i, g in enumerate(gaps)]
    for n, said in ((5, holds), (4, None)):
        table = Table.of({"net": dict.fromkeys(range(n), found)})
        assert simple.attained(table, "net")[0] is said


@pytest.mark.parametrize(
    ("claim", "full", "layer", "on_R", "holds"),
    [("O10", 2.0, 1.5, 1.01, True), ("O10", 2.9, 1.5, 1.01, False), ("O10", 2.0, 1.5, 1.5, None),
     ("O11", 4.0, 2.0, 1.01, True), ("O11", 2.0, 2.0, 1.01, False), ("O11", 4.0, 2.9, 1.01, False),
     ("O11", 4.0, 2.0, 1.5, None), ("O11 order", 4.0, 2.0, 1.01, True),
     ("O11 order", 2.0, 2.0, 1.01, False), ("O10 within", 1.05, 1.05, 1.01, True),
     ("O10 within", 2.0, 1.05, 1.01, False), ("O11 within", 4.0, 1.05, 1.01, True)],
)  # fmt: skip
def test_fig2_compares_distances_to_the_minimum(claim, full, layer, on_R, holds):
    seeds = range(5)
    low = fig2.minima(Table.of({"x": {s: [(0, "L + R", 1.0)] for s in seeds}}))
    levels = {fig2.GD: 3.0, fig2.FULL: full, fig2.LAYER: layer, fig2.ON_R: on_R}
    found = {
        f"{m}, {units}": {s: [(0, "L + R", v * low[s])] for s in seeds}
        for m, v in levels.items()
        for units in fig2.UNITS
    }
    assert verdict(fig2, claim, Table.of(found))[0] is holds


@pytest.mark.parametrize(("full", "holds"), [(1.5, True), (1.05, False)])
def test_what_is_left_at_a_rate_of_0_is_full_noise_on_300_units(full, holds):
    seeds = range(5)
    low = fig2.minima(Table.of({"x": {s: [(0, "L + R", 1.0)] for s in seeds}}))
    ends = {(m, u): 1.02 for m in (fig2.FULL, fig2.LAYER) for u in fig2.UNITS}
    ends[fig2.FULL, 300] = full
    rows = {
        f"{m}, {u}, annealed": {s: [(0, "L + R", v * low[s])] for s in seeds}
        for (m, u), v in ends.items()
    }
    assert verdict(fig2, "floor", Table.of(rows))[0] is holds


# ------------------------------------------------------------------------------ ways of drawing


def test_one_R_for_all_ways_and_the_mirrored_half_is_the_mirror_image():
    net = drawing.network(0).double().eval()
    x, y = torch.randn(8, 784, dtype=torch.float64), torch.arange(8)
    sums = {}
    for way in (*drawing.SAME_R, "by layer", "weights only"):
        with drawing.injected(net, drawing.WAYS[way], 0.1, 0) as noise, torch.no_grad():
            _, R, by_site = dither.explicit(noise, x, y)
            weights = sum(r for name, r in by_site.items() if name.endswith(".weight"))
            sums[way] = len(noise.groups) * R.item(), len(noise.groups) * float(weights)
    whole = [sums[way][0] for way in (*drawing.SAME_R, "by layer")]
    np.testing.assert_allclose(whole, whole[0], rtol=1e-12)
    np.testing.assert_allclose(sums["weights only"][0], sums["all"][1], rtol=1e-12)
    seen = []
    net.train()
    net[0].register_forward_hook(lambda m, *_: seen.append(m.weight.detach()))
    with drawing.injected(net, drawing.WAYS["all"], 0.1, 0) as noise:
        drawing.descend(net, noise, x, y, pairs=True)
    torch.testing.assert_close((seen[0] + seen[1]) / 2, net[0].weight.detach())
    assert not torch.allclose(seen[0], net[0].weight)


@pytest.mark.parametrize(("cyclic", "holds"), [(0.5, True), (1.5, False)])
def test_flatter_compares_with_no_noise(cyclic, holds):
    name = f"trace at loss {drawing.LEVEL:g}"
    levels = dict.fromkeys(drawing.WAYS, 0.5) | {"no noise": 1.0, "cyclic": cyclic}
    for loss, said in ((0.1, holds), (1.5, None)):
        found = {
            w: {s: [(1, "trace", v), (0, name, v), (1, "loss/train", loss)] for s in range(5)}
            for w, v in levels.items()
        }
        table = Table.of(found)
        assert verdict(drawing, "flatter", table)[0] is said
        assert verdict(drawing, "flatter at one loss", table)[0] is holds
