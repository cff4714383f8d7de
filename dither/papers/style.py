"""How figures are drawn: legible at a phone's width and to the colour-blind (Okabe & Ito 2008).

Every band and bar is ± 1 standard deviation over seeds (`sd`), whatever the paper's figure has.
"""

import math
import textwrap
import warnings
from collections.abc import Callable, Sequence, Sized
from typing import Any, Literal, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

from dither.errors import DitherError
from dither.lab import Table

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
)  # fmt: skip
BLACK, GREY = "#000000", "#8C8C8C"
Some = TypeVar("Some", bound=Sized)

RC: dict[Any, Any] = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "legend.fontsize": 10,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "lines.linewidth": 1.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def some(there: Some, least: int = 1) -> Some:
    """What a picture is made of. Raises DitherError if it is too little."""
    if len(there) < least:
        raise DitherError("no picture: too few of the runs that it shows have results")
    return there


def logarithmic(ax: Axes, which: Literal["x", "y"] = "x") -> None:
    """A logarithmic axis over what was drawn, with few plain numbers: at 1, 2 and 5; over more than
    two decades at 1 and 3, over more than three and a half at 1, eight at most; over less than a
    factor 5 at 1, 2, 3, 5 and 7, and below a factor 2 evenly.
    """
    ax.set(**{f"{which}scale": "log"})
    axis, (low, high) = (ax.xaxis, ax.get_xlim()) if which == "x" else (ax.yaxis, ax.get_ylim())
    axis.set_minor_locator(NullLocator())
    if (ratio := high / low) < 2:
        axis.set_major_locator(MaxNLocator(4))
        axis.set_major_formatter(ScalarFormatter(useOffset=False))  # digits that tell them apart
        return
    bounds = ((5, (1, 2, 3, 5, 7)), (100, (1, 2, 5)), (3000, (1, 3)))
    digits = next((few for bound, few in bounds if ratio < bound), (1,))
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = range(first, last + 1, 1 + (last - first) // 8)
    numbers = [digit * 10.0**decade for decade in decades for digit in digits]
    axis.set_major_locator(FixedLocator([n for n in numbers if low <= n <= high]))
    axis.set_major_formatter("{x:g}")


def grid(
    rows: int, columns: int, width: float = 8.0, height: float = 3.1
) -> tuple[Figure, np.ndarray]:
    """A figure with rows × columns panels, and its axes. width: inches in all; height: inches per
    row.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(width, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes


def sd(y: np.ndarray) -> np.ndarray:
    """The standard deviation over seeds, of y [S, …] without nan; 0 for one seed."""
    n = np.isfinite(y).sum(0)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a place that no seed reached
        return np.nanstd(y, 0) * np.sqrt(n / np.maximum(n - 1, 1))


def band(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    y: np.ndarray,
    color: str,
    *,
    log: bool = False,
    **line: Any,
) -> None:
    """Mean ± sd over seeds of y [S, T] against x [T], without seeds that stopped. log: mean and sd
    of log y, for a logarithmic axis, on which mean − sd may be below 0.
    """
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a step that no seed reached
        y = np.log(y) if log else y
        mean, spread = np.nanmean(y, 0), sd(y)
        ends = (mean, mean - spread, mean + spread)
        middle, low, high = (np.exp(v) if log else v for v in ends)
    ax.plot(x, middle, color=color, **line)
    ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def dots(ax: Axes, x: Sequence[float] | np.ndarray, y: np.ndarray, color: str, **how: Any) -> None:
    """Mean ± sd over seeds of y [S, T] against x [T], as dots with bars."""
    how = {"fmt": "o", "ms": 4, "capsize": 2, "lw": 1, **how}
    ax.errorbar(x, y.mean(0), sd(y), color=color, **how)


def panel(ax: Axes, draw: Callable[..., None], t: Table, *args: Any, **how: Any) -> None:
    """draw(ax, t, …). If a run that it needs has no results, the panel shows the reason instead."""
    try:
        draw(ax, t, *args, **how)
    except DitherError as error:
        if not t.missing:
            raise
        ax.clear()
        ax.set_axis_off()
        text = textwrap.fill(str(error), 34)
        ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=8, transform=ax.transAxes)


def legend(ax: Axes | Figure, **where: Any) -> None:
    """A legend of a panel, or of the whole figure. A panel that was not drawn has none."""
    if isinstance(ax, Axes) and not ax.axison:
        return
    with mpl.rc_context(RC):
        ax.legend(**where)
