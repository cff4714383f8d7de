"""docs/math.md: kinks (section 2), signs and labels (6), two errata (17)."""

import itertools

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.optimize import linprog
from torch import nn

import dither
from dither import loss as losses
from dither.measures import local
from dither.noise.draw import Source
from dither.papers.orvieto2022 import convex


def test_kinks_cost_half_the_density_at_0():
    """∫ [φ(u) − |u| Φ(−|u|)] du = ½; and by the library: units of a ReLU with evenly spread
    pre-activations cost ½σ² a unit of density, of which R, and all of second order, know nothing.
    """
    value = integrate.quad(
        lambda u: stats.norm.pdf(u) - abs(u) * stats.norm.cdf(-abs(u)), -40, 40, points=[0]
    )[0]
    assert value == pytest.approx(0.5, abs=1e-10)
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    sigma, n, half = 0.05, 1001, 1.0
    a = torch.linspace(-half, half, n, dtype=torch.float64)[:, None]  # density 1/2 at 0
    y, linear = torch.zeros_like(a), lambda z, y: z[:, 0]
    with dither.inject(model, {"0:out": dither.Additive(sigma)}) as noise:
        cost = dither.expected(noise, a, y, linear, draws=2000, antithetic=True, seed=0)
    # 5 of its standard errors: false once in 2 million
    assert abs(cost.value - sigma**2 / 2 * (1 / (2 * half))) < 5 * cost.sem
    assert cost.sem < 0.1 * cost.value


def test_the_variance_of_one_column_of_signs():
    """Over all 2^K signs: Var ρᵀAρ = 2(‖A‖² − Σ A_cc²)."""
    G = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A = G.T @ G
    signs = torch.tensor([*itertools.product([1.0, -1.0], repeat=4)], dtype=torch.float64)
    draws = torch.einsum("sc,cd,sd->s", signs, A, signs)
    torch.testing.assert_close(draws.mean(), A.trace())
    variance = 2 * (A.square().sum() - A.diagonal().square().sum())
    torch.testing.assert_close(draws.var(correction=0), variance)


def lost(seed: int, scale: float = 1.0) -> float:
    """The share of the lost term in the norm of ∇_θ tr(JᵀHJ), exactly, of a tanh net 4-6-5."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    x = torch.randn(4, dtype=torch.float64)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(scale)

    def log_p(x):
        return net(x).log_softmax(-1)

    J = torch.autograd.functional.jacobian(log_p, x, create_graph=True)
    p, norms = log_p(x).exp(), J.square().sum(1)  # Σ_i p_i ‖∇ log p_i‖²: the trace

    def gradient(f):
        found = torch.autograd.grad(f, list(net.parameters()), retain_graph=True, allow_unused=True)
        return torch.cat([torch.zeros(1) if g is None else g.flatten() for g in found])

    label = gradient((p.detach() * norms).sum())  # the mean over y' ~ p of what autograd gives
    score = gradient((p * norms.detach()).sum())
    whole = gradient((p * norms).sum())
    torch.testing.assert_close(label + score, whole)
    return float(score.norm() / whole.norm())


def test_a_sampled_label_loses_part_of_the_gradient():
    at_start, sharp = ([lost(seed, scale) for seed in range(10)] for scale in (1, 3))
    assert 0.05 < min(at_start) < max(at_start) < 0.3
    assert max(sharp) > 0.4  # with sharper probabilities it can be most of it


def test_the_trace_is_that_of_the_library():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    x, y = torch.randn(1, 4, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    with dither.inject(net, {"input": dither.Additive(1.0)}) as noise:
        R = dither.explicit(noise, x, y, losses.get("cross_entropy")).R
    J = torch.autograd.functional.jacobian(lambda a: net(a).log_softmax(-1), x[0])
    p = net(x[0]).softmax(-1)
    torch.testing.assert_close(R, (p * J.square().sum(1)).sum() / 2)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_two_gaussians_at_plus_and_minus_are_symmetric(k):
    """Levi et al. call the law asymmetric; its odd moments vanish."""
    assert local.moment(dither.two_gaussian, k) == 0
    draw = dither.two_gaussian.sample(Source([5]), torch.empty(200_000, dtype=torch.float64))
    odd = draw**k
    assert abs(odd.mean()) < 5 * odd.std() / len(odd) ** 0.5  # false once in 2 million


def test_orvietos_two_problems_for_separable_labels_differ():
    """The main text's, the least ‖DΦ‖² with margins ≥ 1, and App. B's, the largest least penalised
    margin, point elsewhere: in squares both are linear programs.
    """
    rng = np.random.default_rng(1)
    X = rng.normal(size=(12, 4))
    y, sigma = np.sign(X[:, 0]), 0.3
    signed, cost = y[:, None] * X, 4 * np.square(X).sum(0)
    found = linprog(np.r_[cost, cost], -np.hstack([signed, -signed]), -np.ones(12))
    assert found.success
    printed = convex.margin(found.x / found.x.sum(), X, y, sigma)
    squares, right = convex.max_margin(X, y, sigma)
    assert convex.margin(squares, X, y, sigma) == pytest.approx(right)
    assert (round(printed, 3), round(right, 3)) == (-0.050, 0.067)
