"""How runs ended, and how they are compared: at the end, and at equal training loss."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dither.lab import Array, Table

CHANCE = 0.1  # the accuracy of a run that diverged, among ten classes
LOSS, ACCURACY = "loss/train", "accuracy/test"
POINT = 0.01  # of accuracy: the smallest difference that counts
PART = 0.05  # of a trace or of a test loss: the same


def diverged(t: Table, label: str) -> NDArray[np.bool_]:
    """Whether the loss of each seed became not finite, [S]."""
    if "diverged" not in t.quantities(label):
        return np.zeros(len(t.seeds), bool)
    return np.isfinite(t.last(label, "diverged"))


def end(t: Table, label: str, quantity: str = ACCURACY, lost: float | None = None) -> Array:
    """The value of each seed at the end, [S]. `lost` is that of a seed that diverged, or that has
    none because its outputs are not finite; by default chance for an accuracy, else NaN.

    Raises if no seed has the quantity, unless all diverged or `lost` is given.
    """
    gone = diverged(t, label)
    excused = lost is not None or gone.all()
    if lost is None:
        lost = CHANCE if quantity.startswith("accuracy/") else np.nan
    if excused and quantity not in t.quantities(label):
        return np.full(len(gone), lost)
    values = t.last(label, quantity)
    return np.where(np.isnan(values) | gone, lost, values)


def gains(t: Table, quantity: str, ours: str, other: str) -> Array:
    """Our value − the other's at the end, seed by seed, with the same images and the same start."""
    return end(t, ours, quantity) - end(t, other, quantity)


def best(t: Table, label: str, quantity: str = ACCURACY) -> Array:
    """The best value of each seed, [S]."""
    return np.nanmax(t.series(label, quantity)[1], 1)


def choice(candidates: Sequence[Array]) -> NDArray[np.intp]:
    """For each seed, which run has the best mean over the other seeds, [S]. A choice on the same
    seed would put the best of many equal runs above them.

    candidates: [S] of each run.
    """
    table = np.stack(candidates)  # [runs, S]
    return (table.sum(1, keepdims=True) - table).argmax(0)


def chosen(candidates: Sequence[Array]) -> Array:
    """For each seed, the value of the run of `choice`, [S]."""
    at = choice(candidates)
    return np.stack(candidates)[at, np.arange(len(at))]


def common_loss(t: Table, labels: Iterable[str]) -> Array:
    """The lowest training loss that all runs reached, [S]."""
    return np.max([np.nanmin(t.series(label, LOSS)[1], 1) for label in labels], 0)


def at_loss(t: Table, label: str, quantity: str, level: Array) -> Array:
    """A quantity when the training loss first falls to `level`, [S]; between looks, linear in the
    logarithm of the loss. NaN where it is below that before the first look in training: the
    untrained net of step 0, or a line from it, would say little of a net on its way.
    """
    (steps, loss), (when, values) = t.series(label, LOSS), t.series(label, quantity)
    _, ours, theirs = np.intersect1d(steps, when, return_indices=True)
    steps, loss, values = steps[ours], loss[:, ours], values[:, theirs]
    crossings = np.full(len(level), np.nan)
    for s, target in enumerate(level):
        below = np.flatnonzero(loss[s] <= target)
        untrained = steps[0] == 0 and len(below) > 0
        unseen = untrained and (below[0] == 0 or (below[0] == 1 and loss[s, 1] < target))
        if len(below) and not unseen:
            k = below[0]
            before, after = np.log(loss[s, [max(k - 1, 0), k]])
            share = (before - np.log(target)) / (before - after) if before > after else 1.0
            crossings[s] = values[s, max(k - 1, 0)] * (1 - share) + values[s, k] * share
    return crossings
