"""Networks trained with noise have a smaller capacity.   Camuto et al. 2020, App. E, derived anew

Norms of the weights W_l that bound how complex a function is: products of Frobenius norms and of
spectral norms (a bound of the Lipschitz constant), the path norm √(Σ_paths Π w²), and spectral
complexity Π‖W_l‖₂ √(Σ_l ‖W_l‖_F²/‖W_l‖₂²). With σ² on the input R ≤ ½σ² E[1 − Σ_i p_i²] Π‖W_l‖₂²,
so a small capacity gives a small R; whether a small R gives a small capacity is what is measured.
Above the measures, below over the median output margin of training images, which takes out the
scale of the outputs: a net that is less sure of itself has smaller weights in any case. All in
units of the net without noise of the same seed.
"""

from collections.abc import Callable

import numpy as np

from dither.lab import Array, Claim, Figure, Table, Verdict
from dither.lab.rule import below, decide
from dither.papers import style
from dither.papers.camuto2020 import nets
from dither.papers.camuto2020.nets import ALL, FEW, METHODS, unjudged, unlearnt

MEASURES = {
    "frobenius": "Π‖W‖$_F$",
    "spectral": "Π‖W‖₂",
    "path": "path",
    "complexity": "complexity",
}
FLOOR = 0.05  # of the measure of the net without noise
FORMS = {"capacity": "measure", "normalised": "measure/margin"}


def ratio(t: Table, quantity: str, method: str, among: str) -> Array:
    """A measure over the baseline's of the same seed, [S]."""
    return t.last(f"{method}, {among}", quantity) / t.last(f"none, {among}", quantity)


def lower(form: str, method: str, among: str) -> Callable[[Table], Verdict]:
    """C15: each of the four measures is below the baseline's."""

    def check(t: Table) -> Verdict:
        if why := unjudged(t, method, among):
            return None, {"why": why}
        ratios = {m: ratio(t, f"{form}/{m}", method, among) for m in MEASURES}
        why = unlearnt(t, [f"none, {among}", f"{method}, {among}"])
        if any(np.isnan(values).any() for values in ratios.values()):
            why = why or "a net's median output margin is not above 0"
        asked = [
            below(f"{m}, {method}/none − 1", values, 1, by=FLOOR) for m, values in ratios.items()
        ]
        return decide(*asked, unless=why)

    return check


def plot(t: Table):
    sets = style.some(nets.drawn(t))
    picture, axes = style.grid(2, len(sets), width=4.0 * len(sets), height=2.7)
    for row, (form, name) in zip(axes, FORMS.items(), strict=True):
        for ax, among in zip(row, sets, strict=True):
            for i, (method, colour) in enumerate(METHODS.items()):
                values = np.stack([ratio(t, f"{form}/{m}", method, among) for m in MEASURES], 1)
                at = np.arange(len(MEASURES)) + 0.2 * (i - 1)
                style.dots(ax, at, values, colour, ms=6, label=method)
            ax.axhline(1, color=style.GREY, lw=1, ls=":", zorder=0)
            ax.set_xticks(range(len(MEASURES)), list(MEASURES.values()))
        row[0].set_ylabel(f"{name},\nin units of none")
    for ax, among in zip(axes[0], sets, strict=True):
        ax.set_title(among)
    style.legend(axes[0, 0], loc="best")
    return picture


TEXT = (
    "each of four capacity measures (products of Frobenius and of spectral norms, path norm, "
    "spectral complexity) is lower than without, by more than 5 %"
)
figure = Figure(
    nets.nets,
    plot,
    smoke=nets.SMOKE,
    quick=nets.QUICK,
    decisive=nets.DECISIVE,
    paper=nets.PAPER,
    claims=[
        Claim(
            "C15",
            f"noise: {TEXT}",
            lower("capacity", "GNI", ALL),
        ),
        Claim("C15 (R)", f"R: {TEXT}", lower("capacity", "R", ALL)),
        Claim(
            "C15 (margin)",
            "noise: the same of the measures over the median output margin",
            lower("normalised", "GNI", ALL),
        ),
        Claim(f"C15 ({FEW})", "noise, images fitted: as C15", lower("capacity", "GNI", FEW)),
        Claim(
            f"C15 (margin, {FEW})",
            "noise, images fitted: as C15 (margin)",
            lower("normalised", "GNI", FEW),
        ),
        *nets.of_variances("C15", TEXT, lambda method, among: lower("capacity", method, among)),
    ],
    departures=[
        *nets.DEPARTURES,
        nets.DECIDED,
        "which measures App. E has is not known: these four are the usual ones",
    ],
    seeds=nets.SEEDS,
    needs=("fashion-mnist",),
    cost={"smoke": 0.2, "quick": 1.2, "decisive": 90, "paper": 1200},
)
