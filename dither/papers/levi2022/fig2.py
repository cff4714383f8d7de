"""Robustness against random input perturbations.   Levi et al. 2022, Fig. 2, §3.2.1, App. A

Test accuracy against the scale s of x → √(1 − s²) x + s δ (eq. 8) for nets trained on Fashion-MNIST
with nothing, L2, dropout, noise nodes ("in": on the input, "full": on every layer; σ in the decay
and the catapult phase) and on corrupted inputs (CDT). FC: three hidden layers of 1024 ReLU. CNN:
two blocks (conv 2×2, ELU, batch norm, max pool), 2048 ReLU. SGD, η = 0.05, |B| = 128, 500 epochs or
98 % training accuracy; noise off at evaluation; ± 2 standard deviations over seeds.

The text doesn't say which cross-entropy. On logits (top) the σ = 231.6 of FC's in-node lies beyond
the catapult phase; with Keras' clipped softmax (bottom) it doesn't. A third reading keeps the
logits and takes σ from the scan of phases.
"""

from dither.lab import Claim, Figure, Run, Table
from dither.papers import style
from dither.papers.levi2022.methods import (
    BASELINES,
    CATAPULTS,
    DEPARTURES,
    LEVELS,
    METHODS,
    SCALES,
    SCAN,
    Setting,
    at_least,
    compared,
    curve,
    final,
    judged,
    large,
    lines,
)

SHOWN = tuple(m for m in METHODS if m != "CDT .2")
READINGS = ("", ", clipped", ", scan")


def runs(fc: Setting, cnn: Setting) -> dict[str, Run]:
    return compared(fc, SHOWN) | compared(cnn, SHOWN)


def label(net: str, method: str, reading: str) -> str:
    """A method's run in a reading: only the catapults are trained with the clipped softmax too."""
    return f"{net} {method}{reading if reading == ', clipped' and method in CATAPULTS else ''}"


def best(net: str, reading: str):
    """L1, L2: the in-node's catapult above all others, the same reading where there is one."""

    def check(t: Table):
        ours = f"{net} in catapult{reading}"
        others = [label(net, m, reading) for m in SHOWN if m != "in catapult"]
        return at_least(t, [ours], others, large)

    return judged(net, check)


def decays(net: str, node: str):
    return judged(
        net,
        lambda t: at_least(t, [f"{net} {node} decay"], [f"{net} {m}" for m in BASELINES], large),
    )


def cost_of_corruption(net: str):
    def check(t: Table):
        clean = {m: final(t, f"{net} {m}", "accuracy/test")
                 for m in ("CDT .4", "in decay", "full decay")}  # fmt: skip
        worse = [clean["CDT .4"].mean() < clean[m].mean() for m in ("in decay", "full decay")]
        return all(worse), clean

    return judged(net, check)


def shown(t: Table, net: str, reading: str) -> dict[str, str]:
    """{run: method} of a panel, without those that are missing."""
    found = {label(net, m, reading): m for m in SHOWN}
    return {name: m for name, m in found.items() if name in t.there}


def plot(t: Table):
    nets = [net for net in ("FC", "CNN") if any(name.startswith(net) for name in t.there)]
    picture, axes = style.grid(2, len(nets), height=3.4)
    for row, reading in zip(axes, ("", ", clipped"), strict=True):
        for ax, net in zip(row, nets, strict=True):
            lines(ax, t, shown(t, net, reading))
            ax.set_title(f"{net}, {'clipped softmax' if reading else 'logits'}")
    scan = "FC in catapult, scan"
    if scan in t.there:
        name = "in catapult, σ of the scan"
        mean = curve(t, scan).mean(0)
        axes[0, 0].plot(LEVELS, mean, ":", color=style.BLUE, lw=2.2, label=name)
    for ax in axes[1]:
        ax.set_xlabel("corruption s")
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy")
    handles, names = axes[0, 0].get_legend_handles_labels()
    style.legend(picture, handles=handles, labels=names, loc="outside upper center", ncols=3)
    return picture


figure = Figure(
    runs,
    plot,
    smoke=SCALES["smoke"],
    quick=SCALES["quick"],
    paper=SCALES["paper"],
    claims=[
        Claim("L1", "FC: in-NINR catapult (σ = 231.6, logits) has the best accuracy at large "
              "corruption (mean over s = .5 … .8)", best("FC", "")),
        Claim("L1 clipped", "the same with the clipped softmax", best("FC", ", clipped")),
        Claim("L1 scan", f"the same on logits with σ = {SCAN['FC']['in catapult']:g}, chosen from "
              "the scan of phases", best("FC", ", scan")),
        Claim("L2", "CNN: in-NINR catapult has the best accuracy at large corruption",
              best("CNN", "")),
        Claim("L2 clipped", "the same with the clipped softmax", best("CNN", ", clipped")),
        Claim("L3", "FC: in-NINR decay ≥ L2, dropout, none at large corruption",
              decays("FC", "in")),
        Claim("L3'", "FC: full-NINR decay ≥ L2, dropout, none at large corruption",
              decays("FC", "full")),
        Claim("L3 CNN", "CNN: in-NINR decay ≥ L2, dropout, none at large corruption",
              decays("CNN", "in")),
        Claim("L3' CNN", "CNN: full-NINR decay ≥ L2, dropout, none at large corruption",
              decays("CNN", "full")),
        Claim("L4", "FC: CDT(.4) is worse than decay NINR on clean data", cost_of_corruption("FC")),
        Claim("L4 CNN", "CNN: CDT(.4) is worse than decay NINR on clean data",
              cost_of_corruption("CNN")),
    ],
    departures=[
        *DEPARTURES,
        "a run that diverged counts as chance, 10 %",
        "the clipped softmax is run for the catapult phases alone, where p_y falls below its 1e-7",
    ],
    needs=("fashion-mnist",),
    cost={"smoke": 0.2, "quick": 7, "paper": 6000},
)  # fmt: skip
