"""Figure 2: with 300 hidden units only layer-wise noise reaches the regularised loss' minimum.

Orvieto et al. 2022, Fig. 2, §5.

Φ = W₂W₁Xᵀ with 50 or 300 hidden units and linear activations, 40 points in R¹⁰, the target planted
on 2 of them, rate 0.1. The loss L and the regularised loss L + R (eq. 9) along gradient descent
with noise on all weights, layer-wise noise (√2σ on one of W₁, W₂ at random), without noise, and on
L + R itself. The dashed line is the minimum of L + R, from the convex problem (eq. 10).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import dither
from dither.attach.reading import probing
from dither.lab import SGD, Array, Claim, Data, Figure, LinearNet, Run, State, Table, Verdict
from dither.lab.rule import above as over
from dither.lab.rule import decide, nearer, not_above, not_below
from dither.papers import style
from dither.papers.orvieto2022 import convex

SIGMA, UNITS = 0.1, (50, 300)
DATA = Data("planted", train=40, features=10, planted=2)
GD, FULL, LAYER, ON_R = "GD", "GD + noise", "GD + noise (layer)", "GD on L + R"
COLOURS = {GD: style.BLACK, FULL: style.RED, LAYER: style.BLUE, ON_R: style.GREEN}
NEAR = 0.1  # of the minimum
FLOOR = 0.1  # of the farther distance


@dataclass(frozen=True)
class Regularised:
    """L and R of noise σ on every tensor, by `explicit`: "L", "L + R"."""

    sigma: float
    every: int

    def __call__(self, state: State) -> dict[str, float]:
        x, y = state.examples("train")
        with (
            torch.no_grad(),
            probing(state.model, dither.Weight(self.sigma), seed=0) as noise,
        ):
            loss, R, _ = dither.explicit(noise, x, y, state.run.loss)
        return {"L": loss.item(), "L + R": (loss + R).item()}


def runs(steps: int) -> dict[str, Run]:
    by_label = {}
    for units in UNITS:
        gd = Run(
            data=DATA,
            model=LinearNet((10, units, 1)),
            optimiser=SGD(0.1),
            loss="half_square",
            steps=steps,
            watch=(Regularised(SIGMA, every=max(10, steps // 50)),),
        )
        both = dither.Weight(2**0.5 * SIGMA)
        by_label |= {
            f"{GD}, {units}": gd,
            f"{FULL}, {units}": replace(gd, noise=both, draw="all"),
            f"{LAYER}, {units}": replace(gd, noise=both, draw="random"),
            f"{ON_R}, {units}": replace(gd, noise=both, draw="all", objective="explicit"),
        }
        for method in (FULL, LAYER):
            run = by_label[f"{method}, {units}"]
            by_label[f"{method}, {units}, annealed"] = replace(run, schedule="cosine")
    return by_label


def minima(t: Table) -> Array:
    """The minimum of eq. 10 for each seed."""
    tensors = [DATA.load(seed) for seed in t.seeds]
    return np.array(
        [
            convex.nuclear(d.x_train.double().numpy(), d.y_train.double().numpy(), SIGMA)[1]
            for d in tensors
        ]
    )


def above(t: Table, method: str, units: int | str) -> Array:
    """L + R over its minimum, minus 1: the mean over the last fifth of the run, [S]."""
    values = t.series(f"{method}, {units}", "L + R")[1]
    return values[:, -max(1, values.shape[1] // 5) :].mean(1) / minima(t) - 1


def gaps(t: Table, units: int) -> dict[str, Array]:
    return {method: above(t, method, units) for method in COLOURS}


def late(t: Table, units: int) -> str:
    """Why the claims can't be judged; "" if they can. Descent on L + R must be near its minimum."""
    far = above(t, ON_R, units).mean() > NEAR
    return "GD on L + R itself is not near the minimum yet" if far else ""


def narrow(t: Table) -> Verdict:
    """O10: either noise is nearer to the minimum than GD without noise, by a tenth of GD's gap."""
    seen = gaps(t, 50)
    asked = [nearer(f"{m} nearer than GD", seen[m], seen[GD], by=FLOOR) for m in (FULL, LAYER)]
    return decide(*asked, unless=late(t, 50), numbers=seen)


def wide(t: Table) -> Verdict:
    """O11: layer-wise noise is nearer to the minimum than GD, and full noise is not."""
    seen = gaps(t, 300)
    other = (seen[FULL] - seen[GD]) / seen[GD].mean()
    return decide(
        nearer(f"{LAYER} nearer than GD", seen[LAYER], seen[GD], by=FLOOR),
        not_below(f"{FULL} not nearer than GD", other, within=FLOOR),
        unless=late(t, 300),
        numbers=seen,
    )


def closer(t: Table) -> Verdict:
    """Which of the two noises is nearer to the minimum."""
    seen = gaps(t, 300)
    asked = nearer("layer-wise nearer than full", seen[LAYER], seen[FULL], by=FLOOR)
    return decide(asked, unless=late(t, 300), numbers=seen)


def within(units: int, *methods: str):
    """Within 10 % of the minimum, as the text's words would have it at a rate of 0."""

    def check(t: Table) -> Verdict:
        seen = gaps(t, units)
        asked = [not_above(f"{m}, above the minimum", seen[m], within=NEAR) for m in methods]
        return decide(*asked, unless=late(t, units))

    return check


def floor(t: Table) -> Verdict:
    """The same runs with the rate annealed to 0 (cosine): their distance is not gradient noise."""
    ends = {
        (m, u): t.last(f"{m}, {u}, annealed", "L + R") / minima(t) - 1
        for m in (FULL, LAYER)
        for u in UNITS
    }
    asked = [
        not_above(f"{m}, {u}, annealed", ends[m, u], within=NEAR)
        for m, u in ((FULL, 50), (LAYER, 50), (LAYER, 300))
    ]
    asked.append(over(f"{FULL}, 300, annealed", ends[FULL, 300], by=NEAR))
    return decide(*asked)


def _panels(axes: Any) -> Iterator[tuple[Any, str, int]]:
    for row, quantity in zip(axes, ("L + R", "L"), strict=True):
        for ax, units in zip(row, UNITS, strict=True):
            yield ax, quantity, units


def plot(t: Table):
    picture, axes = style.grid(2, 2, height=3.0)
    for ax, quantity, units in _panels(axes):
        for method, colour in COLOURS.items():
            steps, values = t.series(f"{method}, {units}", quantity)
            style.band(ax, steps, values, colour, log=True, label=method)
        if quantity == "L + R":
            ax.axhline(minima(t).mean(), color=style.GREY, ls="--", lw=1, label="minimum, eq. 10")
            ax.set_title(f"{units} hidden units")
        ax.set(yscale="log", xlabel="step")
    axes[0, 0].set_ylabel("regularised loss L + R")
    axes[1, 0].set_ylabel("loss L")
    style.legend(axes[0, 0])
    return picture


figure = Figure(
    runs,
    plot,
    smoke={"steps": 20},
    quick={"steps": 1000},
    paper={"steps": 5000},
    claims=[
        Claim("O10", "50 units: with full and with layer-wise noise L + R ends nearer to its "
              "minimum than without noise, by a tenth of GD's gap", narrow),
        Claim("O11", "300 units: with layer-wise noise it does, with full noise not", wide),
        Claim("O11 order", "300 units: layer-wise noise ends nearer than full noise, by a tenth",
              closer),
        Claim("O10 within", "ours: 50 units: both end within 10 % of the minimum, at a constant "
              "rate", within(50, FULL, LAYER)),
        Claim("O11 within", "ours: 300 units: layer-wise noise does", within(300, LAYER)),
        Claim("floor", "with the rate annealed to 0 all but full noise on 300 units end within "
              "10 %", floor),
    ],
    departures=[
        "σ, the number of steps and the data's noise are not given: σ = 0.1, none in the data",
        "“minimised” and “close” are not defined: how far above eq. 10's minimum, mean over the "
        "last fifth",
        "changed after first results: O10 and O11 are of order and of the distance of GD, as the "
        "paper has no bound (had been within 10 % of the minimum, now 'O10 within', 'O11 within')",
        "the claim on the floor, and the annealed runs, were added when the rate of 0.1 was seen "
        "to hold both ways of drawing above 10 %",
        "the minimum and GD on L + R are added to the paper's curves",
        "smoke: 20 steps, far from converged",
    ],
    seeds={"smoke": 2, "quick": 5, "paper": 20},
    cost={"smoke": 0.1, "quick": 0.7, "paper": 15},
)  # fmt: skip
