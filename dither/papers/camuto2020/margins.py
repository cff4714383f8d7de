"""Networks trained with noise keep their distance from the decision boundary.

Camuto et al. 2020, §4 ("Sensitivity"), App. D, derived anew.

Of a test image x with label y, the input margin

    γ = min_{j≠y} (f_y − f_j) / ‖∇_x(f_y − f_j)‖

is the distance to the nearest decision boundary to first order, negative where the answer is wrong.
Input noise has the regulariser R = ½σ² E Σ_{i<j} p_i p_j (f_i − f_j)²/γ_ij²: for given outputs a
larger margin is a smaller R. Left: how margins are distributed over the test images. Middle: their
medians. Right: is first order to be trusted? The median distance at which the answer does turn
(found by following the linearisation) against the median of γ, of images answered rightly.
"""

from collections.abc import Callable

import numpy as np

from dither.lab import Claim, Figure, Table, Verdict
from dither.lab.rule import above, decide, near
from dither.papers import style
from dither.papers.camuto2020 import nets
from dither.papers.camuto2020.nets import (
    ALL,
    FEW,
    METHODS,
    PERCENTS,
    SHORT,
    both,
    short,
    unjudged,
    unlearnt,
)

DASHES = {ALL: "-", FEW: "--"}
FLOOR = 0.05  # of the median margin of the net without noise


def larger(method: str, among: str) -> Callable[[Table], Verdict]:
    """C13, seed by seed: the nets of a seed share their start and the order of the data."""
    labels = f"none, {among}", f"{method}, {among}"

    def check(t: Table) -> Verdict:
        if why := unjudged(t, method, among):
            return None, {"why": why}
        ours, none = both(t, "γ/test/50", method, among)
        numbers: dict[str, object] = {}
        for label in ("none", method):
            for q, name in (
                ("γ/test/50", "median γ"), ("m/test/50", "median output margin"),
                ("γ/test/10", "tenth percentile of γ"), ("distance/test", "median distance"),
                ("accuracy/test", "test accuracy"),
            ):  # fmt: skip
                numbers[f"{name}, {label}"] = t.last(f"{label}, {among}", q)
        larger = above(f"median γ, {method}/none − 1", ours / none, 1, by=FLOOR)
        return decide(larger, unless=unlearnt(t, labels), numbers=numbers)

    return check


def first_order(t: Table) -> Verdict:
    """The median of γ is within 25 % of the median distance at which the answer changes, for every
    net.
    """
    if short(t):
        return None, {"why": SHORT}
    ratio = {
        label: t.last(label, "γ of these/test") / t.last(label, "distance/test")
        for label in t.labels
    }
    asked = [near(f"γ/distance − 1, {m}", r, 1, within=0.25) for m, r in ratio.items()]
    return decide(*asked, unless=unlearnt(t, t.labels))


def plot(t: Table):
    picture, axes = style.grid(1, 3, width=9.5, height=3.6)
    spread, medians, trust = axes[0]
    dashes = {among: DASHES[among] for among in style.some(nets.drawn(t))}
    for i, (method, colour) in enumerate(METHODS.items()):
        for j, (among, dash) in enumerate(dashes.items()):
            label = f"{method}, {among}"
            gamma = np.stack([t.last(label, f"γ/test/{q}") for q in PERCENTS], 1)
            if j == 0:
                style.band(spread, PERCENTS, gamma, colour, ls=dash, label=method)
            at = [j + 0.22 * (i - 1)]
            style.dots(medians, at, t.last(label, "γ/test/50")[:, None], colour, ms=7)
            trust.plot(
                t.last(label, "γ of these/test"),
                t.last(label, "distance/test"),
                "o" if among == ALL else "^",
                color=colour,
                ls="",
                label=among if method == "none" else None,
            )
    spread.axhline(0, color=style.GREY, lw=1)
    spread.set(xlabel="test images (%)", ylabel="input margin γ", title=next(iter(dashes)))
    medians.set(xlim=(-0.5, len(dashes) - 0.5), ylabel="median γ")
    medians.set_xticks(range(len(dashes)), list(dashes))
    low, high = trust.get_xlim()[0], max(trust.get_xlim()[1], trust.get_ylim()[1])
    trust.plot([low, high], [low, high], color=style.GREY, lw=1, zorder=0)
    trust.set(xlabel="median γ", ylabel="median distance")
    style.legend(spread, loc="upper left")
    style.legend(trust, loc="upper left")
    return picture


TEXT = "the median input margin is larger than without, by more than 5 %"
figure = Figure(
    nets.nets,
    plot,
    smoke=nets.SMOKE,
    quick=nets.QUICK,
    decisive=nets.DECISIVE,
    paper=nets.PAPER,
    claims=[
        Claim("C13", f"noise: {TEXT}", larger("GNI", ALL)),
        Claim("C13 (R)", f"R: {TEXT}", larger("R", ALL)),
        Claim(f"C13 ({FEW})", "noise, images fitted: the same", larger("GNI", FEW)),
        Claim(f"C13 (R, {FEW})", "R, images fitted: the same", larger("R", FEW)),
        *nets.of_variances("C13", TEXT, larger),
        Claim(
            "C13 ours",
            "not in the paper: first order is within 25 % of the distance to a wrong answer",
            first_order,
        ),
    ],
    departures=[
        *nets.DEPARTURES,
        nets.DECIDED,
        "margins of the first 1000 test images; the distance of the first 200 of them",
    ],
    seeds=nets.SEEDS,
    needs=("fashion-mnist",),
    cost={"smoke": 0.2, "quick": 1.2, "decisive": 90, "paper": 1200},
)
