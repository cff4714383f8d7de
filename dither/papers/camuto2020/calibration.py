"""Networks trained with noise are better calibrated.   Camuto et al. 2020, §4, Fig. F.7

Of the test images to which a net gives its answer with a confidence in ((m − 1)/15, m/15], how many
are answered rightly? Left, middle: reliability diagrams, accuracy − confidence per bin (below 0:
overconfident), dots as large as the bin's share of the images. Right: the expected calibration
error Σ_m (n_m/n)|accuracy_m − confidence_m|, with the error that a perfectly calibrated net with
these confidences would show by chance (ticks): below it there is nothing to improve. On fitted
images a net is overconfident; R, whose weights p_i p_j vanish with certainty, has no say there.
"""

from collections.abc import Callable, Mapping

import numpy as np

from dither.lab import Claim, Figure, Table, Verdict
from dither.lab.rule import below, decide
from dither.papers import style
from dither.papers.camuto2020 import nets
from dither.papers.camuto2020.nets import ALL, BINS, FEW, METHODS, both, unjudged, unlearnt

FLOOR = 0.005  # of the calibration error, half a point
FAINT = 0.002  # share of the images below which a bin is not drawn


def lower(method: str, among: str) -> Callable[[Table], Verdict]:
    """C14. Not judged if the error of the net without noise exceeds that of a perfectly calibrated
    net by less than the floor.
    """

    def check(t: Table) -> Verdict:
        if why := unjudged(t, method, among):
            return None, {"why": why}
        ours, none = both(t, "ece", method, among)
        chance = t.last(f"none, {among}", "chance")
        numbers: dict[str, object] = {}
        for label in ("none", method):
            for q in ("ece", "chance", "overconfidence", "loss/test", "accuracy/test"):
                numbers[f"{q.replace('ece', 'ECE')}, {label}"] = t.last(f"{label}, {among}", q)
        why = unlearnt(t, [f"none, {among}", f"{method}, {among}"])
        if (none - chance).mean() < FLOOR:
            why = why or "without noise the calibration error is what chance gives: none to improve"
        lower = below(f"ECE, {method} − none", ours, none, by=FLOOR)
        return decide(lower, unless=why, numbers=numbers)

    return check


def diagram(ax, t: Table, among: str, methods: Mapping[str, str] = METHODS) -> None:
    """methods: their colours."""
    centres = (np.arange(BINS) + 0.5) / BINS
    for method, colour in methods.items():
        label = f"{method}, {among}"
        gap, share = (
            np.stack([t.last(label, f"{q}/{m:02d}") for m in range(BINS)], 1).mean(0)
            for q in ("gap", "share")
        )
        there = share > FAINT
        ax.plot(centres[there], gap[there], color=colour, lw=1.2, label=method)
        ax.scatter(centres[there], gap[there], s=6 + 150 * share[there], color=colour)
    ax.axhline(0, color=style.GREY, lw=1, ls=":")
    ax.set(xlabel="confidence", title=among, xlim=(0.15, 1.02))


def plot(t: Table):
    settings = [among for among in (ALL, FEW) if f"none, {among}" in t.labels]
    picture, axes = style.grid(1, len(settings) + 1, width=3.2 * (len(settings) + 1), height=3.5)
    for ax, among in zip(axes[0], settings, strict=False):
        diagram(ax, t, among)
    axes[0, 0].set_ylabel("accuracy − confidence")
    style.legend(axes[0, 0], loc="best", markerscale=0.5)
    bars = axes[0, -1]
    for i, (method, colour) in enumerate(METHODS.items()):
        for j, among in enumerate(settings):
            label, at = f"{method}, {among}", j + 0.25 * (i - 1)
            ece = t.last(label, "ece")
            bars.bar(at, ece.mean(), 0.22, yerr=style.sd(ece), color=colour, capsize=2, alpha=0.85)
            bars.plot(at, t.last(label, "chance").mean(), "_", color="white", ms=12, mew=2)
            bars.plot(at, t.last(label, "chance").mean(), "_", color=style.GREY, ms=12, mew=1)
    bars.set_xticks(range(len(settings)), settings)
    bars.set(ylabel="expected calibration error")
    return picture


TEXT = "the calibration error is lower than without, by more than half a point"
CLAIMS = [
    Claim("C14", f"noise: {TEXT}", lower("GNI", ALL)),
    Claim("C14 (R)", f"R: {TEXT}", lower("R", ALL)),
]
FITTED = [
    Claim(f"C14 ({FEW})", f"noise, images fitted: {TEXT}", lower("GNI", FEW)),
    Claim(f"C14 (R, {FEW})", f"R, images fitted: {TEXT}", lower("R", FEW)),
]
figure = Figure(
    nets.nets,
    plot,
    smoke=nets.SMOKE,
    quick=nets.QUICK,
    paper=nets.PAPER,
    claims=[*CLAIMS, *FITTED],
    departures=[*nets.DEPARTURES, "15 bins; on SVHN and CIFAR-10 in figures of their own"],
    seeds=nets.SEEDS,
    needs=("fashion-mnist",),
    cost={"smoke": 0.2, "quick": 1.2, "paper": 1200},
)
