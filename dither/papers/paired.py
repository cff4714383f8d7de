"""A difference between runs that share their seeds: is it more than its standard error?

What lies within it is not judged: another draw of the noise would turn it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dither.figure import Verdict
from dither.table import Array

UNSETTLED = "a paired difference is within one standard error of 0, or has none (one seed)"


def verdict(differences: Iterable[Array]) -> bool | None:
    """Whether every paired difference [S] is above 0 by its standard error over seeds.

    False where one is below 0 by as much; None where they can't be told apart.
    """
    means, sems = [], []
    for d in differences:
        means.append(np.mean(d))
        sems.append(np.std(d, ddof=1) / np.sqrt(len(d)) if len(d) > 1 else np.inf)
    if any(m < -s for m, s in zip(means, sems, strict=True)):
        return False
    return True if all(m > s for m, s in zip(means, sems, strict=True)) else None


def told(holds: bool | None, numbers: Mapping[str, Any]) -> Verdict:
    """A verdict with its reason where there is none."""
    return (None, {"why": UNSETTLED, **numbers}) if holds is None else (holds, numbers)


def judged(differences: Iterable[Array], numbers: Mapping[str, Any]) -> Verdict:
    """`verdict`, `told`."""
    return told(verdict(differences), numbers)
