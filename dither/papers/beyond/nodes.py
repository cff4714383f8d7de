"""Noise nodes, further: does the catapult's robustness come cheaper?

Levi et al. 2022 leave open schedules of σ, several nodes per layer, a learning rate that rises
after the catapult, and other nets. FC nets of their Fig. 2 with one input node at σ = 125 (well
into the catapult phase), and with σ falling to 0, σ rising to 125, a σ just below the edge of the
phase (60), four nodes of half the σ, and η doubled after a fifth of the steps. Then a residual net
and a transformer block that reads an image's rows, with nodes at half of 2/(η λ_max)'s σ, told from
the untrained nets by `dither.measures.phases.predict`.

Top: accuracy against the corruption s of Levi's eq. 8, and the node's norm over training. Below:
the same for the plain and the noisy residual net and transformer block, and what robustness costs
on clean images.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from dither.lab import Accuracy, Array, Claim, Figure, NodeNorms, Objective, Run, Table, Verdict
from dither.lab.rule import Comparison, above, below, decide, not_above, not_below
from dither.noise import Node
from dither.papers import style
from dither.papers.beyond.nets import Residual, Rows
from dither.papers.ends import POINT, diverged, end
from dither.papers.levi2022.looks import LEVELS, Corrupted
from dither.papers.levi2022.methods import (
    AT_SCALE,
    BATCH,
    LR,
    RULED,
    SCAN,
    Setting,
    curve,
    large,
    run,
    shown,
    unlearnt,
)
from dither.schedule import Cosine, Linear

CATAPULT, EDGE = SCAN["FC"]["in catapult"], 60.0
NODE = "node/fc0:out"
POINTS = 0.03  # of accuracy: "as robust" is not this much below
RISE = 0.2  # of the loss over its start: more is a catapult
DECAYED = 0.05  # of a node's norm
# half of the predicted boundary's σ at η = .05, nets of the quick scale (λ = .37, .074; .80, .12)
OTHERS: dict[str, tuple[Any, dict[str, float]]] = {
    "residual": (Residual(), {"embed": 5.2, "blocks.*.up": 11.6}),
    "transformer": (Rows(), {"embed": 3.5, "up": 9.3}),
}
COLOURS = {
    "none": style.BLACK, "constant": style.BLUE, "falls": style.ORANGE, "rises": style.SKY,
    "edge": style.GREEN, "four": style.PURPLE, "η rises": style.RED,
}  # fmt: skip


def runs(fc: Setting, epochs: int) -> dict[str, Run]:
    """The runs. epochs: those of the other nets."""
    n = fc.train or 60_000
    steps = fc.epochs * -(-n // BATCH)
    plain = run(fc, "none", watch=(Corrupted(), Objective(every=1)))
    model = fc.model("in")

    def node(sigma: Any, nodes: int = 1) -> Run:
        return replace(plain, model=model, noise={"fc0": Node(sigma, nodes=nodes)})

    by_label = {
        "FC none": plain,
        "FC constant": node(CATAPULT),
        "FC falls": node(Cosine(CATAPULT, 0.0, max(1, steps // 2))),
        "FC rises": node(Linear(0.0, CATAPULT, max(1, steps // 4))),
        "FC edge": node(EDGE),
        "FC four": node(CATAPULT / 2, nodes=4),
        "FC η rises": replace(node(CATAPULT), schedule="rise"),
    }
    for name, (spec, where) in OTHERS.items():
        watch = (Accuracy("train"), Accuracy("test"), NodeNorms(), Corrupted())
        base = replace(plain, model=spec, epochs=epochs, watch=watch, stop=None)
        by_label[f"{name} none"] = base
        for pattern, sigma in where.items():
            by_label[f"{name} {pattern}"] = replace(base, noise={pattern: Node(sigma)})
    return by_label


def clean(t: Table, label: str) -> Array:
    return end(t, label)


def decided(
    t: Table, labels: list[str], asked: list[Comparison], numbers: dict[str, Any]
) -> Verdict:
    """The verdict, with the accuracy of each run. Every one of them must have learnt."""
    seen = shown(t, labels, large) | {f"clean, {m}": clean(t, m) for m in labels}
    return decide(*asked, unless=unlearnt(t, labels), numbers=seen | numbers)


def robust(t: Table, label: str) -> Comparison:
    """The accuracy at large corruption is above that of constant σ, minus 3 points."""
    constant = large(t, "FC constant")
    return not_below(f"{label} − FC constant", large(t, label), constant, within=POINTS)


def as_robust(label: str):
    """N1, N2, N4."""

    def check(t: Table) -> Verdict:
        return decided(t, [label, "FC constant", "FC none"], [robust(t, label)], {})

    return check


def peak(t: Table, label: str) -> Array:
    """The maximum of the noisy training loss over its start, [S]; inf for seeds that diverged."""
    _, loss = t.series(label, "objective")
    return np.where(diverged(t, label), np.inf, np.nanmax(loss, 1) / loss[:, 0])


def without_catapult(t: Table) -> Verdict:
    """Warm-up of σ: as robust, and the loss rises by less than 20 %."""
    labels = ["FC rises", "FC constant", "FC none"]
    spikes = {f"loss peak/start, {m}": peak(t, m) for m in ("FC constant", "FC edge")}
    calm = not_above("loss peak/start − 1, FC rises", peak(t, "FC rises"), 1, within=RISE)
    return decided(t, labels, [robust(t, "FC rises"), calm], spikes)


def faster(t: Table) -> Verdict:
    """η doubled after a fifth of the steps: a better fit of the training images, as robust."""
    labels = ["FC η rises", "FC constant", "FC none"]
    fit = {m: end(t, m, "accuracy/train") for m in labels}
    better = above(
        "training accuracy: FC η rises − FC constant", fit["FC η rises"], fit["FC constant"],
        by=POINT,
    )  # fmt: skip
    numbers = {f"training accuracy, {m}": v for m, v in fit.items()}
    return decided(t, labels, [robust(t, "FC η rises"), better], numbers)


def node_norm(t: Table, label: str) -> dict[str, Array]:
    return {q: t.last(label, q) / t.first(label, q)
            for q in t.quantities(label) if q.startswith("node/")}  # fmt: skip


def elsewhere(name: str):
    """In another net: corruption costs less accuracy than without a node, and the node decays."""

    def check(t: Table) -> Verdict:
        ours = [f"{name} {pattern}" for pattern in OTHERS[name][1]]
        plain = large(t, f"{name} none")
        gains = [above(f"{m} − none", large(t, m), plain, by=POINT) for m in ours]
        falls = [
            below(f"‖w‖ end/start − 1, {m}, {q}", ratio, 1, by=DECAYED)
            for m in ours for q, ratio in node_norm(t, m).items()
        ]  # fmt: skip
        return decided(t, [*ours, f"{name} none"], [*gains, *falls], {})

    return check


def plot(t: Table):
    picture, axes = style.grid(2, 2, height=3.8)
    (left, middle), (right, price) = axes
    for name, colour in COLOURS.items():
        label = f"FC {name}"
        style.band(left, LEVELS, curve(t, label), colour, label=name)
        if NODE in t.quantities(label):
            steps, norm = t.series(label, NODE)
            style.band(middle, steps, norm / norm[:, :1], colour, log=True)
        x, y = clean(t, label), large(t, label)
        price.errorbar(
            x.mean(), y.mean(), style.sd(y), style.sd(x), fmt="o", color=colour, capsize=2
        )
    for name, colour in zip(OTHERS, (style.BLUE, style.RED), strict=True):
        style.band(right, LEVELS, curve(t, f"{name} none"), colour, ls="--", label=f"{name}, none")
        for pattern, line in zip(OTHERS[name][1], ("-", ":"), strict=True):
            style.band(
                right, LEVELS, curve(t, f"{name} {pattern}"), colour, ls=line,
                label=f"{name}, {pattern}",
            )  # fmt: skip
    for ax in (left, right):
        ax.set(xlabel="corruption s", ylim=(0, 1))
    left.set(ylabel="test accuracy", title="FC, an input node")
    middle.set(yscale="log", xlabel="step", title="‖w‖ of the node / start")
    middle.set_yticks((0.5, 1, 2), ("0.5", "1", "2"))
    middle.minorticks_off()
    price.set(xlabel="clean accuracy", title="FC: accuracy at s = .5 … .8")
    right.set_ylabel("test accuracy")
    right.set_title("other nets")
    style.legend(left, loc="lower left", fontsize=9)
    style.legend(right, loc="lower left", fontsize=9)
    return picture


figure = Figure(
    runs,
    plot,
    smoke={"fc": AT_SCALE["smoke"]["fc"], "epochs": 1},
    quick={"fc": replace(AT_SCALE["quick"]["fc"], epochs=40), "epochs": 5},
    paper={"fc": AT_SCALE["paper"]["fc"], "epochs": 50},
    claims=[
        Claim("N1", "σ falling to 0 by half of the steps is as robust as constant σ: not 3 points "
              "below at large corruption", as_robust("FC falls")),
        Claim("N2", "so is σ just below the catapult's edge: no catapult is needed",
              as_robust("FC edge")),
        Claim("N3", "so is a warm-up of σ, and the loss rises by less than 20 %", without_catapult),
        Claim("N4", "so are four nodes of half the σ", as_robust("FC four")),
        Claim("N5", "so is doubling η after a fifth of the steps, and it fits the training images "
              "better by more than 1 point", faster),
        Claim("N6", "residual net: nodes decay by more than 5 % and raise the accuracy at large "
              "corruption by more than 1 point", elsewhere("residual")),
        Claim("N7", "transformer block: the same", elsewhere("transformer")),
    ],
    departures=[
        "in none of the papers: there is nothing to depart from",
        "added after first results: N3's bound on the loss, N6's and N7's on the norm",
        RULED,
        "quick: FC of 128³ on 2 000 images, at most 40 epochs; the other nets 5 epochs",
        "a run that diverged counts as chance, 10 %",
    ],
    seeds={"smoke": 2, "quick": 5, "paper": 5},
    needs=("fashion-mnist",),
    cost={"smoke": 0.2, "quick": 1.3, "paper": 400},
)  # fmt: skip
assert LR == 0.05  # what the σ above are for
