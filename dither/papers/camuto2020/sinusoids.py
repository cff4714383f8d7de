"""The networks of Fig. 4 and 5: trained once, looked at in two ways.

Both readings of the noise, each as noise and as its regulariser R (eq. 11):

    text       variance 0.1 (σ = √.1) on the input and every hidden activation
    notebook   standard deviation 0.1 (variance 0.01) on the hidden activations, none on the input
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

import dither
from dither.lab import (
    FREQUENCIES,
    MLP,
    Adam,
    Amplitudes,
    Data,
    Loss,
    Outputs,
    Run,
    State,
    Table,
    Watch,
)
from dither.measures import jacobian

HIDDEN = 5
SQUARE = tuple(range(2, HIDDEN + 1))  # k of the square W_k: fc1 … fc4, counted from 1
TEXT, NOTEBOOK = "variance 0.1", "std 0.1"
READINGS = {
    TEXT: {f"fc{k}:in": dither.Additive(math.sqrt(0.1)) for k in range(HIDDEN + 1)},
    NOTEBOOK: {f"fc{k}:in": dither.Additive(0.1) for k in range(1, HIDDEN + 1)},
}
SMOKE = {"width": 16, "steps": 30, "rate": 3e-4}
QUICK = {"width": 128, "steps": 3000, "rate": 3e-3}
PAPER = {"width": 256, "steps": 60_000, "rate": 3e-4}
QUICK_NETS = QUICK | {"explicit": (NOTEBOOK,)}  # the arguments of `nets`
SEEDS = {"smoke": 2, "quick": 5, "paper": 10}
LOOKS = 100  # times the networks are looked at
ENOUGH = 1000  # steps, below which nothing is judged
SHORT = f"the networks trained for fewer than {ENOUGH} steps"
COMMON = (
    "not in the text: PyTorch's initialisation and biases, and ½(f − y)² (Adam takes a factor of "
    "the loss for nothing)",
    "smoke: width 16, 30 steps",
)
REDUCED = "quick: width 128 instead of 256, 3000 steps at rate 3e-3 instead of 60 000 at 3e-4"
DEPARTURES = [
    "variance 0.1 everywhere is the text's noise, std 0.1 but not on the input the released "
    "notebook's: both are trained",
    *COMMON,
    f"{REDUCED}: the baseline is not trained to its end, and C7 and C10 ask for that",
    f"quick: R of {TEXT} is not trained: with that noise the nets learn nothing at any scale, so "
    "nothing can be asked of it",
]


@dataclass(frozen=True)
class Layers:
    """For each square layer k = 2 … 5: "norm/k", "square/k" (batch means of ‖W̃_k‖_F, ‖W̃_k‖_F²)
    and "trace/k".
    """

    every: int | None = 0
    stacked: ClassVar[bool] = True

    def __call__(self, state: State) -> dict:
        seen = {}
        for name, layer in jacobian.layers(state.model, state.examples("train")[0]).items():
            if layer.is_square:
                k = int(name.removeprefix("fc")) + 1
                seen[f"norm/{k}"], seen[f"square/{k}"] = layer.frobenius(), layer.square()
                seen[f"trace/{k}"] = layer.trace()
        return seen


@dataclass(frozen=True)
class Spectral:
    """For each square layer "spectral/k": the batch mean of ‖W̃_k‖₂. It solves an eigenproblem per
    point.
    """

    every: int | None = None
    stacked: ClassVar[bool] = True

    def __call__(self, state: State) -> dict:
        layers = jacobian.layers(state.model, state.examples("train")[0]).items()
        return {
            f"spectral/{int(name.removeprefix('fc')) + 1}": layer.spectral()
            for name, layer in layers
            if layer.is_square
        }


@dataclass(frozen=True)
class Targets:
    """The sum of sines, for the picture of the learnt function: "target/i"."""

    every: int | None = None
    stacked: ClassVar[bool] = True

    def __call__(self, state: State) -> dict:
        y = state.examples("train")[1]
        y = y.expand(len(state.seeds), *y.shape[-2:]) if y.dim() == 2 else y
        return {f"target/{i}": y[:, i, 0] for i in range(y.shape[1])}


def nets(
    width: int, steps: int, rate: float, explicit: tuple[str, ...] = (TEXT, NOTEBOOK)
) -> dict[str, Run]:
    """{"baseline", "GNI, …", "R, …"}: the runs of both figures. explicit: the readings whose R is
    trained on.
    """
    base = baseline(width, steps, rate)
    runs = {"baseline": base}
    for reading, noise in READINGS.items():
        runs[f"GNI, {reading}"] = replace(base, noise=noise)
        if reading in explicit:
            runs[f"R, {reading}"] = replace(base, noise=noise, objective="explicit")
    return runs


def baseline(width: int, steps: int, rate: float) -> Run:
    """The run without noise."""
    every = max(1, steps // LOOKS)
    watch: tuple[Watch, ...] = (
        Amplitudes(every=every), Layers(every), Loss("train", every),
        Spectral(), Outputs(), Targets(),
    )  # fmt: skip
    return Run(
        data=Data("sinusoids"),
        model=MLP((1, *[width] * HIDDEN, 1), init="torch"),
        optimiser=Adam(rate),
        loss="half_square",
        steps=steps,
        watch=watch,
    )


def short(t: Table) -> bool:
    return t.series("baseline", "loss/train")[0].max() < ENOUGH


def spectra(t: Table, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [T] and amplitudes [S, T, K]."""
    parts = [t.series(label, f"amplitude/{k}") for k in FREQUENCIES]
    return parts[0][0], np.stack([values for _, values in parts], -1)
