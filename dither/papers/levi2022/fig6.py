"""Robustness against adversarial attacks.   Levi et al. 2022, Fig. 6, App. C.1

Test accuracy of the nets of Fig. 2 under FGSM, x → clip(x + δ sign ∇ℓ) (eq. 17), and PGD (10 steps
of δ/4, projected), against δ in units of a pixel in [0, 1]; noise off; ± 2 standard deviations over
seeds. A net whose loss has no gradient at an image leaves an attack nowhere to go, and looks robust
(masking): the bars show the share of such images, and the fainter lines the same attacks on the
margin max_{j≠y} z_j − z_y, which can't saturate. The paper's claims are judged as it attacked, on
the loss, and once more on the margin.
"""

import numpy as np

from dither.lab import Array, Claim, Figure, Run, Table
from dither.papers import style
from dither.papers.levi2022.looks import STRENGTHS, attacked
from dither.papers.levi2022.methods import (
    BASELINES,
    COLOURS,
    DEPARTURES,
    NINR,
    SCALES,
    Setting,
    at_least,
    compared,
    final,
    judged,
    lines,
)

SHOWN = (*BASELINES, *NINR)
DECAYS = ("in decay", "full decay")


def runs(fc: Setting, cnn: Setting) -> dict[str, Run]:
    return compared(fc, SHOWN) | compared(cnn, SHOWN)


def under(method: str, target: str = "loss"):
    """Accuracy against the strength, [S, T]."""

    def read(t: Table, label: str) -> Array:
        found = [final(t, label, attacked(method, target, e)) for e in STRENGTHS]
        return np.stack(found, 1)

    return read


def mean_under(method: str, target: str = "loss"):
    """The mean over all strengths but 0, [S]."""
    return lambda t, label: under(method, target)(t, label)[:, 1:].mean(1)


def first(net: str, method: str, ours: tuple[str, ...], target: str = "loss"):
    """Whether the best of ours is above all others."""

    def check(t: Table):
        value = mean_under(method, target)
        best = max(ours, key=lambda m: value(t, f"{net} {m}").mean())
        others = [f"{net} {m}" for m in SHOWN if m not in ours]
        return at_least(t, [f"{net} {best}"], others, value)

    return judged(net, check)


def above_plain(net: str):
    """L15: each decay node above L2 and none, under both attacks."""

    def check(t: Table):
        numbers, holds = {}, []
        for method in ("fgsm", "pgd"):
            ours, others = ([f"{net} {m}" for m in ms] for ms in (DECAYS, ("L2", "none")))
            held, seen = at_least(t, ours, others, mean_under(method))
            holds.append(held)
            numbers |= {f"{method}: {label}": v for label, v in seen.items()}
        return all(holds), numbers

    return judged(net, check)


def masked(net: str):
    """Ours: how often the gradient vanishes, and what an attack on the margin leaves."""

    def check(t: Table):
        share = {f"{m}: no gradient": final(t, f"{net} {m}", "vanishing", 1.0) for m in SHOWN}
        gap = {
            f"{m}: FGSM, loss − margin": mean_under("fgsm")(t, f"{net} {m}")
            - mean_under("fgsm", "margin")(t, f"{net} {m}")
            for m in SHOWN
        }
        worst = max(v.mean() for v in gap.values())
        return bool(worst < 0.05), share | gap

    return judged(net, check)


def plot(t: Table):
    picture, axes = style.grid(3, 2, height=2.9)
    for row, method in zip(axes, ("fgsm", "pgd"), strict=False):
        for ax, net in zip(row, ("FC", "CNN"), strict=True):
            labels = {f"{net} {m}": m for m in SHOWN}
            lines(ax, t, labels, STRENGTHS, under(method))
            for label, m in labels.items():
                faint = under(method, "margin")(t, label).mean(0)
                ax.plot(STRENGTHS, faint, color=COLOURS[m], lw=0.8, alpha=0.6)
            if (scan := f"{net} in catapult, scan") in t.there:
                seen = under(method)(t, scan).mean(0)
                ax.plot(STRENGTHS, seen, ":", color=style.BLUE, lw=2.2, label="σ of the scan")
            ax.set(xlabel="strength δ, in pixels", title=f"{net}, {method.upper()}")
    for ax, net in zip(axes[2], ("FC", "CNN"), strict=True):
        shares = np.stack([final(t, f"{net} {m}", "vanishing", 1.0) for m in SHOWN], 1)
        ax.bar(range(len(SHOWN)), shares.mean(0), color=[COLOURS[m] for m in SHOWN])
        for i, share in enumerate(shares.mean(0)):
            ax.text(i, share + 0.02, f"{share:.0%}", ha="center", fontsize=9)
        ax.set(ylim=(0, 1.1), title=f"{net}, images without a gradient", xticks=[])
    for ax in axes[:2, 0]:
        ax.set_ylabel("test accuracy")
    axes[2, 0].set_ylabel("share")
    handles, names = axes[0, 0].get_legend_handles_labels()
    style.legend(picture, handles=handles, labels=names, loc="outside upper center", ncols=4)
    return picture


def for_each(net: str, tail: str) -> list[Claim]:
    return [
        Claim(f"L13{tail}", f"{net}, FGSM: dropout best", first(net, "fgsm", ("dropout",))),
        Claim(f"L14{tail}", f"{net}, PGD: NINR best", first(net, "pgd", NINR)),
        Claim(f"L15{tail}", f"{net}: decay NINR above L2 and none under both", above_plain(net)),
        Claim(f"L13 margin{tail}", f"{net}, FGSM on the margin: dropout best",
              first(net, "fgsm", ("dropout",), "margin")),
        Claim(f"L14 margin{tail}", f"{net}, PGD on the margin: NINR best",
              first(net, "pgd", NINR, "margin")),
        Claim(f"L13 ours{tail}", f"{net}: nobody is robust by masking (FGSM on the loss leaves "
              "less than 5 points more than on the margin)", masked(net)),
    ]  # fmt: skip


figure = Figure(
    runs,
    plot,
    smoke=SCALES["smoke"],
    quick=SCALES["quick"],
    paper=SCALES["paper"],
    claims=[*for_each("FC", ""), *for_each("CNN", " CNN")],
    departures=[
        *DEPARTURES,
        "the paper names no strengths, steps or step sizes: δ of 0.02, 0.05 and 0.1 of a pixel's "
        "range, 10 steps of δ/4; 'best' is judged on the mean over the three",
        "a run that diverged counts as chance, 10 %, and as without gradients",
        "paper: the first 1 000 test images are attacked",
        "quick: the first 200 (FC) and 60 (CNN) test images are attacked",
    ],
    needs=("fashion-mnist",),
    cost={"smoke": 0.2, "quick": 7, "paper": 6000},  # alone; after fig2 its runs are there
)
