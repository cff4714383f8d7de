"""σ of each site from what the noise shall cost: R proposes, the sampled mean change decides."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from dither import loss as losses
from dither.attach.inject import Injection
from dither.calling import evaluating
from dither.errors import DitherError, check_whole, is_number
from dither.estimate import Estimate
from dither.noise.draw import key
from dither.precision import wide
from dither.regulariser.expected import Changes
from dither.regulariser.explicit import explicit_at_unit
from dither.regulariser.sizes import bounds, learnt, measured
from dither.regulariser.usable import check_usable
from dither.text import grid

FACTOR = 1.25  # R speaks for E[Δℓ] if they are within this of each other, and 2 standard errors
NEAR = 0.02  # E[Δℓ] is solved to this, relatively; its draws are fixed
STEPS = 40  # of the search for it, at most
MOST = 2.0**20  # of R's proposal, where nothing bounds σ


class Sigmas(dict[str, float]):
    """{site: σ}, and what was found with them. `print` shows both.

    loss     of the batch, without noise
    ratio    the share of it that was asked for
    R        at these σ, in the loss' units (sampled if `samples` was given)
    change   E[Δℓ] at these σ, with its standard error, of draws of its own if σ was solved for;
             None if it was not sampled
    bounds   {site: the largest σ}
    bounded  the sites whose σ is their bound
    by       what the σ are chosen by: "R" (within 1.25 of the mean change, or two standard errors
             of it), "mean change", or "bound" where every site is at its bound
    learnt   by how much the loss is higher with other samples' targets; None if there are none
    """

    def __init__(
        self,
        sigmas: dict[str, float],
        *,
        loss: float,
        ratio: float,
        R: float,
        change: Estimate | None,
        bounds: dict[str, float],
        learnt: Estimate | None,
    ) -> None:
        super().__init__(sigmas)
        self.loss, self.ratio, self.R, self.change = loss, ratio, R, change
        self.bounds, self.learnt = bounds, learnt
        self.bounded = tuple(n for n, s in sigmas.items() if s >= bounds[n])

    @property
    def by(self) -> str:
        asked = self.ratio * self.loss
        if len(self.bounded) == len(self):
            return "bound"
        return "R" if self.change is None or abs(self.R - asked) <= 1e-6 * asked else "mean change"

    def __str__(self) -> str:
        unit = self.loss or 1.0
        said = f"asked {self.ratio:g} of the loss {self.loss:.4g}: R is {self.R / unit:.3g}"
        if self.change is not None:
            said += f", E[Δℓ] {Estimate(self.change.value / unit, self.change.sem / unit)}"
        rows = [("site", "σ", "bound")]
        rows += [
            (n, f"{s:.4g}", f"{self.bounds[n]:.4g}{' reached' * (n in self.bounded)}")
            for n, s in self.items()
        ]
        return "\n".join([f"{said} of it; by {self.by}", *grid(rows)])


def balance(
    noise: Injection,
    x: Any,
    y: Tensor,
    loss: Any = "cross_entropy",
    *,
    ratio: float = 0.1,
    samples: int | None = None,
    draws: int = 64,
    bound: float = 0.5,
    seed: int = 0,
) -> Sigmas:
    """{site: σ} at which the noise costs ratio · loss on this batch: E[Δℓ] = ratio · loss.

    R, proportional to each σ², gives every site an equal share of it, σ_s = √(ratio · loss /
    (sites · R_s)) with R_s at σ = 1. E[Δℓ] is then sampled at those σ (`expected`). If R is not
    within a factor 1.25 of it and two standard errors, σ_s = c/√R_s is solved for E[Δℓ] = ratio ·
    loss, to 2 %: one scale c, the same draws at every c.

    ratio    the share of the loss, > 0.
    samples  None: exact R. n: from n columns with random signs (`explicit`), for large models.
    draws    in antithetic pairs, for each E[Δℓ]; 1 to 40 of them are sampled. 0: by R alone.
    bound    no σ_s displaces its tensor by more than `bound` times the tensor's own size, rms(δ) ≤
             bound · rms. ½ is a quarter of the signal's power, the noise of dropout at .2: training
             survives it at every layer of nets of 1 to 8 layers, and not always the double. A bias
             is measured with its weight. inf: no bound.
    seed     of all draws; torch's random state stays as it is.

    Taken in eval mode. The keys work as patterns: `inject(model, {site: Additive(s) for site, s in
    sigmas.items()})`. Warns if the net is too young and would lose all it has learnt (with other
    samples' targets its loss is not higher by ratio · loss, or by two standard errors), and if all
    σ come to their bounds first. Raises DitherError where a site has no R at any σ (its tensor does
    not reach the output), and for a loss below 0, of which there is no share.
    """
    _check(ratio, draws, bound)
    each = losses.get(loss)
    check_usable(noise, y, each)
    with own_random_state(key(seed, "balance")), evaluating(noise.model), torch.no_grad():
        value, _, by_site = explicit_at_unit(noise, x, y, each, samples)
        R = {name: float(r) for name, r in by_site.items()}
        L = _checked(float(value), R)
        target = ratio * L
        z, relative = measured(noise, x, seed)
        known = learnt(each, z, y, each.per_sample(wide(z), y))
        most = bounds(noise, relative, bound)
        equal = {n: math.sqrt(target / len(R) / r) for n, r in R.items()}

        def at(c: float) -> dict[str, float]:
            return {n: min(c * s, most[n]) for n, s in equal.items()}

        c, last = filled([most[n] / s for n, s in equal.items()]) if target else (0.0, 0.0)
        change = None
        if draws and target:
            m = len(noise.groups) if noise.draw in ("cycle", "random") else 1
            n = 2 * m * -(-draws // (2 * m)) if m <= draws else draws  # each in turn
            changes = Changes(noise, x, y, each, n, key(seed, "change"))

            def sampled(c: float) -> Estimate:
                laws = {n: replace(noise.sites[n].noise, sigma=s) for n, s in at(c).items()}
                return Estimate.of(changes(n, antithetic=True, laws=laws))

            mean = cache(sampled)
            change = mean(c)
            if not _speaks(change, target):
                c = _crossing(lambda c: mean(c).value, target, c, last)
                changes.seed = key(seed, "told")  # what was solved with its draws is told by others
                change = sampled(c)
    sigmas = at(c)
    found = Sigmas(
        sigmas,
        loss=L,
        ratio=ratio,
        R=sum(s * s * R[n] for n, s in sigmas.items()),
        change=change,
        bounds=most,
        learnt=known,
    )
    _warn(found)
    return found


def _speaks(change: Estimate, target: float) -> bool:
    """Whether R, which is `target` here, is E[Δℓ] to FACTOR and two standard errors."""
    low, high = change.value - 2 * change.sem, change.value + 2 * change.sem
    return high >= target / FACTOR and low <= target * FACTOR


def filled(caps: list[float]) -> tuple[float, float]:
    """(c, the largest c that matters): Σ min(c, cap)² = the number of caps, or the last cap where
    even that is less.
    """
    left, last = float(len(caps)), min(max(caps) * (1 + 1e-9), MOST)
    for i, cap in enumerate(sorted(caps)):
        c = math.sqrt(left / (len(caps) - i))
        if c <= cap:
            return c, max(last, c)
        left -= cap * cap
    return last, last


def _crossing(f: Callable[[float], float], target: float, c: float, last: float) -> float:
    """A c ≤ last with f(c) = target to NEAR, or last where f stays below; f(c) ~ c² at c → 0.

    Steps of a power law until both sides are known, then interpolation between logarithms. What
    is not finite is above.
    """
    low: tuple[float, float] | None = None  # (c, f(c) < target)
    high: tuple[float, float] | None = None
    for _ in range(STEPS):
        value = f(c) if math.isfinite(f(c)) else math.inf
        if abs(value - target) <= NEAR * target or (value < target and c >= last):
            break
        low, high = ((c, value), high) if value < target else (low, (c, value))
        if low is None or high is None:
            step = math.sqrt(target / value) if value > 0 else math.inf
            c = min(c * min(max(step * (1.02 if step > 1 else 0.98), 0.1), 4.0), last)
            continue
        share = 0.5
        if low[1] > 0 and high[1] < math.inf:
            share = math.log(target / low[1]) / math.log(high[1] / low[1])
        c = low[0] * (high[0] / low[0]) ** min(max(share, 0.1), 0.9)
        if high[0] / low[0] < 1 + NEAR / 4:
            break
    return c


def _warn(found: Sigmas) -> None:
    """Says once where σ can't be chosen well yet."""
    asked, known = found.ratio * found.loss, found.learnt
    if known is not None and known.value < max(asked, 2 * known.sem):
        said = (
            f"the net is too young for σ to be chosen: its loss, {found.loss:.4g}, is "
            f"{known.value + found.loss:.4g} ± {known.sem:.1g} with other samples' targets, so "
            f"that noise that costs {asked:.4g} costs all it has learnt"
        )
    elif found.by == "bound":
        reached = found.R if found.change is None else found.change.value
        said = (
            f"with every σ at its bound the noise costs {reached / found.loss:.3g} of the loss "
            f"in place of {found.ratio:g}"
        )
    else:
        return
    warnings.warn(
        f"balance: {said}; train without noise first and balance then, or ask for a smaller ratio",
        stacklevel=3,
    )


def _check(ratio: Any, draws: Any, bound: Any) -> None:
    if not (is_number(ratio) and math.isfinite(ratio) and ratio > 0):
        raise DitherError(
            f"ratio must be a number > 0, the share of the loss noise shall cost: got {ratio!r}"
        )
    if isinstance(draws, bool) or not isinstance(draws, Integral) or draws != 0:
        check_whole("draws", draws, 4, "in antithetic pairs; or 0 for σ by R alone")
    if not (is_number(bound) and bound > 0):
        raise DitherError(
            "bound must be a number > 0, the largest noise in sizes of what it displaces: got "
            f"{bound!r}"
        )


def _checked(L: float, R: dict[str, float]) -> float:
    """The loss. Raises DitherError where no share of it can be given to every site."""
    if not all(map(math.isfinite, (L, *R.values()))):
        raise DitherError("loss or R is not finite on this batch: look at the model and at x")
    dead = [name for name, r in R.items() if not r > 0]
    if dead:
        raise DitherError(
            f"no σ gives R at {', '.join(map(repr, dead))}: on this batch the loss does not depend "
            "on it at second order; leave it out, or pass another batch"
        )
    if L < 0:
        raise DitherError(
            f"ratio is a share of the loss, which must be ≥ 0: got a loss of {L:.4g}; pass one "
            "without its negative part"
        )
    return L


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """Inside, torch's random state is the seed's; afterwards it is as before."""
    cuda = torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count() if cuda else 0))):
        torch.manual_seed(seed)
        yield
