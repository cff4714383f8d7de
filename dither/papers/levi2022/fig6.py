"""Robustness against adversarial attacks.   Levi et al. 2022, Fig. 6, App. C.1

Test accuracy of the nets of Fig. 2 under FGSM, x → clip(x + δ sign ∇ℓ) (eq. 17), and PGD (10 steps
of δ/4, projected), against δ in units of a pixel in [0, 1]; noise off. A net whose loss has no
gradient at an image leaves an attack nowhere to go, and looks robust (masking): the bars show the
share of such images, and the fainter lines the same attacks on the margin max_{j≠y} z_j − z_y,
which can't saturate. The paper's claims are judged as it attacked, on the loss, and once more on
the margin.
"""

from collections.abc import Iterable

import numpy as np

from dither.lab import Array, Claim, Figure, Run, Table, Verdict
from dither.lab.rule import above, decide, not_above
from dither.papers import style
from dither.papers.levi2022.looks import STRENGTHS, attacked
from dither.papers.levi2022.methods import (
    AT_SCALE,
    BASELINES,
    COLOURS,
    DEPARTURES,
    NINR,
    POINT,
    RULED,
    SEEDS,
    Setting,
    compared,
    final,
    lines,
    shown,
    unlearnt,
)

SHOWN = (*BASELINES, *NINR)
DECAYS = ("in decay", "full decay")
LEAST = 1000  # attacked images below which nothing is judged
MASKED = 0.05  # of accuracy


def runs(fc: Setting, cnn: Setting) -> dict[str, Run]:
    return compared(fc, SHOWN) | compared(cnn, SHOWN)


def under(method: str, target: str = "loss"):
    """Accuracy against the strength, [S, T]."""

    def read(t: Table, label: str) -> Array:
        accuracy = [final(t, label, attacked(method, target, e)) for e in STRENGTHS]
        return np.stack(accuracy, 1)

    return read


def mean_under(method: str, target: str = "loss"):
    """The mean over all strengths except 0, [S]."""
    return lambda t, label: under(method, target)(t, label)[:, 1:].mean(1)


def images(t: Table, labels: Iterable[str]) -> int:
    """A lower bound of the number of attacked images: the smallest n for which all shares are whole
    multiples of 1/n; at most `LEAST`.
    """
    seen = [under(m, target)(t, label).ravel() for label in labels for m in ("fgsm", "pgd")
            for target in ("loss", "margin")]  # fmt: skip
    shares = np.unique(np.concatenate(seen))
    n = np.arange(1, LEAST + 1)[:, None]
    whole = (np.abs(n * shares - np.round(n * shares)) < 1e-3).all(1)
    return int(whole.argmax()) + 1 if whole.any() else LEAST


def unjudged(t: Table, net: str) -> str:
    """Why a net can't be judged; "" if it can."""
    labels = [f"{net} {m}" for m in SHOWN]
    n = images(t, labels)
    if n < LEAST:
        return f"{n} test images were attacked; it takes {LEAST} to tell single points apart"
    return unlearnt(t, labels)


def best_of(values: dict[str, Array]) -> Array:
    """For each seed, the value of the method with the best mean over the other seeds, [S]."""
    table = np.stack(list(values.values()))  # [M, S]
    others = table.sum(1, keepdims=True) - table
    return np.take_along_axis(table, others.argmax(0)[None], 0)[0]


def first(net: str, method: str, ours: tuple[str, ...], target: str = "loss"):
    """The best of our methods is above each other method. The other seeds choose the best."""

    def check(t: Table) -> Verdict:
        value = mean_under(method, target)
        seen = {m: value(t, f"{net} {m}") for m in SHOWN}
        top = best_of({m: seen[m] for m in ours})
        name = ours[0] if len(ours) == 1 else "the best NINR"
        asked = [above(f"{name} − {m}", top, seen[m], by=POINT) for m in SHOWN if m not in ours]
        numbers = shown(t, [f"{net} {m}" for m in SHOWN], value)
        return decide(*asked, unless=unjudged(t, net), numbers=numbers)

    return check


def above_plain(net: str):
    """L15: each decay node is above L2 and none, under both attacks."""

    def check(t: Table) -> Verdict:
        seen = {(a, m): mean_under(a)(t, f"{net} {m}") for a in ("fgsm", "pgd") for m in SHOWN}
        asked = [
            above(f"{attack}: {m} − {other}", seen[attack, m], seen[attack, other], by=POINT)
            for attack in ("fgsm", "pgd")
            for m in DECAYS
            for other in ("L2", "none")
        ]
        numbers = {f"{attack}: {m}": v for (attack, m), v in seen.items()}
        return decide(*asked, unless=unjudged(t, net), numbers=numbers)

    return check


def masked(net: str):
    """Ours: the share of vanishing gradients, and the accuracy under an attack on the margin."""

    def check(t: Table) -> Verdict:
        share = {f"{m}: no gradient": final(t, f"{net} {m}", "vanishing", 1.0) for m in SHOWN}
        loss, margin = mean_under("fgsm"), mean_under("fgsm", "margin")
        asked = [
            not_above(f"{m}: FGSM, loss − margin", loss(t, f"{net} {m}"), margin(t, f"{net} {m}"),
                      within=MASKED)
            for m in SHOWN
        ]  # fmt: skip
        return decide(*asked, unless=unjudged(t, net), numbers=share)

    return check


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
        Claim(f"L13{tail}", f"{net}, FGSM: dropout is above each other method, by more than 1 "
              "point", first(net, "fgsm", ("dropout",))),
        Claim(f"L14{tail}", f"{net}, PGD: the best NINR is above L2, dropout and none, by more "
              "than 1 point", first(net, "pgd", NINR)),
        Claim(f"L15{tail}", f"{net}: decay NINR, in and full, is above L2 and none under both, "
              "by more than 1 point", above_plain(net)),
        Claim(f"L13 margin{tail}", f"{net}, FGSM on the margin: dropout is above each other",
              first(net, "fgsm", ("dropout",), "margin")),
        Claim(f"L14 margin{tail}", f"{net}, PGD on the margin: the best NINR is above the others",
              first(net, "pgd", NINR, "margin")),
        Claim(f"L13 ours{tail}", f"{net}: nobody is robust by masking (FGSM on the loss leaves "
              "less than 5 points more than on the margin)", masked(net)),
    ]  # fmt: skip


figure = Figure(
    runs,
    plot,
    **AT_SCALE,
    claims=[*for_each("FC", ""), *for_each("CNN", " CNN")],
    departures=[
        *DEPARTURES,
        RULED,
        "changed after first results: fewer than 1 000 attacked images are not judged (had been "
        "any number), and the best NINR of a seed is chosen on the other seeds",
        "the paper names no strengths, steps or step sizes: δ of 0.02, 0.05 and 0.1 of a pixel's "
        "range, 10 steps of δ/4; 'best' is judged on the mean over the three",
        "a run that diverged counts as chance, 10 %, and as without gradients",
        "paper: the first 1 000 test images are attacked",
        "quick: the first 50 (FC) and 20 (CNN) test images are attacked",
    ],
    seeds=SEEDS,
    needs=("fashion-mnist",),
    cost={
        "smoke": 0.2,
        "quick": 3.8,
        "decisive": 420,
        "paper": 6000,
    },  # alone; after fig2 its runs are there
)
