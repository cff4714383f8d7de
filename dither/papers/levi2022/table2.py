"""Generalization on clean test data.   Levi et al. 2022, Table 2, §3.2.3

Test accuracy on clean Fashion-MNIST of the nets of Fig. 2 and of one more trained on corrupted
inputs (CDT, s = .2), beside the numbers printed in the paper (hollow, ± 2 σ over 10 runs).
"""

from dither.lab import Array, Claim, Figure, Run, Table
from dither.papers.levi2022.methods import (
    DEPARTURES,
    METHODS,
    SCALES,
    Setting,
    at_least,
    compared,
    final,
    judged,
)
from dither.papers.levi2022.printed import TABLE2
from dither.papers.levi2022.tables import beside

POINTS = 0.015  # "within 1.5 points"


def runs(fc: Setting, cnn: Setting) -> dict[str, Run]:
    return compared(fc) | compared(cnn)


def clean(t: Table, label: str) -> Array:
    return final(t, label, "accuracy/test")


def kept(net: str):
    ours = [f"{net} in decay", f"{net} full decay"]
    return judged(net, lambda t: at_least(t, ours, [f"{net} none"], clean, within=POINTS))


def lost(net: str):
    def check(t: Table):
        seen = {m: clean(t, f"{net} {m}") for m in ("none", "CDT .2", "CDT .4")}
        below = [seen[m].mean() < seen["none"].mean() for m in ("CDT .2", "CDT .4")]
        return all(below), seen

    return judged(net, check)


def plot(t: Table):
    return beside(t, TABLE2, clean, METHODS, "clean test accuracy, %")


figure = Figure(
    runs,
    plot,
    smoke=SCALES["smoke"],
    quick=SCALES["quick"],
    paper=SCALES["paper"],
    claims=[
        Claim("L11", "FC: decay NINR is within 1.5 points of none (or above)", kept("FC")),
        Claim("L11 CNN", "CNN: decay NINR is within 1.5 points of none (or above)", kept("CNN")),
        Claim("L12", "FC: CDT(.2) and CDT(.4) are below none", lost("FC")),
        Claim("L12 CNN", "CNN: CDT(.2) and CDT(.4) are below none", lost("CNN")),
    ],
    departures=[
        *DEPARTURES,
        "a run that diverged counts as chance, 10 %",
        "the paper splits 60/40 into training and validation; here the 10 000 test images judge",
    ],
    needs=("fashion-mnist",),
    cost={"smoke": 0.05, "quick": 0.6, "paper": 600},
)
