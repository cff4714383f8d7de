"""How a run ended: whether it diverged, and what it then scores."""

import numpy as np
from numpy.typing import NDArray

from dither.lab import Table

CHANCE = 0.1  # the accuracy of a run that diverged, among ten classes


def diverged(t: Table, label: str) -> NDArray[np.bool_]:
    """Whether the loss of each seed became not finite, [S]."""
    if "diverged" not in t.quantities(label):
        return np.zeros(len(t.seeds), bool)
    return np.isfinite(t.last(label, "diverged"))
