"""The density of the eigenvalues of the loss's Hessian or Gauss–Newton matrix, all of them.

    φ_w(t) = 1/n Σ_i g_w(t − λ_i) = E qᵀ g_w(t − A) q,     q = signs/√n,  g_w: normal density, sd w
    qᵀ f(A) q ≈ Σ_j s_1j² f(θ_j),     Gauss quadrature by m steps of Lanczos' iteration from q

Stochastic Lanczos quadrature: Golub & Meurant 2010; Ubaru, Chen & Saad 2017; Ghorbani, Krishnan &
Xiao 2019. Derived in docs/math.md, §22.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dither.attach.inject import Injection
from dither.errors import DitherError, check_whole, is_number
from dither.measures.lanczos import quadrature
from dither.measures.over import over
from dither.measures.products import check_matrix, in_parameters
from dither.picture import panel
from dither.signs import signs

__all__ = ["Density", "density"]

MARGIN = 4  # widths that the grid goes beyond the outermost nodes


@dataclass(frozen=True, eq=False)
class Density:
    """A density over eigenvalues, smoothed by a normal density of sd `width`.

    grid      λ [points]
    density   its value there, in 1/λ; it integrates to 1
    sem       its standard error over the probes
    nodes, weights   [probes, m]: the quadrature of each probe; Σ weights·f(nodes) estimates
              1/n Σ_i f(λ_i)
    size      n, how many eigenvalues there are
    """

    grid: Tensor
    density: Tensor
    sem: Tensor
    nodes: Tensor
    weights: Tensor
    width: float
    size: int

    def plot(self, ax: Any = None) -> Any:
        """The density on a logarithmic scale with a band of ± 2 standard errors, as a figure of
        pyplot; or drawn into the axes `ax`. Raises DitherError if matplotlib is missing.
        """
        figure, ax = panel(ax)
        least = 0.1 / self.size / (self.width * math.sqrt(2 * math.pi))  # a tenth of an eigenvalue
        low, mid, high = ((self.density + b * self.sem).clamp(min=least) for b in (-2, 0, 2))
        (line,) = ax.plot(self.grid, mid)
        ax.fill_between(self.grid, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        ax.set(yscale="log", xlabel="eigenvalue λ", ylabel="density")
        return figure


def density(
    model: nn.Module | Injection,
    loss: Any,
    data: Any,
    *,
    matrix: str = "hessian",
    probes: int = 8,
    steps: int = 64,
    width: float | None = None,
    points: int = 1000,
    seed: int = 0,
) -> Density:
    """The density of the eigenvalues of the mean loss's Hessian, or of its Gauss–Newton matrix, in
    the parameters; in eval mode, without noise.

    model, loss, data   as in `trace`: an Injection of noise on parameters means those parameters.
    matrix   "hessian" or "gauss_newton".
    probes   random vectors q, ≥ 2, over which the standard error is. One eigenvalue far from all
             others has weight 1/n, and a probe sees it with a spread of √2/n.
    steps    m, products with A for each probe.
    width    w, the sd of the smoothing, in the units of λ. None: (largest − smallest node)/m. What
             the m nodes cannot tell apart is smoothed away there: the quadrature's error is then
             below m e⁻⁸/2 of one eigenvalue's height, 1 % for m = 64 (§22). A smaller width shows
             more and needs more steps.
    points   of the grid, from 4 widths below the smallest node to 4 above the largest.

    Cost: probes · steps products, each about 2 plain steps (see `eigenvalues`). Memory: m vectors
    of the parameters' size. The standard error knows of probes only, not of the smoothing.
    Raises DitherError as `trace` does.

    >>> net = nn.Linear(2, 1, bias=False).double()
    >>> x, y = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double(), torch.zeros(2, 1).double()
    >>> found = density(net, "half_square", (x, y), probes=2)  # λ = 2, 0.5
    >>> found.nodes[0].round(decimals=6), found.weights[0].round(decimals=6)
    (tensor([0.5000, 2.0000], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))
    """
    check_matrix("density", matrix)
    _check(probes, steps, points, width)
    with over("density", model, loss, data) as o, in_parameters(o, matrix) as a:
        found = [
            quadrature(a, a.random(signs, "density", seed, probe), steps, seed=seed)
            for probe in range(probes)
        ]
    nodes, weights = (torch.cat(parts) for parts in zip(*found, strict=True))  # [P, m]
    low, high = float(nodes.min()), float(nodes.max())
    if width is None:
        width = (high - low) / nodes.shape[1] or max(abs(high), 1.0) * 1e-3
    grid = torch.linspace(low - MARGIN * width, high + MARGIN * width, points, dtype=nodes.dtype)
    each = torch.stack([_smoothed(grid, *pair, width) for pair in zip(nodes, weights, strict=True)])
    sem = each.std(0) / probes**0.5
    return Density(grid, each.mean(0), sem, nodes, weights, width, a.n)


def _smoothed(grid: Tensor, nodes: Tensor, weights: Tensor, width: float) -> Tensor:
    """Σ_j weight_j g_w(t − node_j) [points]."""
    z = (grid.unsqueeze(1) - nodes) / width
    return (-z.square() / 2).exp() @ weights / (width * math.sqrt(2 * math.pi))


def _check(probes: Any, steps: Any, points: Any, width: float | None) -> None:
    """Raises DitherError for settings that make no sense."""
    for name, n, least in (("probes", probes, 2), ("steps", steps, 1), ("points", points, 2)):
        check_whole(f"density: {name}", n, least)
    if width is not None and not (is_number(width) and width > 0 and math.isfinite(width)):
        raise DitherError(f"density: width is a number > 0, in the units of λ: got {width!r}")
