"""R kept at a share of the loss while a net trains: σ of `schedule.Balanced`, measured anew every
so many steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dither import loss as losses
from dither.attach.inject import Injection
from dither.attach.ranks import averages
from dither.calling import evaluating
from dither.noise.draw import key
from dither.precision import wide
from dither.regulariser.balance import filled, own_random_state
from dither.regulariser.explicit import explicit_at_unit
from dither.regulariser.sizes import bounds, learnt, measured
from dither.regulariser.usable import check_usable
from dither.schedule import Balanced

AGAIN = 4  # measures for which the sizes of the sites' tensors are used


def rebalance(
    noise: Injection,
    x: Any,
    y: Tensor,
    loss: Any = "cross_entropy",
    *,
    samples: int | None = 2,
) -> bool:
    """Set σ of every site that has a `schedule.Balanced`, if it is time to. To be called before
    each forward of a training; the callbacks of Lightning and Transformers do it themselves.

    Every `every` steps the loss and R_s, R of site s at σ = 1 from two columns with random signs,
    are taken on this batch: σ_s = √(ratio / (sites · q_s)), with q_s the geometric mean of R_s /
    loss in this measure and the mean before, and rms(δ) ≤ bound · rms of the tensor (the share of a
    site at its bound goes to the others). Where the q_s have moved together by more than a factor
    2, the new measures alone count, and the next one comes after a quarter of the steps. σ is 0
    until the net has learnt something: until its loss with other samples' targets is higher by
    ratio · loss and by two standard errors.

    Arguments as of `explicit`. A measure is made in eval mode, with draws of its own, and costs
    one and a half to two steps of the training. The ranks of a
    distributed run share their means. `state_dict()` of the noise holds σ and the means. Returns
    whether it measured; a loss or R that is not finite leaves σ as it is.
    """
    sites = {n: s.noise.sigma for n, s in noise.sites.items()}
    mine = {n: kind for n, kind in sites.items() if isinstance(kind, Balanced)}
    due = {n: kind for n, kind in mine.items() if _due(noise, n)}
    if not due:
        return False
    each = losses.get(loss)
    check_usable(noise, y, each)
    with (
        own_random_state(key(noise.seeds[0], "rebalance", noise.step)),
        evaluating(noise.model),
        torch.no_grad(),
    ):
        value, _, by_site = explicit_at_unit(noise, x, y, each, samples, own=True)
        numbers = [float(value), *(float(by_site[n]) for n in due)]
        sizes = noise.kept.setdefault("size", {})  # (relative size, measures it is to be used for)
        look = any(sizes.get(n, (0.0, 0))[1] < 1 for n in due)
        if look:
            z, relative = measured(noise, x, noise.seeds[0])
            known = learnt(each, z, y, each.per_sample(wide(z), y))
            gain, error = (math.inf, 0.0) if known is None else known
            numbers += [gain, error, *(float(relative.get(n, 0.0)) for n in due)]
    L, *numbers = averages(numbers)
    R, numbers = numbers[: len(due)], numbers[len(due) :]
    if look:
        sizes.update({n: (size, AGAIN) for n, size in zip(due, numbers[2:], strict=True)})
    found = {n: (r, sizes[n][0]) for n, r in zip(due, R, strict=True)}
    sizes.update({n: (size, left - 1) for n, (size, left) in sizes.items() if n in due})
    for kind in set(due.values()):
        here = {n: found[n] for n in due if due[n] == kind}
        share = L if kind.of is None else kind.of  # of which R is to be `ratio`
        old = not look or numbers[0] >= max(kind.ratio * share, 2 * numbers[1])
        _set(noise, kind, share if math.isfinite(L) else L, here, old=old)
    return True


def _set(
    noise: Injection, kind: Balanced, L: float, found: dict[str, tuple[float, float]], *, old: bool
) -> None:
    """σ of the sites of one Balanced, from {site: (R at σ = 1, the noise's relative size)}."""
    sigmas, means, after = (noise.kept.setdefault(what, {}) for what in ("sigma", "mean", "next"))
    after.update(dict.fromkeys(found, noise.step + kind.every))
    finite = all(map(math.isfinite, (L, *(r for r, _ in found.values()))))
    if not finite or L <= 0 or not (old or any(sigmas.get(n) for n in found)):
        noise.kept["size"].update({n: (size, 0) for n, (_, size) in found.items()})
        return
    alive = {n: math.log(r / L) for n, (r, _) in found.items() if r > 0}
    steps = [q - means.get(n, -math.inf) for n, q in alive.items()]
    moved = not steps or abs(sum(steps) / len(steps)) > math.log(2)
    means.update({n: q if moved else (q + means[n]) / 2 for n, q in alive.items()})
    most = bounds(noise, {n: size for n, (_, size) in found.items()}, kind.bound)
    equal = {n: math.sqrt(kind.ratio / len(alive) / math.exp(means[n])) for n in alive}
    c, _ = filled([most[n] / s for n, s in equal.items()]) if alive else (0.0, 0.0)
    sigmas.update({n: min(c * equal[n], most[n]) if n in alive else 0.0 for n in found})
    if moved:
        after.update(dict.fromkeys(found, noise.step + max(1, kind.every // 4)))


def _due(noise: Injection, site: str) -> bool:
    """Whether a site is to be measured before the forward that comes."""
    begun = noise.held and noise.last_hold == noise.open_hold  # a step, by an earlier part of it
    return not (noise.paused or begun) and noise.step >= noise.kept.get("next", {}).get(site, 0)
