"""Noise in proportion to the activations, which the paper leaves aside: its eq. 6, and dropout.

What Fig. 2 looks at, with h∘(1 + σ ε) in place of h + σ ε on the six layers of 256. The regulariser
weighs each gradient with its activation,

    R = ½ σ² E_batch Σ_k Σ_c ‖g_kc ∘ h_k‖²

for any law of variance 1: Gaussian ε, or dropout with σ² = p/(1 − p), the two-point case. So both
have one second order and differ only in what comes after it. From the left: R against E[C]/R, the
noise's cost beyond R, at initialisation, and |E[C]|/R in the first 100 steps of SGD with the noise
on, with Gaussian ε, then with dropout, at σ² = .1, .25, 1 (p = .5) and 4 (p = .8); right, E[C]/R as
σ → 0 (dashed: the rest of the second order).

For L sites a signal's square grows by (1 + σ²)^L, of which R has 1 + Lσ²: for six sites at σ² = 1
that is 64 and 7. The cross-entropy, which grows like the signal and not its square, tempers it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dither.lab import Claim, Figure, Run, Table, Task, Verdict
from dither.lab.rule import decide, near
from dither.papers import style
from dither.papers.camuto2020 import fig2
from dither.papers.camuto2020.fig2 import COLOURS, SMALL, TOLD, VARIANCES
from dither.papers.camuto2020.remainders import (
    at_initialisation,
    at_start,
    drawn,
    present,
    training,
    where_run,
)

LAWS = ("multiplicative", "dropout")
MEANING = {"multiplicative": "Gaussian", "dropout": "dropout"}
FIRST = f", {MEANING[LAWS[0]]}"  # what the labels of the first law have after a problem's name
SETS = ("Boston, sigmoid", "Fashion-MNIST, ELU", "CIFAR-10, ELU")
EARLY = 100  # Fig. 2's first steps
SHORT = f"the networks were looked at for fewer than {EARLY} steps"


def runs(nets: int, draws: int, width: int, **common: Any) -> dict[str, Run | Task]:
    by_label: dict[str, Run | Task] = {}
    for problem in (p for p in present() if p in SETS):
        for of in LAWS:
            by_label[f"{name(problem, of)} start"] = Task.of(
                at_initialisation, problem=problem, nets=nets, draws=draws, width=width,
                variances=(*SMALL, *VARIANCES), of=of,
            )  # fmt: skip
            for v in VARIANCES:
                by_label[f"{name(problem, of)} σ²={v:g}"] = training(
                    problem, v, fig2.RATE, of=of, width=width, draws=draws, **common
                )
    return by_label


# ------------------------------------------------------------------------------ reading a table


def name(problem: str, of: str) -> str:
    """The label of a law's runs on a problem, without "start" or "σ²=0.1"."""
    return f"{problem}, {MEANING[of]}"


def of_both(check: Any) -> Any:
    """A check of Fig. 2, for both laws."""

    def said(t: Table, problem: str) -> Verdict:
        asked, numbers = [], {}
        for law in LAWS:
            comparisons, more = check(t, name(problem, law))
            asked += [replace(c, name=f"{MEANING[law]}: {c.name}") for c in comparisons]
            numbers |= {f"{MEANING[law]}: {k}": v for k, v in more.items()}
        return decide(*asked, numbers=numbers)

    return said


def first_steps(t: Table, problem: str) -> Verdict:
    """The check of C3."""
    labels = [f"{name(problem, of)} σ²={v:g}" for of in LAWS for v in VARIANCES]
    if t.series(labels[0], "C")[0].max() < EARLY:
        return None, {"why": SHORT}
    asked, numbers = fig2.early(t, labels)
    return decide(*asked, numbers=numbers)


def part(t: Table, problem: str) -> Verdict:
    """At p = .5 E[C]/R of dropout differs from the Gaussian's by more than 2 % of R."""
    a, b = (at_start(t, name(problem, of), 1.0) for of in LAWS)
    gap = (b["C"] - a["C"]) / a["R"]
    numbers: dict[str, Any] = {
        f"E[C]/R, {MEANING[of]}": (c["C"] / c["R"]).mean()
        for of, c in zip(LAWS, (a, b), strict=True)
    }
    same, shown = decide(near("dropout − Gaussian, over R", gap, within=TOLD), numbers=numbers)
    return None if same is None else not same, shown


# -------------------------------------------------------------------------------------- picture


def scatter(ax: Any, t: Table, problem: str, of: str) -> None:
    for v, colour in COLOURS.items():
        a = at_start(t, name(problem, of), v)
        ax.plot(a["C"] / a["R"], a["R"], "o", ms=4, color=colour, alpha=0.7, label=f"σ² = {v:g}")
    for edge, dash in ((0, "-"), (1, ":"), (-1, ":")):
        ax.axvline(edge, color=style.RED if edge else style.GREY, ls=dash, lw=1)
    ax.set(yscale="log", xlabel="E[C]/R", ylabel="R", title=name(problem, of))
    by_parts(ax.set_xscale, ax.set_xticks)


def small_sigma(ax: Any, t: Table, problem: str) -> None:
    variances = (*SMALL, *VARIANCES)
    for of, colour, shift in zip(LAWS, (style.BLUE, style.GREEN), (0.93, 1.07), strict=True):
        both = [at_start(t, name(problem, of), v) for v in variances]
        ratio = np.stack([a["C"] / a["R"] for a in both], 1)
        style.dots(ax, shift * np.array(variances), ratio, colour, label=MEANING[of])
    line = (both[0]["residual"] / both[0]["R"]).mean()
    ax.axhline(line, color=style.RED, ls="--", lw=1.2, label="second order, of which R is 1")
    ax.axhline(0, color=style.GREY, lw=0.6)
    ax.set(xscale="log", xlabel="σ²", ylabel="E[C]/R", title="as σ → 0")
    by_parts(ax.set_yscale, ax.set_yticks)


def by_parts(scale: Any, ticks: Any) -> None:
    """An axis that is linear up to ±1 and logarithmic beyond."""
    scale("symlog", linthresh=1)
    ticks([-1, 0, 1, 10, 100], ["−1", "0", "1", "10", "100"])


def plot(t: Table) -> Any:
    shown = drawn(t, FIRST)
    picture, axes = style.grid(len(shown), 5, width=15, height=3.1)
    for row, problem in zip(axes, shown, strict=True):
        for of, (left, right) in zip(LAWS, (row[:2], row[2:4]), strict=True):
            style.panel(left, scatter, t, problem, of)
            style.panel(right, fig2.first_steps, t, name(problem, of), log=True)
        style.panel(row[4], small_sigma, t, problem)
    style.legend(axes[0, 0], fontsize=8)
    style.legend(axes[0, 4], fontsize=8)
    return picture


CHECKS: Mapping[str, tuple[str, Any]] = {
    "M1": ("at initialisation R > |E[C]|, with both laws", of_both(fig2.dominates)),
    "M2": (
        "as σ → 0, E[C] is the residual part of the second order, and not small, of both laws",
        of_both(fig2.second),
    ),
    "M7": ("in the first 100 steps the mean over networks of |E[C]|/R is below 1", first_steps),
    "M3": (
        "past the second order they differ: dropout's E[C] at p = .5 is more than 2 % of R from "
        "the Gaussian's",
        part,
    ),
}
figure = Figure(
    runs,
    plot,
    smoke=fig2.AT_SCALE["smoke"],
    quick=fig2.AT_SCALE["quick"],
    paper=fig2.AT_SCALE["paper"],
    claims=[
        Claim(f"{id} {set_}", f"{set_}: {text}", where_run(f"{set_}, {net}", check, FIRST))
        for set_, net in (problem.split(", ") for problem in SETS)
        for id, (text, check) in CHECKS.items()
    ],
    departures=[
        "no figure of the paper: eq. 6 is in its text alone, and dropout in its related work; the "
        "claims are written as those of Fig. 2",
        "CIFAR-10 is run where its files are on the machine; Fashion-MNIST is ours",
        "changed after first results: each set is judged by itself, and Boston was added",
        "quick: 20 networks of width 128, 100 draws; M7 at steps 0, 50 and 100 of 5 networks, "
        "batches of 64 (of 6 000 images)",
    ],
    seeds={"smoke": 2, "quick": 5, "paper": 10},
    needs=("boston", "fashion-mnist"),
    cost={"smoke": 0.2, "quick": 3.2, "paper": 240},
)
