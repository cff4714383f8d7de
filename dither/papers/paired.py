"""A difference between runs that share their seeds: is it more than its standard error?

What lies within it is not judged. What lies beyond it may be chance all the same: where there is
no difference at all, three seeds put a comparison beyond it in 42 of 100 cases (ten seeds: in 34),
half of them on either side. The numbers beside a verdict say how far beyond it is.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dither.lab import Array, Verdict

UNSETTLED = "a difference is within its standard error of 0, is not finite, or has none (one seed)"


def verdict(differences: Iterable[Array]) -> bool | None:
    """Whether every paired difference [S] is above 0 by its standard error over seeds. False if one
    is below 0 by its error; None if one is neither, or is not finite because a run diverged.
    """
    values = list(differences)
    if not all(np.isfinite(d).all() for d in values):
        return None
    means = [np.mean(d) for d in values]
    sems = [np.std(d, ddof=1) / np.sqrt(len(d)) if len(d) > 1 else np.inf for d in values]
    if any(m < -s for m, s in zip(means, sems, strict=True)):
        return False
    return True if all(m > s for m, s in zip(means, sems, strict=True)) else None


def told(holds: bool | None, numbers: Mapping[str, Any]) -> Verdict:
    """A verdict, with a reason if it is None."""
    return (None, {"why": UNSETTLED, **numbers}) if holds is None else (holds, numbers)


def judged(differences: Iterable[Array], numbers: Mapping[str, Any]) -> Verdict:
    """The verdict on these differences, with its numbers, and with a reason if it is None."""
    return told(verdict(differences), numbers)
