"""Networks trained with noise are less sensitive to noise on their inputs.

Camuto et al. 2020, §4 ("Sensitivity").

Test loss and accuracy on x + s ε, ε ~ N(0, 1), against s, in units of the pixels' standard
deviation, for nets trained without noise, with noise of variance 0.1 on the input and every hidden
activation (its s dotted), and on its explicit regulariser R. The same ε for every net and s.
"""

from collections.abc import Callable

import numpy as np

from dither.lab import Array, Claim, Figure, Table, Verdict
from dither.lab.rule import above, decide
from dither.papers import style
from dither.papers.camuto2020 import nets
from dither.papers.camuto2020.nets import (
    ALL,
    FEW,
    LEVELS,
    METHODS,
    SHORT,
    VARIANCE,
    short,
    unlearnt,
)

FLOOR = 0.01  # of accuracy, one point
JUDGED = tuple(s for s in LEVELS if s >= 0.5)  # above the noise of training, .32


def curve(t: Table, label: str, quantity: str) -> Array:
    """The values against s, [S, LEVELS]."""
    return np.stack([t.last(label, f"noisy {quantity}/{s:g}") for s in LEVELS], 1)


def steadier(method: str, among: str) -> Callable[[Table], Verdict]:
    """The loss of accuracy from s = 0 to each s is smaller."""

    def check(t: Table) -> Verdict:
        if short(t):
            return None, {"why": SHORT}
        at = [LEVELS.index(s) for s in JUDGED]
        curves = {m: curve(t, f"{m}, {among}", "accuracy") for m in ("none", method)}
        lost = {m: (c[:, :1] - c)[:, at] for m, c in curves.items()}
        numbers = {
            f"accuracy lost at s = {s:g}, {m}": lost[m][:, i]
            for i, s in enumerate(JUDGED)
            for m in lost
        }
        numbers |= {f"accuracy at s = 0, {m}": c[:, 0] for m, c in curves.items()}
        asked = [
            above(f"spared at s = {s:g}", lost["none"][:, i], lost[method][:, i], by=FLOOR)
            for i, s in enumerate(JUDGED)
        ]
        why = unlearnt(t, [f"none, {among}", f"{method}, {among}"])
        return decide(*asked, unless=why, numbers=numbers)

    return check


def plot(t: Table):
    picture, axes = style.grid(2, 2, height=2.8)
    for column, among in zip(axes.T, (ALL, FEW), strict=True):
        for ax, quantity in zip(column, ("accuracy", "loss"), strict=True):
            for method, colour in METHODS.items():
                values = curve(t, f"{method}, {among}", quantity)
                style.band(ax, LEVELS, values, colour, log=quantity == "loss", label=method)
            ax.axvline(VARIANCE**0.5, color=style.GREY, lw=1, ls=":")
            ax.set_xlabel("s")
        column[0].set(title=among, ylim=(0.2, 0.95))
        column[1].set_yscale("log")
        column[1].yaxis.set_major_formatter(lambda v, _: f"{v:g}")
        column[1].yaxis.set_minor_formatter(lambda v, _: f"{v:g}")
    axes[0, 0].set_ylabel("test accuracy")
    axes[1, 0].set_ylabel("test loss")
    style.legend(axes[0, 0], loc="lower left")
    return picture


TEXT = "less accuracy is lost at every s ≥ 0.5 than without, by more than one point"
figure = Figure(
    nets.nets,
    plot,
    smoke=nets.SMOKE,
    quick=nets.QUICK,
    paper=nets.PAPER,
    claims=[
        Claim("sensitivity", f"noise: {TEXT}", steadier("GNI", ALL)),
        Claim("sensitivity (R)", f"R: {TEXT}", steadier("R", ALL)),
        Claim(f"sensitivity ({FEW})", f"noise, images fitted: {TEXT}", steadier("GNI", FEW)),
        Claim(f"sensitivity (R, {FEW})", f"R, images fitted: {TEXT}", steadier("R", FEW)),
    ],
    departures=[*nets.DEPARTURES, "the first 2000 test images"],
    seeds=nets.SEEDS,
    needs=("fashion-mnist",),
    cost={"smoke": 0.2, "quick": 1.2, "paper": 1200},
)
