"""A forecast, before training, of whether noise on all weights explodes in a network.

    full        each of the M parameter tensors gets σ/√M
    layer-wise  one of them gets σ                             both have the same R, of order σ²
    growth      G(σ) = E‖z(w + δ) − z(w)‖² / tr(J Σ Jᵀ) − 1

J = ∂z/∂w, Σ = Cov δ. G compares the effect of the noise on the outputs with its first order, which
is all that R contains. For the half-square loss to z itself the two are 2E[Δℓ] and 2R. Orvieto et
al. 2022 call G > 0 the variance explosion: it is σ⁴d₁d₂‖X‖² of §3.1 over the σ² terms. Under full
noise the noises of the layers multiply. In a chain of dense layers with random weights

    1 + G ≈ (Π_l (1 + ρ_l) − 1) / Σ_l ρ_l,      ρ_l = (σ²/M) / mean W_l²      ("compounded")

and under layer-wise noise G is 0, except for kinks. Noise is called safe while G ≤ 1: then at least
half of its effect is first order. The learning rate and the loss also decide whether training
suffers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dither import loss as losses
from dither.attach.inject import DrawMode, Group, Injection, inject
from dither.attach.reading import Idle, reading
from dither.attach.shadow import showing
from dither.calling import check_devices, output
from dither.errors import DitherError, check_whole, is_number
from dither.estimate import Estimate
from dither.measures import robustness
from dither.noise.noises import Weight
from dither.regulariser.expected import Draw
from dither.regulariser.explicit import explicit
from dither.text import grid

__all__ = ["Explosion", "Way", "compounded", "explosion", "growth"]

SMALL = 0.02  # share of the weights' own σ at which only the first order is left
HALVINGS = 60  # halvings of that, at most
SETTLED = 0.01  # relative change of the first order when σ is halved
ROUNDING = 100  # times the precision of a float: outputs must change by more
FAR = 16  # the search for the safe σ ends at this multiple of σ, or of the weights' own σ
FINE = 1.05  # the search ends at a bracket of 5 %
SURE = 3  # standard errors that a verdict needs


@dataclass(frozen=True)
class Way:
    """The result for one way of drawing at σ.

    growth  G(σ); inf ± nan if the outputs overflow
    excess  E[Δℓ] − R, in the units of the loss
    safe    the σ at which G first exceeds `limit`; it does not depend on the given σ. inf: G does
            not exceed it up to `searched`
    """

    growth: Estimate
    excess: Estimate
    safe: Estimate
    limit: float
    sigma: float
    searched: float

    @property
    def verdict(self) -> str:
        """One of explodes, safe, too close to call (σ is within 3 standard errors of the safe one).

        The errors are those of σ, not of G, which has heavy tails. If units saturate, G may fall
        again above the safe σ; that is not called safe.
        """
        if self.safe.value == math.inf:
            return "safe" if self.growth.value <= self.limit else "too close to call"
        distance = self.sigma - self.safe.value
        if not abs(distance) > SURE * self.safe.sem:
            return "too close to call"
        return "explodes" if distance > 0 else "safe"


@dataclass(frozen=True)
class Explosion:
    """The result of `explosion`. It prints as a table.

    loss, R  of the batch at this σ;  tensors  M
    ratios   {weight: ρ = (σ²/M) / mean W²}, without biases and other vectors, whose noises do not
             multiply
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
        """Whether full noise explodes at this σ, beyond 3 standard errors."""
        return self.full.verdict == "explodes"

    @property
    def compounded(self) -> float:
        """G of full noise, from the ratios alone."""
        return compounded(self.ratios.values())

    @property
    def strong(self) -> float:
        """The σ at which R equals the loss. Above it no way of drawing is weak noise."""
        return self.sigma * math.sqrt(self.loss / self.R) if self.R > 0 else math.inf

    def __str__(self) -> str:
        rows = [["", "growth G", "E[Δℓ] − R", "safe up to σ", ""]]
        for name, way in (("full", self.full), ("layer-wise", self.layerwise)):
            unbounded = way.safe.value == math.inf
            safe = f"> {way.searched:.3g}" if unbounded else str(way.safe)
            rows.append([name, str(way.growth), str(way.excess), safe, way.verdict])
        lines = grid(rows)
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
    return rho.log1p().sum().expm1().item() / total - 1 if total > 0 else 0.0


def explosion(
    model: nn.Module,
    x: Any,
    y: Tensor,
    loss: Any = "cross_entropy",
    *,
    sigma: float,
    by: Group = "tensor",
    limit: float = 1.0,
    draws: int = 16,
    seed: int = 0,
) -> Explosion:
    """Whether weight noise at σ explodes in this network, and the largest σ at which it does not,
    for full and for layer-wise noise, which have the same R. In eval mode, with every noise of
    dither off. Afterwards the model is as before.

    x, y, loss  a batch, as in `explicit`.
    sigma       in the convention of `inject`'s draws "all" (σ/√M each) and "cycle" (σ on one).
    by          what counts as one of the M, "tensor" or "layer".
    limit       the largest growth G that is safe.
    draws       per estimate of G, in antithetic pairs, equal at every σ. Layer-wise noise gets at
                least one pair for each of the M.

    Costs two exact `explicit` without gradients, and about 12 · draws forwards for each way. Raises
    DitherError for σ ≤ 0, fewer than 4 draws, an empty batch, outputs that are not finite or depend
    on no parameter, and if rounding hides the effect of the noise.
    """
    _check("explosion", sigma, draws)
    if not (is_number(limit) and limit > 0):
        raise DitherError(f"explosion: limit is a growth > 0 that is still safe: got {limit!r}")
    with robustness.silent(model), torch.no_grad():
        probe = _Probe(model, x, y, loss, by, seed)
        with inject(model, Weight(1.0), draw="all", by=by, seed=0) as noise:
            value, r1, _ = explicit(noise, x, y, loss)
            m, ratios = len(noise.groups), _ratios(noise, sigma)
        full, layerwise = (
            probe.way(draw, sigma, draws, r1=r1.item(), limit=limit) for draw in ("all", "cycle")
        )
    return Explosion(sigma, m, value.item(), sigma**2 * r1.item(), ratios, full, layerwise)


def growth(
    model: nn.Module,
    x: Any,
    *,
    sigma: float,
    draw: DrawMode = "all",
    by: Group = "tensor",
    draws: int = 16,
    seed: int = 0,
) -> Estimate:
    """G of one way of drawing ("all", or "cycle" for layer-wise) at one σ, without the search.
    Raises as `explosion` does.
    """
    _check("growth", sigma, draws)
    with robustness.silent(model), torch.no_grad():
        probe = _Probe(model, x, None, None, by, seed)
        return probe.growth(draw, sigma, draws, probe.first(draw, draws))


def _check(what: str, sigma: float, draws: int) -> None:
    if not (is_number(sigma) and sigma > 0 and math.isfinite(sigma)):
        raise DitherError(f"{what}: sigma is a number > 0: got {sigma!r}")
    check_whole(f"{what}: draws", draws, 4, "a spread needs two pairs")


def _ratios(noise: Injection, sigma: float) -> dict[str, float]:
    """ρ of each weight matrix or kernel."""
    m, ratios = len(noise.groups), {}
    for name, site in noise.sites.items():
        square = site.parameter.detach().square().mean().item()
        if site.parameter.dim() > 1 and square > 0:
            ratios[name] = sigma**2 / m / square
    return ratios


def _own(ratios: list[float]) -> float:
    """The weights' own σ, at which compounded G is 1 to lowest order: (Σ_{i<j} ρ_i ρ_j / Σ ρ_i)^−½
    of the ρ at σ = 1; for a single ρ it is ρ^−½.
    """
    total = sum(ratios)
    if not total:
        return 1.0  # there is no weight matrix
    pairs = (total**2 - sum(rho**2 for rho in ratios)) / 2
    return (pairs / total if len(ratios) > 1 else total) ** -0.5


class _Probe:
    """G at any σ, with equal draws. A control variate reduces the variance: the effect of the draws
    at a much smaller σ is subtracted, and its exact mean, R, is added.
    """

    def __init__(
        self, model: nn.Module, x: Any, y: Tensor | None, loss: Any, by: Group, seed: int
    ) -> None:
        check_devices(model, x)
        self.model, self.x, self.y, self.seed = model, x, y, seed
        self.by: Group = by
        with inject(model, Weight(1.0), draw="all", by=by, seed=0) as noise:
            with reading(noise, Idle()):  # noise on a part of the model too
                self.z = output(model, x)
            self._check()
            self.R1 = explicit(noise, x, self.z, "half_square").R.item()  # at σ = 1
            self.own = _own(list(_ratios(noise, 1.0).values()))
        if not self.R1 > 0:
            raise DitherError(
                "explosion: the outputs depend on no parameter at first order: pass a model whose "
                "parameters are used"
            )
        if y is not None:
            self.each = losses.get(loss)
            self.clean = self.each.per_sample(self.z, y).double().mean()
        kinds = {self.z.dtype, *(p.dtype for p in model.parameters() if p.is_floating_point())}
        self.kind = max(kinds, key=lambda kind: torch.finfo(kind).eps)
        scale = (self.z.double().square().sum() / len(self.z)).sqrt().item()
        self.floor = ROUNDING * torch.finfo(self.kind).eps * scale / math.sqrt(2 * self.R1)

    def _check(self) -> None:
        if not self.z.numel():
            raise DitherError("explosion: the batch is empty: pass one example or more")
        if not bool(self.z.isfinite().all()):
            raise DitherError(
                "explosion: the outputs without noise are not finite: check the model and the batch"
            )

    def look(self, draw: DrawMode, sigma: float, draws: int) -> tuple[Tensor, Tensor]:
        """½‖Δz‖² and, if there is a loss, Δℓ: batch means of each antithetic pair [P]. Layer-wise
        noise takes the tensors in turn.
        """
        if sigma < self.floor:
            raise DitherError(
                f"explosion: at σ {sigma:.3g} rounding to {self.kind} hides what the noise does to "
                f"the outputs (σ {self.floor:.2g} is needed): pass a model and a batch in float64"
            )
        square, change = [], []
        with inject(self.model, Weight(sigma), draw=draw, by=self.by, seed=0) as noise:
            m = len(noise.groups)
            pairs = -(-draws // (2 * m)) * m if draw == "cycle" else -(-draws // 2)
            for index in range(pairs):
                for reflect in (False, True):
                    reader = Draw(noise, self.seed, index, reflect=reflect, of=pairs)
                    with reading(noise, reader), showing(reader.parameters()):
                        z = output(self.model, self.x)
                    square.append((z - self.z).double().square().sum() / (2 * len(z)))
                    if self.y is not None:
                        change.append(self.each.per_sample(z, self.y).double().mean() - self.clean)
        halves = (torch.stack(looks or square).view(-1, 2) for looks in (square, change))
        return tuple(half.mean(1) for half in halves)  # pyright: ignore

    def first(self, draw: DrawMode, draws: int) -> Tensor:
        """½‖Δz‖²/σ² of each pair [P] at first order. Its mean is R at σ = 1.

        It is taken at 2 % of the weights' own σ, and σ is halved until that changes nothing.
        """
        near = SMALL * self.own
        second_order = self.look(draw, near, draws)[0] / near**2
        for _ in range(HALVINGS):
            near, before = near / 2, second_order
            second_order = self.look(draw, near, draws)[0] / near**2
            if abs((second_order - before).mean().item()) <= SETTLED * self.R1:
                return second_order
        raise DitherError(
            "explosion: the outputs change with σ in no way that R describes, at any σ: the model "
            "is not differentiable here"
        )

    def growth(self, draw: DrawMode, sigma: float, draws: int, first: Tensor) -> Estimate:
        return self._growth(self.look(draw, sigma, draws)[0], sigma, first)

    def _growth(self, square: Tensor, sigma: float, first: Tensor) -> Estimate:
        ratio = Estimate.of((square / sigma**2 - first) / self.R1)
        return ratio if math.isfinite(ratio.value) else Estimate(math.inf, math.nan)

    def way(self, draw: DrawMode, sigma: float, draws: int, *, r1: float, limit: float) -> Way:
        """The result for one way of drawing. r1: R of the loss at σ = 1."""
        square, change = self.look(draw, sigma, draws)
        first = self.first(draw, draws)
        safe, searched = _crossing(
            lambda s: self.growth(draw, s, draws, first),
            limit,
            start=self.own / 4 * min(1.0, math.sqrt(limit)),
            end=FAR * max(sigma, self.own),
        )
        excess = Estimate.of(change) - sigma**2 * r1
        return Way(self._growth(square, sigma, first), excess, safe, limit, sigma, searched)


def _crossing(
    growth: Callable[[float], Estimate], limit: float, *, start: float, end: float
) -> tuple[Estimate, float]:
    """The σ at which G reaches the limit, and the largest σ that was tried. The search halves or
    doubles from `start` up to `end`, bisects, and ends with a straight line. The error of σ is the
    error of G over the slope of G.

    A growth that is not finite is above every limit.
    """
    at = {start: growth(start)}
    low = high = start
    while not at[low].value <= limit:
        low, high = low / 2, low
        at[low] = growth(low)
    while at[high].value <= limit:
        if high >= end:
            return Estimate(math.inf, 0.0), high
        low, high = high, 2 * high
        at[high] = growth(high)
    while high / low > FINE:
        middle = math.sqrt(low * high)
        at[middle] = growth(middle)
        low, high = (middle, high) if at[middle].value <= limit else (low, middle)
    slope = (at[high].value - at[low].value) / (high - low)
    if not math.isfinite(slope):
        return Estimate(math.sqrt(low * high), (high - low) / 2), max(at)
    return Estimate(low + (limit - at[low].value) / slope, at[low].sem / slope), max(at)
