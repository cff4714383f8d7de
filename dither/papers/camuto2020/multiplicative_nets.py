"""Noise in proportion to the activations: margins, capacity, calibration, sensitivity.

Camuto et al. 2020, eq. 6: App. D, E, F.7 and §4 ("Sensitivity") once more, with h∘(1 + σ ε) in
place of h + σ ε on the input and every hidden activation. ε is Gaussian or dropout's, of the same
variance σ² = .25 (p = .2); R = ½ σ² E_batch Σ_k Σ_c ‖g_kc ∘ h_k‖² is the same for both, and a
third net is trained on it without noise. The nets without noise are those of those figures.

From the left: input margins of the test images; four capacity measures in units of the net without
noise; accuracy − confidence of the test images by confidence (below 0: overconfident); test
accuracy on x + s ε, in units of the pixels' standard deviation. Above: trained on all images;
below: on few, for as long as the net without noise takes to fit them.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from dither.lab import Claim, Figure, Run, Table
from dither.papers import style
from dither.papers.camuto2020 import calibration, capacity, margins, nets, sensitivity
from dither.papers.camuto2020.multiplicative_training import TRAINED_AT
from dither.papers.camuto2020.nets import ALL, FEW, LEVELS, PERCENTS, Both, Scale
from dither.papers.camuto2020.remainders import noise

METHODS = {
    "none": style.BLACK,
    "Gaussian": style.BLUE,
    "dropout": style.GREEN,
    "R": style.ORANGE,
}
LAWS = {"Gaussian": "multiplicative", "dropout": "dropout", "R": "multiplicative"}
QUANTITIES = {
    "M13": ("a larger median input margin than without noise, by more than 5 %", margins.larger),
    "M14": ("a lower calibration error than without, by more than half a point", calibration.lower),
    "M15": (
        "each capacity measure lower than without, by more than 5 %",
        lambda *of: capacity.lower("capacity", *of),
    ),
    "M16": (
        "less accuracy is lost at each s ≥ 0.5 than without, by more than 1 point",
        sensitivity.steadier,
    ),
}


def runs(scale: Scale) -> dict[str, Run]:
    """{"none, all images": …, "dropout, few images": …}."""
    by_label = {}
    for setting in (ALL, FEW):
        base = nets.baseline(scale, setting)
        by_label[f"none, {setting}"] = base
        # eq. 14 is not looked at here
        base = replace(base, watch=tuple(w for w in base.watch if not isinstance(w, Both)))
        for method, law in LAWS.items():
            objective = scale.objective if method == "R" else "noise"
            run = replace(base, noise=noise(TRAINED_AT, law), objective=objective)
            by_label[f"{method}, {setting}"] = run
    return by_label


def plot(t: Table) -> Any:
    picture, axes = style.grid(2, 4, width=12.5, height=3.1)
    for row, among in zip(axes, (ALL, FEW), strict=True):
        spread, measures, diagram, noisy = row
        for i, (method, colour) in enumerate(METHODS.items()):
            label = f"{method}, {among}"
            gamma = np.stack([t.last(label, f"γ/test/{q}") for q in PERCENTS], 1)
            style.band(spread, PERCENTS, gamma, colour, label=method)
            ratios = [capacity.ratio(t, f"capacity/{m}", method, among) for m in capacity.MEASURES]
            at = np.arange(len(ratios)) + 0.15 * (i - 1.5)
            style.dots(measures, at, np.stack(ratios, 1), colour, ms=5)
            style.band(noisy, LEVELS, sensitivity.curve(t, label, "accuracy"), colour)
        spread.axhline(0, color=style.GREY, lw=1)
        spread.set(xlabel="test images (%)", ylabel="input margin γ", title=among)
        measures.axhline(1, color=style.GREY, lw=1, ls=":", zorder=0)
        measures.set_xticks(range(4), list(capacity.MEASURES.values()), fontsize=8)
        measures.set_ylabel("in units of none")
        calibration.diagram(diagram, t, among, METHODS)
        diagram.set(ylabel="accuracy − confidence", title=None)
        noisy.set(xlabel="s", ylabel="test accuracy")
    style.legend(axes[0, 0], loc="upper left")
    return picture


def claims() -> list[Claim]:
    listed = []
    for id, (text, check) in QUANTITIES.items():
        for among, says in ((ALL, ""), (FEW, f", {FEW}")):
            of = "" if among == ALL else f", {FEW}"
            for method in LAWS:
                words = f"{method}{says}: {text}"
                listed.append(Claim(f"{id} {method}{of}", words, check(method, among)))
    return listed


figure = Figure(
    runs,
    plot,
    smoke=nets.SMOKE,
    quick=nets.QUICK,
    paper=nets.PAPER,
    claims=claims(),
    departures=[
        "no figure of the paper: eq. 6 is in its text alone; the claims are those of the figures "
        "of additive noise",
        *nets.DEPARTURES[1:],
        "σ² = .25 (p = .2), as in the other figures of this noise; margins of the first 1000 test "
        "images, accuracy of the first 2000",
    ],
    seeds=nets.SEEDS,
    needs=("fashion-mnist",),
    cost={"smoke": 0.2, "quick": 1.7, "paper": 800},
)
