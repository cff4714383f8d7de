"""Does one ratio transfer over widths and depths where one σ does not?

Noise in tanh networks that learn Fashion-MNIST: additive noise on the input of every layer, or
noise on all weights. With one σ for all networks, what the noise costs may depend on the network:
on its width, and on how many layers add up. `schedule.Balanced(r)` asks for the cost in place of σ:
R is kept at the share r of the loss. Measured at the end of training: the share of the loss that
the noise costs, E[Δℓ] / ℓ by draws, not by R. The number of the figure is the spread of this share
over networks: the standard deviation of its logarithm.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import dither
from dither.lab import MLP, SGD, Accuracy, Array, Claim, Data, Figure, Loss, Run, State, Table
from dither.lab import Verdict as Judged
from dither.lab.rule import below, decide, not_below, unlearnt
from dither.papers import style
from dither.schedule import Balanced

RATIO = 0.1
KINDS = {"additive": dither.Additive(0.3), "weights": dither.Weight(0.02)}
WAYS = ("σ", "ratio")
COLOURS = {"σ": style.ORANGE, "ratio": style.BLUE}
MARKS = {"σ": "s-", "ratio": "o-"}
THIRD = 1 / 3  # of the spread with one σ: with more, a ratio does not transfer
LEARNT = 0.5  # training accuracy
WORSE = 0.05  # of the training accuracy: what the noise may cost


@dataclass(frozen=True)
class Share:
    """E[Δℓ] / ℓ of the run's noise on the first examples of the training part: "share"."""

    every: int | None = None
    limit: int = 500
    draws: int = 64

    def __call__(self, state: State) -> Mapping[str, float]:
        if state.noise is None:
            return {}
        x, y = state.examples("train", self.limit)
        loss = state.run.loss
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(state.seed)
            value = float(dither.explicit(state.noise, x, y, loss, samples=1).loss)
            change = dither.expected(state.noise, x, y, loss, draws=self.draws, antithetic=True)
        return {"share": change.value / value, "sem of share": change.sem / value}


def runs(widths: tuple[int, ...], depths: tuple[int, ...], at: tuple[int, int], train: int,
         epochs: int, precision: str = "float32") -> dict[str, Run]:  # fmt: skip
    """{"64 × 4, weights, ratio": Run}: widths at the depth `at[1]`, depths at the width `at[0]`."""
    nets = dict.fromkeys([*((w, at[1]) for w in widths), *((at[0], d) for d in depths)])
    by_label = {}
    for width, depth in nets:
        plain = Run(
            data=Data("fashion-mnist", train=train, subset_seed=None),
            model=MLP((784, *[width] * depth, 10), activation="tanh"),
            optimiser=SGD(0.02, momentum=0.9),
            batch=100,
            epochs=epochs,
            precision=precision,
            watch=(Loss("train", every=None), Accuracy("train", every=None), Share()),
        )
        by_label[f"{width} × {depth}, none"] = plain
        for kind, noise in KINDS.items():
            kept = replace(noise, sigma=Balanced(RATIO, every=20))
            by_label[f"{width} × {depth}, {kind}, σ"] = replace(plain, noise=noise)
            by_label[f"{width} × {depth}, {kind}, ratio"] = replace(plain, noise=kept)
    return by_label


def nets(t: Table) -> list[tuple[int, int]]:
    """(width, depth) of each network."""
    names = [label.removesuffix(", none").split(" × ") for label in t.labels if "none" in label]
    return [(int(width), int(depth)) for width, depth in names]


def along(t: Table, which: int) -> list[tuple[int, int]]:
    """The networks of the series of widths (0) or depths (1)."""
    others = [net[1 - which] for net in nets(t)]
    common = max(set(others), key=others.count)
    return sorted(net for net in nets(t) if net[1 - which] == common)


def shares(t: Table, kind: str, way: str, chosen: list[tuple[int, int]]) -> Array:
    """The share that the noise costs [S, networks]; where noise lowers the loss it is 0."""
    values = [t.last(f"{w} × {d}, {kind}, {way}", "share") for w, d in chosen]
    return np.maximum(np.stack(values, 1), 0)


def spread(values: Array) -> Array:
    """The standard deviation over networks of log share, [S]; nan if a share is 0."""
    return np.log(np.where(values > 0, values, np.nan)).std(1, ddof=1)


def unfit(t: Table) -> str:
    quality = {f"{w} × {d}": t.last(f"{w} × {d}, none", "accuracy/train") for w, d in nets(t)}
    return unlearnt(quality, at_least=LEARNT)


def transfers(t: Table, kind: str, which: int) -> Judged:
    """The spread with one ratio is below a third of the spread with one σ."""
    chosen = along(t, which)
    every = {way: shares(t, kind, way, chosen) for way in WAYS}
    found = {way: spread(values) for way, values in every.items()}
    asked = below("log spread: ratio − ⅓ σ", found["ratio"], THIRD * found["σ"])
    numbers: dict[str, Any] = {f"log spread, {w}": v for w, v in found.items()}
    for way, values in every.items():  # what is left without the scatter of one moment
        mean = values.mean(0)
        numbers[f"log spread of the mean over seeds, {way}"] = float(spread(mean[None])[0])
        numbers |= {f"smallest mean, {way}": mean.min(), f"largest mean, {way}": mean.max()}
    return decide(asked, unless=unfit(t), numbers=numbers)


def close(t: Table) -> Judged:
    """With one ratio the share is the one asked for, within a factor of 2, in every network."""
    asked, numbers = [], {}
    for kind in KINDS:
        values = shares(t, kind, "ratio", nets(t))
        away = np.abs(np.log2(np.where(values > 0, values, np.nan) / RATIO))
        asked.append(below(f"largest |log₂ (share / ratio)|, {kind}", away.max(1), by=-1))
        numbers |= {f"smallest, {kind}": values.min(1), f"largest, {kind}": values.max(1)}
    return decide(*asked, unless=unfit(t), numbers=numbers)


def harmless(t: Table) -> Judged:
    """Noise at one ratio leaves each network its training accuracy."""
    asked = [
        not_below(
            f"training accuracy {w} × {d}, {kind}: ratio − none",
            t.last(f"{w} × {d}, {kind}, ratio", "accuracy/train"),
            t.last(f"{w} × {d}, none", "accuracy/train"),
            within=WORSE,
        )
        for w, d in nets(t)
        for kind in KINDS
    ]
    return decide(*asked, unless=unfit(t))


def plot(t: Table):
    picture, axes = style.grid(len(KINDS), 2, height=3.0)
    for row, (kind, noise) in zip(axes, KINDS.items(), strict=True):
        for which, ax in enumerate(row):
            chosen = along(t, which)
            xs = [net[which] for net in chosen]
            for way in WAYS:
                values = shares(t, kind, way, chosen)
                said = f"one {way} ({noise.sigma if way == 'σ' else RATIO:g})"
                style.dots(ax, xs, values, COLOURS[way], label=said, fmt=MARKS[way])
            ax.axhline(RATIO, color=style.GREY, lw=1, ls=":")
            ax.set(xscale="log", title=kind)
            style.logarithmic(ax, "y")
            ax.set_xticks(xs, [str(x) for x in xs])
            ax.set_xticks([], minor=True)
        row[0].set_ylabel("E[Δℓ] / ℓ after training")
        style.legend(row[1])
    for ax, name in zip(axes[-1], ("width", "depth"), strict=True):
        ax.set_xlabel(f"{name} of the network")
    return picture


figure = Figure(
    runs,
    plot,
    smoke={"widths": (16, 32), "depths": (1, 2), "at": (16, 1), "train": 200, "epochs": 2},
    quick={"widths": (64, 128, 256), "depths": (2, 4, 8), "at": (128, 3), "train": 1000,
           "epochs": 10},
    decisive={"widths": (64, 128, 256, 512, 1024, 2048), "depths": (2, 4, 8, 16),
              "at": (256, 3), "train": 5000, "epochs": 20, "precision": "bf16"},
    paper={"widths": (64, 128, 256, 512, 1024, 2048), "depths": (2, 4, 8, 16), "at": (256, 3),
           "train": 20_000, "epochs": 40},
    claims=[
        *(
            Claim(f"{kind}, {name}s", f"{kind}: over {name}s the share of the loss that noise "
                  "costs spreads less than a third as much with one ratio as with one σ",
                  lambda t, kind=kind, which=which: transfers(t, kind, which))
            for kind in KINDS for which, name in enumerate(("width", "depth"))
        ),
        Claim("asked", "with one ratio every network has the share that was asked for, within a "
              "factor of 2", close),
        Claim("harmless", "with one ratio no network loses 5 points of training accuracy",
              harmless),
    ],
    departures=[
        "no paper has this figure",
        "decisive: bf16 in the training steps",
        "quick: widths 64 to 256, 1 000 images",
        "the σ were written down before any run; what is compared is the spread, not the level",
        "changed after first results: noise on weights was added, as with additive noise the share "
        "at one σ hardly depends on the network (log spread .13 over widths and over depths)",
    ],
    needs=["fashion-mnist"],
    seeds={"smoke": 2, "quick": 5, "decisive": 5, "paper": 5},
    cost={"smoke": 0.2, "quick": 1.2, "decisive": 45, "paper": 3000},
)  # fmt: skip
