"""A table of the paper as a picture: our mean beside the printed numbers, both ± 1 sd over
runs: the paper prints ± 2.
"""

from collections.abc import Callable, Sequence

import numpy as np

from dither.lab import Array, Table
from dither.papers import style
from dither.papers.ends import diverged
from dither.papers.levi2022.methods import COLOURS, Kind
from dither.papers.levi2022.printed import Printed


def beside(
    t: Table,
    printed: Printed,
    value: Callable[[Table, str], Array],
    methods: Sequence[str],
    what: str,
    theirs: str = "paper",
):
    """One panel per net that was trained, one row per method. Our values are filled, the paper's
    are hollow, in per cent; of a run that diverged in every seed there is the word.
    """
    there: list[Kind] = [n for n in printed if any(f"{n} {m}" in t.there for m in methods)]
    nets = style.some(there)
    picture, axes = style.grid(1, len(nets), height=0.55 * len(methods) + 1.6)
    rows = np.arange(len(methods))[::-1]
    for ax, net in zip(axes[0], nets, strict=True):
        known = printed[net]
        for row, method in zip(rows, methods, strict=True):
            label, colour = f"{net} {method}", COLOURS[method]
            if label in t.there and diverged(t, label).all():  # chance would take the others' room
                at = ax.get_yaxis_transform()
                ax.text(0.02, row, "diverged", color=colour, fontsize=9, va="center", transform=at)
            elif label in t.there:
                here = 100 * value(t, label)
                ax.errorbar(
                    here.mean(), row + 0.12, xerr=style.sd(here), fmt="o", color=colour, capsize=2
                )
            mean, two_sigma = known[method]
            ax.errorbar(
                mean,
                row - 0.18,
                xerr=two_sigma / 2,
                fmt="s",
                mfc="white",
                color=colour,
                capsize=2,
                lw=1,
            )
            for also, mark in ((f"{label}, clipped", "^"), (f"{label}, scan", "D")):
                if also in t.there:
                    ax.plot(100 * value(t, also).mean(), row + 0.12, mark, color=colour, ms=6)
        ax.set(ylim=(-0.6, len(methods) - 0.4), xlabel=what)
        ax.set_yticks(rows, methods if ax is axes[0, 0] else [""] * len(rows))
        ax.grid(axis="x", color="#dddddd", lw=0.6)
        ax.set_title(net)
    ax = axes[0, 0]
    marks = {"ours": "o"}
    marks |= {"clipped softmax": "^"} if any(b.endswith(", clipped") for b in t.labels) else {}
    marks |= {"σ of the scan": "D"} if any(b.endswith(", scan") for b in t.labels) else {}
    handles = [ax.plot([], [], m, color=style.BLACK, label=n)[0] for n, m in marks.items()]
    handles += ax.plot([], [], "s", mfc="white", color=style.BLACK, label=theirs)
    style.legend(picture, handles=handles, loc="outside upper center", ncols=4)
    return picture
