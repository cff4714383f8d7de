"""The picture of a comparison: differences from the first method, one panel for each quantity."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from dither.errors import DitherError
from dither.lab.compare.values import Values
from dither.lab.table import Array
from dither.picture import BLUE, FRAME, INK, ORANGE, SOFT

COLOURS = {"better": BLUE, "worse": ORANGE}
MARKS = {"better": "o", "worse": "s", "": "D", "higher": "^", "lower": "v"}
LEFT_OUT = ("its chance level", "last epoch", "diverged")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    **FRAME,
    "axes.spines.left": False,
    "svg.fonttype": "none",
}


def draw(
    found: Values, quantities: Sequence[str] | None = None, make: Callable[..., Figure] = Figure
) -> Figure:
    """Differences from the first method with 95 % intervals and a dot for each seed. Blue discs are
    better, orange squares worse, grey diamonds are not told apart; black triangles are higher or
    lower, where neither is better.

    Raises DitherError for unknown quantities, or if there is no difference to draw.
    """
    known = [q for q in found.quantities if found.differences(q) and q not in LEFT_OUT]
    for quantity in quantities or ():
        if quantity not in known:
            raise DitherError(f"plot: no difference of {quantity!r}; there are {', '.join(known)}")
    shown = list(quantities or known)
    if not shown:
        raise DitherError("plot: a picture needs two methods with a quantity in common")
    columns = min(len(shown), 2)
    rows = math.ceil(len(shown) / columns)
    methods = [m for m in found.values if any(m in found.differences(q) for q in shown)]
    height = 0.8 + 0.3 * len(methods)
    with mpl.rc_context(STYLE):
        figure = make(figsize=(4.2 * columns, height * rows), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.12)  # type: ignore[union-attr]
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for ax, quantity in zip(axes.flat, shown, strict=False):
            _panel(ax, found, quantity, methods)
        for ax in list(axes.flat)[len(shown) :]:
            ax.set_axis_off()
    return figure


def _panel(ax: Any, found: Values, quantity: str, methods: Sequence[str]) -> None:
    scale, unit = found.unit(quantity)
    ax.axvline(0, color=SOFT, lw=1)
    for method, gap in found.differences(quantity).items():
        row = methods.index(method)
        colour = COLOURS.get(gap.verdict, INK if gap.verdict else SOFT)
        each: Array = found.difference(method, quantity) * scale
        each = each[np.isfinite(each)]
        ax.plot(each, np.full(len(each), row + 0.22), "|", ms=5, color=colour, alpha=0.7)
        if math.isfinite(gap.high):
            ax.plot([gap.low * scale, gap.high * scale], [row, row], color=colour, lw=2)
        if math.isfinite(gap.mean):
            ax.plot(gap.mean * scale, row, MARKS[gap.verdict], color=colour, ms=5)
    ax.set_yticks(range(len(methods)), methods)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(methods) - 0.4, -0.6)
    ax.set_title(f"{quantity}{unit}, minus {next(iter(found.values))}", loc="left")
    ax.locator_params(axis="x", nbins=5)
