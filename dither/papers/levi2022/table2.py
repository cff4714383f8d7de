"""Generalization on clean test data.   Levi et al. 2022, Table 2, §3.2.3

Test accuracy on clean Fashion-MNIST of the nets of Fig. 2 and of one more trained on corrupted
inputs (CDT, s = .2), beside the numbers printed in the paper (hollow, over 10 runs).
"""

from dither.lab import Array, Claim, Figure, Run, Table, Verdict
from dither.lab.rule import Comparison, below, decide, not_below
from dither.papers.ends import POINT, end
from dither.papers.levi2022.methods import (
    AT_SCALE,
    DEPARTURES,
    METHODS,
    RULED,
    SEEDS,
    Setting,
    compared,
    shown,
    unlearnt,
)
from dither.papers.levi2022.printed import TABLE2
from dither.papers.levi2022.tables import beside

POINTS = 0.015  # "within 1.5 points"
CDT = ("CDT .2", "CDT .4")
ANEW = range(5, 15)  # seeds 0 to 4 did not settle L12 for the FC


def runs(fc: Setting, cnn: Setting) -> dict[str, Run]:
    return compared(fc) | compared(cnn)


def clean(t: Table, label: str) -> Array:
    return end(t, label)


def against_none(net: str, methods: tuple[str, ...], asked):
    """The clean accuracy of each method, compared with none, seed by seed."""

    def check(t: Table) -> Verdict:
        none, labels = f"{net} none", [f"{net} {m}" for m in methods]
        comparisons: list[Comparison] = [
            asked(f"{m} − none", clean(t, m), clean(t, none)) for m in labels
        ]
        every = [none, *labels]
        return decide(*comparisons, unless=unlearnt(t, every), numbers=shown(t, every, clean))

    return check


def kept(net: str):
    ask = lambda name, a, b: not_below(name, a, b, within=POINTS)  # noqa: E731
    return against_none(net, ("in decay", "full decay"), ask)


def lost(net: str):
    ask = lambda name, a, b: below(name, a, b, by=POINT)  # noqa: E731
    return against_none(net, CDT, ask)


def plot(t: Table):
    return beside(t, TABLE2, clean, METHODS, "clean test accuracy, %")


figure = Figure(
    runs,
    plot,
    **AT_SCALE,
    claims=[
        Claim("L11", "FC: decay NINR is not 1.5 points below none", kept("FC")),
        Claim("L11 CNN", "CNN: decay NINR is not 1.5 points below none", kept("CNN")),
        Claim("L12", "FC: CDT(.2) and CDT(.4) are more than 1 point below none", lost("FC")),
        Claim("L12 CNN", "CNN: CDT(.2) and CDT(.4) are more than 1 point below none", lost("CNN")),
        Claim(
            "L12 anew",
            "FC, asked anew: CDT(.2) and CDT(.4) are more than 1 point below none",
            lost("FC"),
            runs=[f"FC {m}" for m in ("none", *CDT)],
            seeds={"decisive": ANEW, "paper": range(SEEDS["paper"])},
        ),
    ],
    departures=[
        *DEPARTURES,
        RULED,
        "a run that diverged counts as chance, 10 %",
        "decisive: seeds 0 to 4 did not settle L12 for the FC; it is asked anew of seeds 5 to 14 "
        "alone, and was written down before they were run",
        "the paper splits 60/40 into training and validation; here the 10 000 test images judge",
    ],
    seeds=SEEDS,
    needs=("fashion-mnist",),
    cost={"smoke": 0.05, "quick": 4.4, "decisive": 510, "paper": 600},
)
