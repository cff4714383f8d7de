"""Orvieto et al. 2022: where the minimisers of the noisy and the explicit loss are."""

import numpy as np
import pytest
import torch

from dither.lab.figure import Silent
from dither.papers.orvieto2022 import minimisers


def test_closed_R_sigma_is_the_mean_over_draws():
    rng = torch.Generator().manual_seed(3)
    for make in minimisers.PROBLEMS.values():
        problem = make(0)
        sigma, values = 0.3, []
        clean = [p.detach().clone() for p in problem.net.parameters()]
        with torch.no_grad():
            for _ in range(4000):
                for p, w in zip(problem.net.parameters(), clean, strict=True):
                    p.copy_(w + sigma * torch.randn(w.shape, generator=rng, dtype=w.dtype))
                left = problem.net(problem.x) - problem.y
                values.append(left.square().sum().item() / 2 / len(problem.y))
            for p, w in zip(problem.net.parameters(), clean, strict=True):
                p.copy_(w)
        constant = 0.0
        if make is minimisers.square:  # what the closed form leaves out: σ⁴ ‖EEᵀ‖²/2 − σ²r tr Y
            d, r, y = minimisers.D, minimisers.R, problem.y.reshape(minimisers.D, -1)
            constant = sigma**4 * r * d * (d + r + 1) / 2 - sigma**2 * r * y.trace().item()
        z = (np.mean(values) - constant - problem.expected(sigma).item()) / (
            np.std(values) / len(values) ** 0.5
        )
        assert abs(z) < 4


@pytest.mark.parametrize("make", minimisers.PROBLEMS.values(), ids=["wwT", "deep"])
def test_newtons_steps_end_at_a_minimum_and_no_saddle(make):
    problem = make(0)
    weights = list(problem.net.parameters())
    assert minimisers.lowest(problem.net, lambda: problem.expected(0.1), 300) < 1e-12
    slope = torch.autograd.grad(problem.expected(0.1), weights, create_graph=True)
    rows = [
        torch.cat([r.flatten() for r in torch.autograd.grad(e, weights, retain_graph=True)])
        for g in slope
        for e in g.flatten()
    ]
    eigenvalues = torch.linalg.eigvalsh(torch.stack(rows))
    assert eigenvalues[0] > -1e-12 * eigenvalues[-1]


def test_the_share_of_the_distances_in_the_square_model_is_a_number_and_0_in_the_deep_one():
    sigmas = (0.05, 0.1)
    rows = minimisers.task(0, Silent(), model=minimisers.SQUARE, sigmas=sigmas, iterations=300)
    found = {(s, name): value for s, name, value in rows}
    d, r = minimisers.D, minimisers.R
    for s in sigmas:  # eigenvalues are lowered by σ²(d + 1 + r), or by σ²(d + 1)
        assert found[s, "σ to φ*"] == pytest.approx(s**4 * (d + 1 + r) ** 2 / d, rel=1e-6)
        assert found[s, "R_eff to σ"] == pytest.approx(s**4 * r**2 / d, rel=1e-6)
        assert found[s, "full to σ"] < 1e-18
    rows = minimisers.task(0, Silent(), model=minimisers.DEEP, sigmas=sigmas, iterations=300)
    found = {(s, name): value for s, name, value in rows}
    shares = [found[s, "R_eff to σ"] / found[s, "σ to φ*"] for s in sigmas]
    assert shares[0] == pytest.approx(shares[1] / 16, rel=0.05)  # σ⁴, but for higher orders
    assert max(value for (_, name), value in found.items() if "slope" in name) < 1e-12
