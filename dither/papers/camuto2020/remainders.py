"""R, and what of the noise's cost it leaves out: measured at the start, and watched in training.

Chains of six layers of one width without bias, noise of one variance on each; batches of 32. Used
by Fig. 2 (additive noise) and by "multiplicative" (eq. 6, dropout).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dither
from dither.attach.reading import probing
from dither.lab import (
    MLP,
    SGD,
    Array,
    Data,
    Loss,
    Progress,
    Run,
    State,
    Table,
    Tensors,
    Verdict,
    generator,
)
from dither.lab.data import needs
from dither.papers.camuto2020 import moments

BATCH, LAYERS = 32, 6
QUANTITIES = ("R", "C", "sem", "residual")


@dataclass(frozen=True)
class Problem:
    """A data set, and the paper's network for it."""

    data: str
    activation: str
    loss: str
    inputs: int
    classes: int

    @property
    def images(self) -> bool:
        return self.classes > 1

    def model(self, width: int) -> MLP:
        widths = (self.inputs, *[width] * LAYERS, self.classes)
        return MLP(widths, activation=self.activation, bias=False, init="glorot")


PROBLEMS = {
    "Boston, sigmoid": Problem("boston", "sigmoid", "half_square", 13, 1),
    "Fashion-MNIST, ELU": Problem("fashion-mnist", "elu", "cross_entropy", 784, 10),
    "CIFAR-10, ELU": Problem("cifar-10", "elu", "cross_entropy", 3072, 10),
}
ALWAYS = ("Boston, sigmoid", "Fashion-MNIST, ELU")


def noise(sigma2: float, of: str) -> Any:
    """Additive (eq. 5) or multiplicative (eq. 6) noise, or dropout, of variance σ² = p/(1 − p)."""
    if of == "additive":
        return dither.Additive(sigma2**0.5)
    law = dither.dropout(sigma2 / (1 + sigma2)) if of == "dropout" else dither.gaussian
    return dither.Multiplicative((sigma2 / law.variance) ** 0.5, law)


def unit(model: Any, x: Tensor, y: Tensor, loss: str, of: str) -> tuple[float, float]:
    """R and the residual at σ² = 1. Both are linear in σ²."""
    variance = moments.additive if of == "additive" else moments.multiplicative
    return moments.second_order(model, x, y, loss, variance(1.0))


def cost(
    model: Any, x: Tensor, y: Tensor, loss: str, sigma2: float, draws: int, seed: int, of: str
) -> dither.Estimate:
    """E[Δℓ], from antithetic pairs."""
    with probing(model, {"act*:out": noise(sigma2, of)}, seed=0) as injected:
        return dither.expected(injected, x, y, loss, draws=draws, antithetic=True, seed=seed)


def parts(change: dither.Estimate, one: tuple[float, float], sigma2: float) -> dict[str, float]:
    """R, E[C] with its standard error, and the residual part of the second order."""
    R, residual = (sigma2 * part for part in one)
    return {"R": R, "C": change.value - R, "sem": change.sem, "residual": residual}


def batch_of(data: Tensors, number: int) -> tuple[Tensor, Tensor]:
    """32 training examples for the net of this number, standardised like all examples."""
    order = torch.randperm(len(data.y_train), generator=generator(number, "batch"))[:BATCH]
    return data.x_train[order], data.y_train[order]


def at_initialisation(
    seed: int,
    progress: Progress,
    *,
    problem: str,
    nets: int,
    draws: int,
    width: int,
    variances: tuple[float, ...],
    of: str = "additive",
):
    """`nets` initialisations, each with its own batch: "R/0.1", "C/0.1", … by net."""
    p = PROBLEMS[problem]
    data = Data(p.data, test=1).load()
    for i in range(nets):
        number = seed * nets + i
        x, y = batch_of(data, number)
        model = p.model(width).build(number)
        one = unit(model, x, y, p.loss, of)
        for sigma2 in variances:
            change = cost(model, x, y, p.loss, sigma2, draws, number, of)
            for name, value in parts(change, one, sigma2).items():
                yield i, f"{name}/{sigma2:g}", value
        progress.update(i + 1, nets)


@dataclass(frozen=True)
class Remainder:
    """R, E[C], its standard error and the residual on the first 32 training examples, with the
    noise of the run.
    """

    sigma2: float
    draws: int
    of: str = "additive"
    every: int | None = 1

    def __call__(self, state: State) -> dict[str, float]:
        x, y = state.examples("train", BATCH)
        seed, loss = 1000 * state.seed + state.step, state.run.loss
        one = unit(state.model, x, y, loss, self.of)
        change = cost(state.model, x, y, loss, self.sigma2, self.draws, seed, self.of)
        return parts(change, one, self.sigma2)


def training(
    problem: str, sigma2: float, rate: float, *, width: int, draws: int, steps: int, every: int,
    batch: int, train: int | None, of: str = "additive",
) -> Run:  # fmt: skip
    """The training run on `train` images, or on all houses."""
    p = PROBLEMS[problem]
    return Run(
        data=Data(p.data, train=train, test=1000) if p.images else Data(p.data),
        model=p.model(width),
        noise={"act*:out": noise(sigma2, of)},
        loss=p.loss,
        optimiser=SGD(rate),
        batch=batch,
        steps=steps,
        watch=(Remainder(sigma2, draws, of, every), Loss("train", every, limit=1000)),
    )


def present() -> list[str]:
    return [name for name, p in PROBLEMS.items() if name in ALWAYS or needs.found(p.data)]


# ------------------------------------------------------------------------------ reading a table


def problems(t: Table, law: str = "") -> list[str]:
    """The problems that were run. law: the end of their labels."""
    return [name for name in PROBLEMS if f"{name}{law} start" in (*t.there, *t.missing)]


def drawn(t: Table, law: str = "") -> list[str]:
    """The problems with a result. If there is none: all, and their panels say what is missing."""
    known = problems(t, law)
    return [p for p in known if any(label.startswith(p) for label in t.there)] or known


def where_run(
    problem: str, check: Callable[[Table, str], Verdict], law: str = ""
) -> Callable[[Table], Verdict]:
    """The check of one problem, whose data may be absent."""

    def said(t: Table) -> Verdict:
        if problem in problems(t, law):
            return check(t, problem)
        return None, {"why": needs.unrun(PROBLEMS[problem].data)}

    return said


def at_start(t: Table, problem: str, sigma2: float) -> dict[str, Array]:
    """{"R", "C", "sem", "residual"}: [seeds · nets]."""
    label = f"{problem} start"
    return {q: t.series(label, f"{q}/{sigma2:g}")[1].ravel() for q in QUANTITIES}
