"""The small figures that results draw of themselves: `plot()`.

Colours are told apart by the colour-blind (Okabe & Ito 2008). matplotlib is imported when a figure
is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

from dither.errors import DitherError

BLUE, ORANGE = "#0072B2", "#D55E00"
INK, SOFT = "#3b3b3b", "#9a9a9a"
FRAME: dict[Any, Any] = {"axes.spines.top": False, "axes.spines.right": False}


def panel(ax: Any = None, *, width: float = 5.2, height: float = 3.2) -> tuple[Any, Any]:
    """(figure, axes): of pyplot, with one panel of width × height inches; or those of `ax`.

    Raises DitherError if matplotlib is missing.
    """
    if ax is not None:
        return ax.figure, ax
    try:
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise DitherError(
            "plot needs the package matplotlib: pip install 'dither[lab]', or draw the numbers "
            "with another one"
        ) from error
    with pyplot.rc_context(FRAME):
        figure = pyplot.figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()
