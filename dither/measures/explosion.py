"""Will noise on all weights explode in this network? Told before training.

    full        every one of the M parameter tensors gets σ/√M
    layer-wise  one of them gets σ                             both have one R, of order σ²
    growth      G(σ) = E‖z(w + δ) − z(w)‖² / tr(J Σ Jᵀ) − 1

J = ∂z/∂w, Σ = Cov δ: what the noise does to the outputs, against what its first order does, which
is all that R knows (at the half-square loss to z itself the two are 2E[Δℓ] and 2R). G is what
Orvieto et al. 2022 call the variance explosion: σ⁴d₁d₂‖X‖² of §3.1 over the σ² terms. Under full
noise the layers' noises multiply; in a chain of dense layers with random weights

    1 + G ≈ (Π_l (1 + ρ_l) − 1) / Σ_l ρ_l,      ρ_l = (σ²/M) / mean W_l²      ("compounded")

and under layer-wise noise G is 0 but for kinks. Noise is safe, here, while G ≤ 1: the first order
is half of all it does. Whether training suffers depends on the rate and the loss too.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dither import loss as losses
from dither.errors import DitherError
from dither.estimate import Estimate
from dither.expected import Draw
from dither.explicit import explicit
from dither.forward import evaluating, output
from dither.inject import Injection, inject
from dither.noise import Weight
from dither.read import reading

__all__ = ["Explosion", "Way", "compounded", "explosion", "growth"]

SMALL = 0.02  # of σ: where only the first order is left
FAR = 16  # times σ: how far up the search for the safe σ goes
FINE = 1.05  # it ends at a bracket of 5 %
SURE = 3  # standard errors that a verdict needs


@dataclass(frozen=True)
class Way:
    """How one way of drawing fares: `growth` G(σ), `excess` E[Δℓ] − R at σ in the loss' units, and
    `safe`, the largest σ with G ≤ limit (inf: G stays below it up to 16 σ and more).
    """

    growth: Estimate
    excess: Estimate
    safe: Estimate
    limit: float

    @property
    def verdict(self) -> str:
        """One of explodes, safe, too close to call (G within 3 standard errors of the limit)."""
        z = (self.growth.value - self.limit) / max(self.growth.sem, 1e-300)
        return "too close to call" if abs(z) < SURE else "explodes" if z > 0 else "safe"


@dataclass(frozen=True)
class Explosion:
    """What `explosion` found; prints as a table.

    loss, R  of the batch at this σ;  tensors  M
    ratios   {weight: ρ = (σ²/M) / mean W²}, without biases and other vectors: they don't compound
    """

    sigma: float
    tensors: int
    loss: float
    R: float
    ratios: Mapping[str, float]
    full: Way
    layerwise: Way

    @property
    def explodes(self) -> bool:
        """Full noise at this σ, beyond what chance may do."""
        return self.full.verdict == "explodes"

    @property
    def compounded(self) -> float:
        """G of full noise by the ratios alone."""
        return compounded(self.ratios.values())

    @property
    def strong(self) -> float:
        """The σ at which R is as large as the loss: no way of drawing is weak beyond it."""
        return self.sigma * math.sqrt(self.loss / self.R) if self.R > 0 else math.inf

    def __str__(self) -> str:
        rows = [["", "growth G", "E[Δℓ] − R", "safe up to σ", ""]]
        for name, way in (("full", self.full), ("layer-wise", self.layerwise)):
            safe = "any" if way.safe.value == math.inf else str(way.safe)
            rows.append([name, str(way.growth), str(way.excess), safe, way.verdict])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        ratios = ", ".join(f"{name} {rho:.2g}" for name, rho in self.ratios.items())
        head = (
            f"weight noise σ {self.sigma:.4g} on {self.tensors} tensors: loss {self.loss:.4g}, "
            f"R {self.R:.4g} (as large as the loss at σ {self.strong:.3g})"
        )
        tail = f"noise over weight variance, full: {ratios}; compounded G {self.compounded:.3g}"
        return "\n".join([head, *lines, tail])


def compounded(ratios: Any) -> float:
    """(Π(1 + ρ) − 1)/Σρ − 1: G of full noise in a chain of dense random layers, e.g. 0.5 for two of
    ρ = 1.

    >>> compounded([1.0, 1.0])
    0.5
    """
    rho = torch.tensor(list(ratios), dtype=torch.float64)
    total = rho.sum().item()
    return math.expm1(rho.log1p().sum().item()) / total - 1 if total > 0 else 0.0


def explosion(
    model: nn.Module,
    x: Any,
    y: Tensor,
    loss: Any = "cross_entropy",
    *,
    sigma: float,
    by: str = "tensor",
    limit: float = 1.0,
    draws: int = 16,
    seed: int = 0,
) -> Explosion:
    """Whether weight noise at σ explodes in this network, and the largest σ at which it does not;
    for full and for layer-wise noise, which have one R. In eval mode, nothing is changed.

    x, y, loss  a batch, as in `explicit`.
    sigma       in the convention of `inject`'s draws "all" (σ/√M each) and "cycle" (σ on one).
    by          what counts as one of the M, "tensor" or "layer".
    limit       the growth G that is still safe.
    draws       per estimate of G, in antithetic pairs, the same at every σ; at least one pair for
                each of the M where noise is layer-wise.

    Costs two exact `explicit` without gradients, and about 8 · draws forwards for each way. Raises
    DitherError for σ ≤ 0, fewer than 4 draws, and where the outputs depend on no parameter.
    """
    _check(sigma, draws)
    if not limit > 0:
        raise DitherError(f"explosion: limit is a growth > 0 that is still safe: got {limit!r}")
    with evaluating(model), torch.no_grad():
        probe = _Probe(model, x, y, loss, by, seed)
        with inject(model, Weight(1.0), draw="all", by=by, seed=0) as noise:
            R1 = explicit(noise, x, probe.z, "half_square").R.item()
            value, r1, _ = explicit(noise, x, y, loss)
            m, ratios = len(noise.groups), _ratios(noise, sigma)
        _alive(R1)
        known = {"R1": R1, "r1": r1.item(), "limit": limit}
        full, layerwise = (probe.way(draw, sigma, draws, **known) for draw in ("all", "cycle"))
    return Explosion(sigma, m, value.item(), sigma**2 * r1.item(), ratios, full, layerwise)


def growth(
    model: nn.Module,
    x: Any,
    *,
    sigma: float,
    draw: str = "all",
    by: str = "tensor",
    draws: int = 16,
    seed: int = 0,
) -> Estimate:
    """G of one way of drawing ("all", or "cycle" for layer-wise) at one σ, without the search."""
    _check(sigma, draws)
    with evaluating(model), torch.no_grad():
        probe = _Probe(model, x, output(model, x), "half_square", by, seed)
        with inject(model, Weight(1.0), draw=draw, by=by, seed=0) as noise:
            R1 = explicit(noise, x, probe.z, "half_square").R.item()
        _alive(R1)
        near = SMALL * sigma
        first, square = (probe.look(draw, s, draws)[0] / s**2 for s in (near, sigma))
    return Estimate.of((square - first) / R1)


def _check(sigma: float, draws: int) -> None:
    if not (sigma > 0 and math.isfinite(sigma)):
        raise DitherError(f"explosion: sigma is a number > 0: got {sigma!r}")
    if draws < 4:
        raise DitherError(f"explosion: a spread needs at least 4 draws, two pairs: got {draws}")


def _alive(R1: float) -> None:
    if not R1 > 0:
        raise DitherError("explosion: the outputs depend on no parameter at first order")


def _ratios(noise: Injection, sigma: float) -> dict[str, float]:
    """ρ of each weight matrix or kernel."""
    m, found = len(noise.groups), {}
    for name, site in noise.sites.items():
        square = site.parameter.detach().square().mean().item()
        if site.parameter.dim() > 1 and square > 0:
            found[name] = sigma**2 / m / square
    return found


class _Probe:
    """G at any σ, with the same draws at each: what they do at a much smaller σ is subtracted, and
    its exact mean, R, put in its place. So less is left to chance.
    """

    def __init__(self, model: nn.Module, x: Any, y: Tensor, loss: Any, by: str, seed: int) -> None:
        self.model, self.x, self.y, self.by, self.seed = model, x, y, by, seed
        self.each, self.z = losses.get(loss), output(model, x)
        self.clean = self.each.per_sample(self.z, y).double().mean()

    def look(self, draw: str, sigma: float, draws: int) -> tuple[Tensor, Tensor]:
        """½‖Δz‖² and Δℓ, batch means, of each antithetic pair [P]; layer-wise in turn."""
        square, change = [], []
        with inject(self.model, Weight(sigma), draw=draw, by=self.by, seed=0) as noise:
            m = len(noise.groups)
            pairs = -(-draws // (2 * m)) * m if draw == "cycle" else -(-draws // 2)
            for index in range(pairs):
                for reflect in (False, True):
                    reader = Draw(noise, self.seed, index, reflect=reflect, of=pairs)
                    with reading(noise, reader), reader.shadows():
                        z = output(self.model, self.x)
                    square.append((z - self.z).double().square().sum() / (2 * len(z)))
                    change.append(self.each.per_sample(z, self.y).double().mean() - self.clean)
        return tuple(torch.stack(found).view(-1, 2).mean(1) for found in (square, change))  # pyright: ignore

    def way(
        self, draw: str, sigma: float, draws: int, *, R1: float, r1: float, limit: float
    ) -> Way:
        """R1, r1: R at σ = 1 of the outputs' half square and of the loss."""
        near = SMALL * sigma
        first = self.look(draw, near, draws)[0] / near**2  # [P], of mean R1

        def growth(square: Tensor, at: float) -> Estimate:
            return Estimate.of((square / at**2 - first) / R1)

        square, change = self.look(draw, sigma, draws)
        excess = Estimate.of(change) - sigma**2 * r1
        safe = _crossing(
            lambda s: growth(self.look(draw, s, draws)[0], s), growth(square, sigma), sigma, limit
        )
        return Way(growth(square, sigma), excess, safe, limit)


def _crossing(
    growth: Callable[[float], Estimate], here: Estimate, sigma: float, limit: float
) -> Estimate:
    """The σ at which G reaches the limit, by doubling or halving and then bisection; its error is
    G's over G's slope.
    """
    at = {sigma: here}
    low = high = sigma
    while at[low].value > limit:
        low, high = low / 2, low
        at[low] = growth(low)
    while not at[high].value > limit:
        if high > FAR * sigma:
            return Estimate(math.inf, 0.0)
        low, high = high, 2 * high
        at[high] = growth(high)
    while high / low > FINE:
        middle = math.sqrt(low * high)
        at[middle] = growth(middle)
        low, high = (low, middle) if at[middle].value > limit else (middle, high)
    slope = (at[high].value - at[low].value) / (high - low)
    return Estimate(math.sqrt(low * high), at[low].sem / slope)
