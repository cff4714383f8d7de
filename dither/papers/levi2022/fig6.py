"""Robustness against adversarial attacks.   Levi et al. 2022, Fig. 6, App. C.1

Test accuracy of the nets of Fig. 2 under FGSM, x → clip(x + δ sign ∇ℓ) (eq. 17), and PGD (10 steps
of δ/4, projected), against δ in units of a pixel in [0, 1]; noise off. A net whose loss has no
gradient at an image leaves an attack nowhere to go, and looks robust (masking): the bars show the
share of such images, and the fainter lines the same attacks on the margin max_{j≠y} z_j − z_y,
which can't saturate. The in-node in catapult has the σ that lies in its phase (Fig. 2). The paper's
claims are judged as it attacked, on the loss, and once more on
the margin.
"""

from collections.abc import Collection, Iterable

import numpy as np

from dither.lab import Array, Claim, Figure, Run, Table, Verdict
from dither.lab.rule import above, decide, not_above
from dither.papers import style
from dither.papers.ends import CHANCE, POINT, end
from dither.papers.levi2022.looks import STRENGTHS, attacked
from dither.papers.levi2022.methods import (
    AT_SCALE,
    BASELINES,
    COLOURS,
    DEPARTURES,
    NINR,
    RULED,
    SEEDS,
    Kind,
    Setting,
    compared,
    in_phase,
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
        accuracy = [end(t, label, attacked(method, target, e), CHANCE) for e in STRENGTHS]
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


def judged(net: Kind, methods: Iterable[str] = SHOWN) -> dict[str, str]:
    """{method: the label of its run}, with the σ that lies in the method's phase."""
    return {m: in_phase(net, m) for m in methods}


def unjudged(t: Table, labels: Collection[str]) -> str:
    """Why these runs can't be judged; "" if they can."""
    n = images(t, labels)
    if n < LEAST:
        return f"{n} test images were attacked; it takes {LEAST} to tell single points apart"
    return unlearnt(t, labels)


def best_of(values: dict[str, Array]) -> Array:
    """For each seed, the value of the method with the best mean over the other seeds, [S]."""
    table = np.stack(list(values.values()))  # [M, S]
    others = table.sum(1, keepdims=True) - table
    return np.take_along_axis(table, others.argmax(0)[None], 0)[0]


def first(net: Kind, method: str, ours: tuple[str, ...], target: str = "loss"):
    """The best of our methods is above each other method. The other seeds choose the best."""

    def check(t: Table) -> Verdict:
        value, labels = mean_under(method, target), judged(net)
        seen = {m: value(t, label) for m, label in labels.items()}
        top = best_of({m: seen[m] for m in ours})
        name = ours[0] if len(ours) == 1 else "the best NINR"
        asked = [above(f"{name} − {m}", top, seen[m], by=POINT) for m in SHOWN if m not in ours]
        numbers = shown(t, labels.values(), value)
        return decide(*asked, unless=unjudged(t, labels.values()), numbers=numbers)

    return check


def above_plain(net: Kind):
    """L15: each decay node is above L2 and none, under both attacks."""

    def check(t: Table) -> Verdict:
        labels = judged(net, (*DECAYS, "L2", "none"))
        seen = {
            (attack, m): mean_under(attack)(t, label)
            for attack in ("fgsm", "pgd")
            for m, label in labels.items()
        }
        asked = [
            above(f"{attack}: {m} − {other}", seen[attack, m], seen[attack, other], by=POINT)
            for attack in ("fgsm", "pgd")
            for m in DECAYS
            for other in ("L2", "none")
        ]
        numbers = {f"{attack}: {m}": v for (attack, m), v in seen.items()}
        return decide(*asked, unless=unjudged(t, labels.values()), numbers=numbers)

    return check


def masked(net: Kind):
    """Ours: the share of vanishing gradients, and the accuracy under an attack on the margin."""

    def check(t: Table) -> Verdict:
        labels = judged(net)
        share = {f"{m}: no gradient": end(t, name, "vanishing", 1.0) for m, name in labels.items()}
        loss, margin = mean_under("fgsm"), mean_under("fgsm", "margin")
        asked = [
            not_above(f"{m}: FGSM, loss − margin", loss(t, name), margin(t, name), within=MASKED)
            for m, name in labels.items()
        ]
        return decide(*asked, unless=unjudged(t, labels.values()), numbers=share)

    return check


def plot(t: Table):
    """FC left, CNN right, as in the paper. A net without all of its runs has no panel."""
    nets: tuple[Kind, ...] = ("FC", "CNN")
    there: list[Kind] = [net for net in nets if set(judged(net).values()) <= set(t.there)]
    style.some(there)
    picture, axes = style.grid(3, len(there), height=2.9)
    for column, net in zip(axes.T, there, strict=True):
        labels = {label: m for m, label in judged(net).items()}
        for ax, method in zip(column, ("fgsm", "pgd"), strict=False):
            lines(ax, t, labels, STRENGTHS, under(method))
            for label, m in labels.items():
                faint = under(method, "margin")(t, label).mean(0)
                ax.plot(STRENGTHS, faint, color=COLOURS[m], lw=0.8, alpha=0.6)
            ax.set(xlabel="strength δ, in pixels", title=f"{net}, {method.upper()}")
        shares = np.stack([end(t, label, "vanishing", 1.0) for label in labels], 1)
        bars = column[2]
        bars.bar(range(len(labels)), shares.mean(0), color=[COLOURS[m] for m in labels.values()])
        for i, share in enumerate(shares.mean(0)):
            bars.text(i, share + 0.02, f"{share:.0%}", ha="center", fontsize=9)
        bars.set(ylim=(0, 1.1), title=f"{net}, images without a gradient", xticks=[])
    for ax in axes[:2, 0]:
        ax.set_ylabel("test accuracy")
    axes[2, 0].set_ylabel("share")
    handles, names = axes[0, 0].get_legend_handles_labels()
    style.legend(picture, handles=handles, labels=names, loc="outside upper center", ncols=4)
    return picture


def for_each(net: Kind, tail: str) -> list[Claim]:
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
        "changed after first results: the in-node in catapult is judged at the σ of the scan where "
        "the paper's diverges, as in L1, and L15 asks only the methods it names to have learnt",
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
