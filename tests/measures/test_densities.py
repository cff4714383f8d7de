"""The spectral density: the dense one in the mean over all signs; its error, its grid, its plot."""

import math

import oracles
import pytest
import torch
from blocks import case
from signs import Pattern
from torch import nn

import dither
from dither.measures import densities
from dither.measures.densities import density
from dither.measures.lanczos import quadrature


def smoothed(grid, values, width):
    """1/n Σ_i g_w(t − λ_i), one term after another."""
    total = torch.zeros_like(grid)
    for value in values:
        total += torch.exp(-(((grid - value) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
    return total / len(values)


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_over_all_signs_it_is_the_dense_one_and_its_error_the_true_one(matrix, monkeypatch):
    """Seven parameters, so that seven steps of the iteration know the whole matrix."""
    net = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 2)).double()
    x, y = torch.randn(5, 2).double(), torch.tensor([0, 1, 1, 0, 1])
    pattern = Pattern(7)
    monkeypatch.setattr(densities, "signs", pattern)
    found = density(net, "cross_entropy", (x, y), matrix=matrix, probes=2**7, width=0.05, points=50)
    assert pattern.drawn == 7 * 2**7
    true = oracles.curvature(net, x, y, oracles.LOSSES["cross_entropy"], matrix).detach()
    values, vectors = torch.linalg.eigh(true)
    oracles.close(found.density, smoothed(found.grid, values, 0.05), rtol=1e-8)
    variance = []  # of qᵀFq over signs: 2 Σ_{i≠j} F_ij²/n², F = g_w(t − A)
    for t in found.grid:
        heights = torch.stack([smoothed(t, [value], 0.05) for value in values])
        F = vectors @ torch.diag(heights) @ vectors.T
        variance.append(2 * (F.square().sum() - F.diagonal().square().sum()) / 7**2)
    oracles.close(found.sem.square() * (2**7 - 1), torch.stack(variance), rtol=1e-8)
    assert found.size == 7
    mean = (found.weights * found.nodes).sum(1).mean() * found.size
    assert mean.item() == pytest.approx(true.trace().item(), rel=1e-8)


def test_the_area_is_one():
    model, x, y, _ = case("tanh mlp")
    found = density(model, "cross_entropy", (x, y), probes=2, steps=16)
    area = found.density.sum() * (found.grid[1] - found.grid[0])
    assert area.item() == pytest.approx(1, abs=1e-4)  # Φ(−4) is left out at each end


def test_the_default_width_smooths_what_the_nodes_cannot_tell_apart():
    """The quadrature's error is below m e⁻⁸/2 of one eigenvalue's height.   docs/math.md, §22"""
    values, m = torch.linspace(-1, 1, 400).double(), 24
    q = torch.randn(1, 400).double()
    q = q / q.norm()
    nodes, weights = quadrature(lambda v: values * v, q, m, seed=0)
    width = 2 / m
    grid = torch.linspace(-1.2, 1.2, 100).double()
    peak = 1 / (width * math.sqrt(2 * math.pi))
    true = torch.stack([(q[0] ** 2 * peak * torch.exp(-(((t - values) / width) ** 2) / 2)).sum()
                        for t in grid])  # fmt: skip
    found = densities._smoothed(grid, nodes[0], weights[0], width)
    assert (found - true).abs().max() < m * math.exp(-8) / 2 * peak


def test_a_matrix_of_zeros_has_all_its_mass_at_0():
    net = nn.Linear(2, 1).double()
    found = density(net, lambda z, y: z.sum(-1), (torch.ones(3, 2).double(), torch.zeros(3)))
    assert not found.nodes.any()
    assert found.grid[found.density.argmax()].abs() < found.width / 50
    assert (found.sem < 1e-9 * found.density.max()).all()


def test_it_can_be_drawn():
    import matplotlib as mpl

    mpl.use("Agg")
    model, x, y, _ = case("tanh mlp")
    found = density(model, "cross_entropy", (x, y), probes=2, steps=4, points=20)
    (ax,) = found.plot().axes
    assert ax.get_yscale() == "log"
    assert torch.equal(torch.tensor(ax.lines[0].get_xdata()), found.grid)
    mpl.pyplot.close("all")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"matrix": "fisher"}, "density: matrix is 'hessian' or 'gauss_newton': got 'fisher'"),
        ({"probes": 1}, "probes is a whole number ≥ 2: got 1"),
        ({"steps": 0}, "steps is a whole number ≥ 1: got 0"),
        ({"points": 1}, "points is a whole number ≥ 2: got 1"),
        ({"width": 0.0}, "width is a number > 0.*got 0.0"),
    ],
)
def test_bad_input_is_told(arguments, says):
    model, x, y, _ = case("tanh mlp")
    with pytest.raises(dither.DitherError, match=says):
        density(model, "cross_entropy", (x, y), **arguments)
    with pytest.raises(dither.DitherError, match="density needs at least one batch"):
        density(model, "cross_entropy", [])
