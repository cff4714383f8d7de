"""Weight noise in a language model: full, layer-wise, and its R.

Orvieto et al. 2022 leave transformers to future work (§6). A small one reads characters of the
documentation that Python carries with it (`pydoc_data.topics`), trained on every other topic and
tested on the rest: no noise, noise on all parameter tensors (σ/√M each), on one tensor a step (σ),
and no noise but the R they share, from one random column a step.

Loss per character of the rest, the trace of the loss' Gauss–Newton matrix (random columns, with its
standard error), and the expected calibration error of the next character's probabilities.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import dither
from dither.attach.inject import DrawMode
from dither.estimate import Estimate
from dither.lab import Array, Claim, Figure, Progress, Table, Task, Verdict, generator
from dither.lab.rule import Comparison, above, decide, near
from dither.measures.calibration import reliability
from dither.papers import style
from dither.papers.beyond.characters import Text, Transformer, pieces

SCHEMES: dict[str, DrawMode] = {"noise": "all", "noise (layer)": "cycle"}
LEARNT = 2.5  # nats per character; guessing by frequency alone gives about 3.1
COLOURS = {"noise": style.RED, "noise (layer)": style.BLUE, "loss + R̂": style.SKY}


def trained(
    seed: int,
    progress: Progress,
    *,
    scheme: str,
    sigma: float,
    train: int | None,
    test: int | None,
    length: int,
    width: int,
    blocks: int,
    batch: int,
    steps: int,
    looks: int,
) -> Iterator[tuple[float, str, float]]:
    """The measurements along a model's training. scheme: "none", one of SCHEMES, or "loss + R̂"."""
    text = Text.of(train, test)
    model = Transformer(seed, len(text.alphabet), length, width, blocks)
    noise = None
    if scheme != "none":
        draw = SCHEMES.get(scheme, "all")
        noise = dither.inject(model, dither.Weight(sigma), draw=draw, seed=seed)
        if scheme not in SCHEMES:
            noise.pause()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.0)
    order = generator(seed, "order")
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # the columns' lots
        for step in range(steps + 1):
            if step % max(1, steps // looks) == 0 or step == steps:
                yield from ((step, q, v) for q, v in look(model, noise, text, length).items())
                progress.update(step, steps)
            if step == steps:
                break
            starts = torch.randint(len(text.train) - length, (batch,), generator=order)
            x, y = pieces(text.train, starts, length)
            for group in optimiser.param_groups:
                group["lr"] = 3e-3 * (1 + math.cos(math.pi * step / steps)) / 2
            if noise is not None and noise.paused:
                penalised = dither.explicit(noise, x, y, samples=1)
                objective = penalised.loss + penalised.R
            else:
                objective = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            optimiser.zero_grad()
            objective.backward()
            optimiser.step()


def look(model: nn.Module, noise: Any, text: Text, length: int) -> dict[str, float]:
    """Losses, calibration error and trace, with the noise off."""
    model.eval()
    values: dict[str, float] = {}
    with torch.no_grad():
        for split in ("train", "test"):
            whole = getattr(text, split)
            x, y = pieces(whole, torch.arange(0, len(whole) - length, length)[:64], length)
            z = model(x).flatten(0, 1)
            values[f"loss/{split}"] = F.cross_entropy(z, y.flatten()).item()
            if split == "test":
                values["calibration error"] = float(reliability(z.softmax(-1), y.flatten()).error)
        with dither.inject(model, dither.Weight(1.0)) as unit, torch.random.fork_rng():
            torch.manual_seed(0)  # the same columns at every look and in every model
            x, y = pieces(
                text.train, torch.arange(0, len(text.train) - length, length)[:16], length
            )
            draws = torch.stack([2 * dither.explicit(unit, x, y, samples=1).R for _ in range(8)])
    trace = Estimate.of(draws)
    model.train()
    return values | {"trace": trace.value, "trace sem": trace.sem}


def label(scheme: str, sigma: float) -> str:
    return f"{scheme}, σ = {sigma:g}"


def runs(sigmas: tuple[float, ...], at: float, **how: Any) -> dict[str, Task]:
    """The runs. at: the σ of the run on R."""
    by_label = {"none": Task.of(trained, scheme="none", sigma=0.0, **how)}
    for scheme in SCHEMES:
        for sigma in sigmas:
            by_label[label(scheme, sigma)] = Task.of(trained, scheme=scheme, sigma=sigma, **how)
    by_label[label("loss + R̂", at)] = Task.of(trained, scheme="loss + R̂", sigma=at, **how)
    return by_label


# ------------------------------------------------------------------------------------------ claims


def gain(t: Table, quantity: str, ours: str, other: str) -> Array:
    """The other's value − ours, seed by seed: above 0 if ours is lower."""
    return t.last(other, quantity) - t.last(ours, quantity)


def of(t: Table, scheme: str) -> dict[float, str]:
    """{σ: label}."""
    labels = [name for name in t.labels if name.startswith(f"{scheme}, σ")]
    return dict(sorted((float(name.rpartition(" ")[2]), name) for name in labels))


def everything(t: Table) -> dict[str, Any]:
    quantities = ("loss/test", "loss/train", "trace", "trace sem", "calibration error")
    ends = {f"{q}, {name}": t.last(name, q) for q in quantities for name in t.labels}
    best = {f"best loss/test, {n}": np.nanmin(t.series(n, "loss/test")[1], 1) for n in t.labels}
    return ends | best


FLOORS = {"loss/test": 0.01, "trace": 0.05, "calibration error": 0.05}  # of the other's mean


def judged(check: Callable[[Table], list[Comparison]]) -> Callable[[Table], Verdict]:
    def said(t: Table) -> Verdict:
        why = ""
        if (learnt := t.last("none", "loss/train").mean()) > LEARNT:
            why = f"the plain model is at {learnt:.2f} nats per character: above {LEARNT:g} "
            why += "nothing is judged"
        return decide(*check(t), unless=why, numbers=everything(t))

    return said


def less(t: Table, quantity: str, ours: str, other: str, name: str) -> Comparison:
    """Our value ends below the other's by its floor."""
    mean = t.last(other, quantity).mean()
    return above(name, gain(t, quantity, ours, other) / mean, by=FLOORS[quantity])


def lower(quantity: str, *schemes: str) -> Callable[[Table], list[Comparison]]:
    """At its smallest σ every scheme ends below training without noise."""

    def check(t: Table) -> list[Comparison]:
        smallest = {scheme: next(iter(of(t, scheme).values())) for scheme in schemes}
        return [
            less(t, quantity, label, "none", f"none − {scheme}, over none, {quantity}")
            for scheme, label in smallest.items()
        ]

    return check


def explodes(t: Table) -> list[Comparison]:
    """At the largest σ layer-wise noise ends with a lower test loss than full noise."""
    full, layer = (list(of(t, scheme).values())[-1] for scheme in SCHEMES)
    return [less(t, "loss/test", layer, full, "loss/test, full − layer-wise, over full")]


def same(t: Table) -> list[Comparison]:
    """Training on R ends within 5 % of the test loss of both noises with that R."""
    (sigma, name), *_ = of(t, "loss + R̂").items()
    ours = t.last(name, "loss/test")
    return [
        near(f"loss/test, R̂/{m} − 1", ours / t.last(label(m, sigma), "loss/test"), 1, within=0.05)
        for m in SCHEMES
    ]


def plot(t: Table):
    picture, axes = style.grid(2, 2, height=3.4)
    titles = {
        "loss/train": "training loss", "loss/test": "test loss",
        "trace": "Gauss–Newton trace", "calibration error": "calibration error (test)",
    }  # fmt: skip
    for ax, (quantity, title) in zip(axes.flat, titles.items(), strict=True):
        style.band(ax, *t.series("none", quantity), style.BLACK, label="none")
        for scheme, colour in COLOURS.items():
            for (sigma, name), line in zip(of(t, scheme).items(), ("-", "--", ":"), strict=False):
                log = quantity == "trace"
                style.band(ax, *t.series(name, quantity), colour, ls=line, log=log,
                           label=label(scheme, sigma))  # fmt: skip
        ax.set(title=title, xlabel="step")
    axes[1, 0].set_yscale("log")
    style.legend(
        picture, handles=axes[0, 0].get_lines(), loc="outside upper center", ncols=3, fontsize=9
    )
    return picture


figure = Figure(
    runs,
    plot,
    smoke={"sigmas": (0.1, 0.3), "at": 0.1, "train": 500, "test": 500, "length": 8, "width": 16,
           "blocks": 1, "batch": 4, "steps": 3, "looks": 1},
    quick={"sigmas": (0.1, 0.3), "at": 0.1, "train": 20_000, "test": 1_600, "length": 48,
           "width": 32, "blocks": 2, "batch": 8, "steps": 200, "looks": 4},
    paper={"sigmas": (0.03, 0.1, 0.3), "at": 0.1, "train": None, "test": None, "length": 128,
           "width": 128, "blocks": 4, "batch": 64, "steps": 10_000, "looks": 20},
    claims=[
        Claim("T1", "layer-wise noise ends at a lower test loss than none, by 1 % (smallest σ)",
              judged(lower("loss/test", "noise (layer)"))),
        Claim("T2", "both noises end at a lower trace than none, by 5 % (smallest σ)",
              judged(lower("trace", *SCHEMES))),
        Claim("T3", "both noises end better calibrated than none, by 5 % of it (smallest σ)",
              judged(lower("calibration error", *SCHEMES))),
        Claim("T4", "training on loss + R̂ ends within 5 % of both noises' test loss", judged(same)),
        Claim("T5", "at the largest σ layer-wise noise ends at a lower test loss than full, by 1 %",
              judged(explodes)),
    ],
    departures=[
        "in no paper: there is nothing to depart from",
        "the text is the running Python's own documentation, which differs between versions",
        "quick: 20 000 characters, a model of two blocks of 32, 200 steps of 8 × 48 characters, 2 "
        "seeds: it says nothing yet, whatever the seeds",
    ],
    seeds={"smoke": 2, "quick": 2, "paper": 5},
    cost={"smoke": 0.05, "quick": 0.6, "paper": 3000},
)  # fmt: skip
