"""Of what a gain varies with: the kind of noise, the amount of R, and how the two act together.

g(kind, r) = m + a(r) + b(kind) + c(kind, r)        Σ a² : Σ b² : Σ c² in shares of their sum
"""

import numpy as np

from dither.estimate import Estimate
from dither.lab import Array
from dither.lab.rule import few, interval

QUARTER = 0.25  # of the variance: with more, the kind of noise matters beside R


def squares(gain: Array) -> dict[str, Array]:
    """The sums of squares of r, of the kind and of both together in [S, kinds, r]; [S]."""
    mean = gain.mean((1, 2), keepdims=True)
    by_r, by_kind = gain.mean(1, keepdims=True) - mean, gain.mean(2, keepdims=True) - mean
    rest = gain - mean - by_r - by_kind
    return {
        "r": gain.shape[1] * (by_r**2).sum((1, 2)),
        "kind": gain.shape[2] * (by_kind**2).sum((1, 2)),
        "both": (rest**2).sum((1, 2)),
    }


def kinds_share(gain: Array) -> tuple[Array, str]:
    """Whether the kind's share in the variance of the mean gain [S, kinds, r] is below ¼: values
    [S] of (kind − ¼ whole) / whole, whose mean is the share − ¼; and why they can't be judged, "".

    Parts are unbiased: of each the seeds' scatter is taken off. The values are the jackknife's of
    kind − ¼ whole, since a ratio is far off where the whole is near 0. Their interval is that of a
    test of ¼, not of the share. The whole must be above 0 to 95 %.
    """
    n = len(gain)
    if not np.isfinite(gain).all():
        return np.full(
            n, np.nan
        ), "a gain is not finite: a run diverged, ended too early, or learnt before its first look"
    if why := few(n):
        return np.full(n, np.nan), why
    kind, whole = (_pseudo(gain, name) for name in ("kind", "whole"))
    if not interval(whole)[1] > 0:
        return kind * np.nan, "it is not shown that the gains differ by more than the seeds scatter"
    return (kind - QUARTER * whole) / whole.mean(), ""


def shares(gain: Array) -> dict[str, Estimate]:
    """The shares of r, of the kind and of both in the variance of the mean gain [S, kinds, r], less
    the seeds' scatter. Errors: the jackknife's, of part − share · whole.
    """
    parts = {name: _pseudo(gain, name) for name in ("r", "kind", "both")}
    whole = _pseudo(gain, "whole")
    found = {}
    for name, part in parts.items():
        share = part.mean() / whole.mean()
        error = (part - share * whole).std(ddof=1) / len(gain) ** 0.5 / abs(whole.mean())
        found[f"share of {name}"] = Estimate(float(share), float(error))
    return found


def _pseudo(gain: Array, name: str) -> Array:
    """The jackknife's values of a part of the variance, [S]."""
    n = len(gain)
    left = np.array([_without_scatter(np.delete(gain, s, 0), name) for s in range(n)])
    return n * _without_scatter(gain, name) - (n - 1) * left


def _without_scatter(gain: Array, name: str) -> float:
    """An unbiased part of the variance of the mean gain, or the "whole" of it."""
    n, mean = len(gain), gain.mean(0)
    there, scatter = squares(mean[None]), squares(gain - mean)
    parts = {part: there[part][0] - scatter[part].sum() / (n * (n - 1)) for part in there}
    return float(sum(parts.values()) if name == "whole" else parts[name])
