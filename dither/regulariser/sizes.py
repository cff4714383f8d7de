"""How large a noise is beside what it displaces, and how much a net has learnt.

Both are had from one forward without noise. They say where a σ that R asks for makes no sense: R
grows with σ² without end, and a net that has learnt nothing is as good under any noise.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dither.attach.hooks import real
from dither.attach.inject import Injection
from dither.attach.reading import reading
from dither.attach.site import Site
from dither.calling import output
from dither.estimate import Estimate
from dither.noise.draw import Source, key
from dither.precision import double, wide

SHIFTS = 8  # other samples whose targets each output is held against


class Sizes:
    """A reader: rms(δ) at σ = 1 over rms(t) of each site's tensor t, over all its calls."""

    def __init__(self, noise: Injection, seed: int) -> None:
        self.noise, self.seed = noise, seed
        self.sums: dict[str, tuple[float, float]] = {}  # Σδ², Σt²

    def activation(self, site: Site, h: Tensor) -> None:
        real(site, h)
        self.meet(site, h, _mean2(h))

    def meet(self, site: Site, t: Tensor, size2: float) -> None:
        """Count a tensor of mean square size2."""
        keys = [key(self.seed, site.name)] * (len(self.noise.seeds) if self.noise.stack else 1)
        source = Source(keys)

        def rng(law: Any, like: Tensor) -> Tensor:  # the law's variance in each draw
            return source.sign(like) * law.variance**0.5

        delta = site.unit.displace(self.noise.here(site, t), rng).expand_as(t)
        before = self.sums.get(site.name, (0.0, 0.0))
        self.sums[site.name] = (before[0] + _mean2(delta), before[1] + size2)

    def relative(self) -> dict[str, float]:
        """{site: rms(δ)/rms(t)}, inf where t is 0; for sites that were met."""
        for site in self.noise.shadowed:
            scale = 1.0 if self.noise.draw in ("cycle", "random") else self.noise.scale(site, 1)
            self.meet(site, site.parameter, _of_parameter(site) / scale**2)
        return {
            name: math.sqrt(delta2 / t2) if t2 else math.inf if delta2 else 0.0
            for name, (delta2, t2) in self.sums.items()
        }


def measured(noise: Injection, x: Any, seed: int) -> tuple[Tensor, dict[str, float]]:
    """The outputs z, and {site: rms(δ) at σ = 1 over rms of the tensor}; to be called in eval mode
    and without gradients.
    """
    sizes = Sizes(noise, seed)
    with reading(noise, sizes):
        z = output(noise.model, x)
    return z, sizes.relative()


def bounds(noise: Injection, relative: dict[str, float], bound: float) -> dict[str, float]:
    """The σ at which rms(δ) = bound · rms(t); inf for a tensor without a size of its own (0)."""
    found = {name: relative.get(name, 0.0) for name in noise.sites}
    return {n: bound / r if 0 < r < math.inf else math.inf for n, r in found.items()}


def learnt(loss: Any, z: Tensor, y: Any, clean: Tensor) -> Estimate | None:
    """By how much the loss with other samples' targets is higher: 0 for a net that predicts the
    same of every x. In the loss' units, its standard error over samples; None where targets are
    no tensor [B, …] or are all alike.
    """
    batch = len(clean)
    if not (isinstance(y, Tensor) and y.dim() and y.shape[0] == batch and batch > 1):
        return None
    shifts = sorted({max(1, round(batch * k / (SHIFTS + 1))) for k in range(1, SHIFTS + 1)})
    others = [y.roll(k, 0) for k in shifts if k < batch]
    if all(torch.equal(other, y) for other in others):
        return None
    gaps = [double(loss.per_sample(wide(z), other) - clean) for other in others]
    return Estimate.of(torch.stack(gaps).mean(0))


def _of_parameter(site: Site) -> float:
    """The mean square of a parameter, or of all parameters of its module where that is larger: a
    bias that starts at 0 is of the size of its weight.
    """
    own = site.parameter
    beside = [p for p in site.module._parameters.values() if p is not None and p.numel()]
    total = sum(_mean2(p) * p.numel() for p in beside if p.is_floating_point())
    count = sum(p.numel() for p in beside if p.is_floating_point())
    return max(_mean2(own), total / max(count, 1))


def _mean2(t: Tensor) -> float:
    return wide(t.detach()).square().mean().item() if t.numel() else 0.0
