"""One number for robustness: λ_max of the local Hessian.   After Levi et al. 2022, §2.1

A corrupted image x + δ costs ½ δᵀ H δ, with H the local Hessian at the image, so a net with a small
λ_max should keep its accuracy under corruption, whatever made λ_max small: noise nodes, dropout, L2
or training on corrupted images. Here are all methods of Levi's Fig. 2, FC and CNN: λ_max on 512
(CNN: 64) training images at the end of training against the accuracy at s = .5 … .8, a dot for each
net, and the line of least squares through the methods' means. What is far from its line has a
robustness that λ_max does not tell.
"""

import numpy as np
from scipy import stats

from dither.lab import Array, Claim, Figure, Run, Table, Verdict
from dither.lab.rule import above, decide, not_above
from dither.papers import style
from dither.papers.ends import diverged
from dither.papers.levi2022.methods import (
    COLOURS,
    DEPARTURES,
    METHODS,
    SEEDS,
    SEEN,
    Kind,
    Setting,
    compared,
    in_phase,
    large,
    unlearnt,
)

MONOTONE = 0.6  # of Spearman's correlation, sign turned
TOLD = 0.5  # of the variance of the methods' accuracy
OFF = 0.02  # of accuracy: what dropout may be off the others' line
TOP = "top at input"


def runs(fc: Setting, cnn: Setting) -> dict[str, Run]:
    by_label = compared(fc) | (compared(cnn) if cnn.local is not None else {})
    return {label: run for label, run in by_label.items() if label in names("FC") + names("CNN")}


def names(net: Kind) -> list[str]:
    """A net's runs, one for each method."""
    return [in_phase(net, m) for m in METHODS]


def method(label: str) -> str:
    return label.split(" ", 1)[1].removesuffix(", scan")


def points(t: Table, net: Kind) -> tuple[list[str], Array, Array]:
    """(labels, ln λ_max [S, methods], accuracy at large corruption [S, methods]) of what learnt."""
    labels = [b for b in names(net) if b in t.there and not diverged(t, b).any()]
    top = np.stack([np.log(t.last(b, TOP)) for b in labels], 1)
    return labels, top, np.stack([large(t, b) for b in labels], 1)


def unfit(t: Table, net: Kind) -> str:
    """Why a net can't be judged; "" if it can."""
    if not {*names(net)} & {*t.known}:
        return f"{net} is not trained at this scale"
    if absent := [b for b in names(net) if b not in t.there]:
        return f"not among these runs: {', '.join(absent)}"
    labels = points(t, net)[0]
    return unlearnt(t, labels) or ("" if len(labels) > 4 else "fewer than five methods trained")


def monotone(net: Kind):
    """Over the methods, accuracy falls as λ_max grows: Spearman's correlation in each seed."""

    def check(t: Table) -> Verdict:
        if why := unfit(t, net):
            return None, {"why": why}
        _, top, accuracy = points(t, net)
        rho = [
            -np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1]
            for a, b in zip(top, accuracy, strict=True)
        ]
        return decide(above("− Spearman's correlation", rho, by=MONOTONE))

    return check


def told(net: Kind):
    """A line in ln λ_max explains more than half of the variance of the accuracy."""

    def check(t: Table) -> Verdict:
        if why := unfit(t, net):
            return None, {"why": why}
        labels, top, accuracy = points(t, net)
        part = [np.corrcoef(a, b)[0, 1] ** 2 for a, b in zip(top, accuracy, strict=True)]
        away = residuals(top, accuracy)
        numbers = {f"off the line, {method(b)}": away[:, i] for i, b in enumerate(labels)}
        return decide(above("share of variance", part, by=TOLD), numbers=numbers)

    return check


def residuals(top: Array, accuracy: Array, leave: int | None = None) -> Array:
    """Accuracy minus the line of each seed, [S, methods]; the line leaves out method `leave`."""
    kept = [i for i in range(top.shape[1]) if i != leave]
    away = []
    for a, b in zip(top, accuracy, strict=True):
        slope, at = np.polyfit(a[kept], b[kept], 1)
        away.append(b - (slope * a + at))
    return np.array(away)


def dropout_on_it(net: Kind):
    """Dropout is not more than 2 points above the line of the other methods."""

    def check(t: Table) -> Verdict:
        if why := unfit(t, net):
            return None, {"why": why}
        labels, top, accuracy = points(t, net)
        if "dropout" not in (of := [method(b) for b in labels]):
            return None, {"why": "dropout diverged"}
        i = of.index("dropout")
        mine, others = top[:, i].mean(), np.delete(top, i, 1).mean(0)
        inside = others.min() <= mine <= others.max()
        why = "" if inside else "dropout's λ_max is beyond the others': their line ends before it"
        away = residuals(top, accuracy, leave=i)[:, i]
        return decide(not_above("dropout above the others' line", away, within=OFF), unless=why)

    return check


def plot(t: Table):
    nets: list[Kind] = [net for net in ("FC", "CNN") if any(b in t.there for b in names(net))]
    picture, axes = style.grid(1, len(nets), height=4.0)
    for ax, net in zip(axes[0], nets, strict=True):
        labels, top, accuracy = points(t, net)
        for i, label in enumerate(labels):
            m = method(label)
            mark = "^" if m == "CDT .2" else "o"
            ax.plot(np.exp(top[:, i]), accuracy[:, i], mark, color=COLOURS[m], ms=5, label=m)
        if len(labels) > 1:
            slope, at = np.polyfit(top.mean(0), accuracy.mean(0), 1)
            ends = np.array([top.min(), top.max()])
            ax.plot(np.exp(ends), slope * ends + at, color=style.GREY, lw=1)
        ax.set(xlabel="λ$_{max}$ of the local Hessian at the image", title=net)
        style.logarithmic(ax)
    axes[0, 0].set_ylabel("accuracy at s = .5 … .8")
    handles, said = axes[0, 0].get_legend_handles_labels()
    style.legend(picture, handles=handles, labels=said, loc="outside upper center", ncols=5)
    return picture


def of_net(net: Kind) -> list[Claim]:
    tail = "" if net == "FC" else f" {net}"
    return [
        Claim(f"H1{tail}", f"{net}: over the methods, accuracy under corruption falls as λ_max "
              "grows (Spearman's correlation below −.6 in the mean over seeds)", monotone(net)),
        Claim(f"H2{tail}", f"{net}: a line in ln λ_max tells more than half of the variance of the "
              "methods' accuracy", told(net)),
        Claim(f"H3{tail}", f"{net}: dropout is not more than 2 points above the line of the others",
              dropout_on_it(net)),
    ]  # fmt: skip


figure = Figure(
    runs,
    plot,
    **SEEN,
    claims=[*of_net("FC"), *of_net("CNN")],
    departures=[
        *DEPARTURES,
        "no paper has this figure; a lead was one seed of each method, in which dropout was off "
        "the line; the bounds were written before the other runs",
        "λ_max is of the Gauss–Newton part, which is all of it in a ReLU net away from kinks; of "
        "the CNN's ELU it is a part",
        "changed after first results: nothing is judged with a method missing, and H3 not where "
        "dropout's λ_max is beyond all others', since a line says nothing past its ends",
        "quick: λ_max on 128 training images, without the CNN",
    ],
    seeds=SEEDS,
    needs=("fashion-mnist",),
    cost={"smoke": 0.1, "quick": 1.7, "decisive": 300, "paper": 6000},
)
