"""A metric against σ: a trained model under noise, or a model trained with each σ."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure
from torch import nn

from dither import loss as losses
from dither.attach.inject import Injection, inject
from dither.calling import evaluating, output
from dither.errors import DitherError, check_whole
from dither.lab import rule
from dither.lab.compare import compare
from dither.lab.compare.problem import Problem, Stack, problem
from dither.lab.compare.quantities import accuracy
from dither.noise.noises import is_noise
from dither.picture import BLUE, SOFT, panel
from dither.text import grid, html

__all__ = ["Sweep", "sweep"]

Metric = str | Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Sweep:
    """A metric at each σ: values [sigmas, n], over n draws of the noise or n seeds of training.

    baseline: the value without noise (of training: its mean over seeds).
    """

    sigmas: tuple[float, ...]
    values: np.ndarray
    metric: str
    over: str  # "draws" or "seeds"
    baseline: float

    @property
    def intervals(self) -> list[tuple[float, float, float]]:
        """(mean, low, high) at each σ: the 95 % interval of the mean (Student's t)."""
        return [rule.interval(row) for row in self.values]

    def rows(self) -> list[tuple[str, str, str]]:
        """The table's cells, its head first."""
        rows = [("σ", self.metric, "95 %")]
        for sigma, (mean, low, high) in zip(self.sigmas, self.intervals, strict=True):
            ends = f"[{low:.4g}, {high:.4g}]" if math.isfinite(low) else ""
            rows.append((f"{sigma:g}", f"{mean:.4g}", ends))
        return rows

    @property
    def foot(self) -> str:
        """What the table does not say by itself."""
        return f"{self.values.shape[1]} {self.over}; without noise {self.baseline:.4g}"

    def __str__(self) -> str:
        return "\n".join([*grid(self.rows(), right=True), self.foot])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *rows = self.rows()
        return html(head, rows, notes=[self.foot])

    def to_frame(self) -> pl.DataFrame:
        """A long table (sigma, draw or seed, value) of polars."""
        n = self.values.shape[1]
        return pl.DataFrame(
            {
                "sigma": np.repeat(self.sigmas, n),
                self.over[:-1]: np.tile(np.arange(n), len(self.sigmas)),
                "value": self.values.ravel(),
            }
        )

    def plot(self) -> Figure:
        """The mean with its 95 % interval against σ, as a figure of pyplot."""
        mean, low, high = np.array(self.intervals).T
        figure, ax = panel()
        ax.axhline(self.baseline, color=SOFT, lw=1, label="without noise")
        ax.fill_between(self.sigmas, low, high, color=BLUE, alpha=0.2, lw=0)
        ax.plot(self.sigmas, mean, "o-", color=BLUE, ms=4, label="with noise")
        if min(s for s in self.sigmas if s > 0) * 30 < max(self.sigmas) and 0 not in self.sigmas:
            ax.set_xscale("log")
        ax.set(xlabel="σ", ylabel=self.metric)
        ax.legend(frameon=False)
        return figure


def sweep(
    model: nn.Module | Callable[[], nn.Module],
    noise: Any,
    sigmas: Sequence[float],
    data: Any,
    *,
    metric: Metric | None = None,
    loss: Any = "cross_entropy",
    draws: int = 10,
    seed: int = 0,
    **training: Any,
) -> Sweep:
    """A metric against σ, with the noise's σ replaced by each of `sigmas`.

    model   a trained nn.Module: it is evaluated under noise, in eval mode, on data = (x, y), with
            `draws` draws, the same at every σ. Or a function that gives a new nn.Module: it is
            trained with each σ as `compare` does, and evaluated without noise.
    noise   a noise, or a mapping from patterns to noises; each gets σ.
    data    (x, y); for training as in `compare`.
    metric  "accuracy", "loss", or f(model, x, y) → a number. None: "accuracy" of class labels,
            "loss" of other targets.
    training  further arguments of `compare`, such as seeds, epochs, optimiser.

    Raises DitherError for arguments that can't be used.
    """
    chosen = _sigmas(sigmas)
    if not isinstance(model, nn.Module):
        return _trained(model, noise, chosen, data, metric, loss, training)
    if training:
        raise DitherError(
            f"sweep: {next(iter(training))} is for training; a trained model was given: give a "
            "function that makes a new one"
        )
    check_whole("sweep: draws", draws)
    if not isinstance(data, Sequence) or len(data) != 2:
        raise DitherError("sweep: the data of a trained model are (x, y)")
    held = problem((*data, *data))
    x, y = (p.tree if isinstance(p, Stack) else p for p in (held.parts[n] for n in _TEST))
    name, measure = _metric(metric, loss, held)

    def value() -> float:
        with torch.no_grad():
            return float(measure(model, x, y))

    with evaluating(model):
        baseline = value()
        rows = []
        for sigma in chosen:
            with _noisy(model, at(noise, sigma), seed, x) as injected:
                rows.append([_drawn(injected, draw, value) for draw in range(int(draws))])
    return Sweep(chosen, np.array(rows), name, "draws", baseline)


_TEST = ("x_test", "y_test")


def at(noise: Any, sigma: float) -> Any:
    """The same noises with another σ."""
    if isinstance(noise, Mapping):
        return {pattern: at(one, sigma) for pattern, one in noise.items()}
    if not is_noise(noise):
        raise DitherError(
            f"sweep needs a noise, or a mapping from patterns to noises: got {noise!r}"
        )
    return replace(noise, sigma=sigma)


@contextmanager
def _noisy(model: nn.Module, what: Any, seed: int, x: Any) -> Iterator[Injection]:
    injected = inject(model, what, seed=seed, when="always", example=x)
    try:
        yield injected
    finally:
        injected.remove()


def _drawn(injected: Injection, draw: int, value: Callable[[], float]) -> float:
    """The metric under one draw: all forwards of a call are one step."""
    injected.step = draw
    with injected.hold():
        return value()


def _metric(metric: Metric | None, loss: Any, held: Problem) -> tuple[str, Callable[..., Any]]:
    if metric is None:
        metric = "loss" if held.classes is None else "accuracy"
    if metric == "accuracy" and held.classes is None:
        raise DitherError("sweep: accuracy needs class numbers, and targets are real")
    if metric == "accuracy":
        return "accuracy", lambda model, x, y: accuracy(output(model, x), y)
    if metric == "loss":
        each = losses.get(loss)
        return "loss", lambda model, x, y: each.per_sample(output(model, x), y).mean()
    if callable(metric):
        return getattr(metric, "__name__", "metric"), metric
    raise DitherError(
        f"sweep: metric is 'accuracy', 'loss' or a function f(model, x, y): got {metric!r}"
    )


def _trained(
    make_model: Any,
    noise: Any,
    sigmas: tuple[float, ...],
    data: Any,
    metric: Metric | None,
    loss: Any,
    training: Mapping[str, Any],
) -> Sweep:
    name, _ = _metric(metric, loss, problem(data))
    metric = metric if metric is not None else name
    methods = {"none": None, **{f"σ = {s:g}": at(noise, s) for s in sigmas}}
    measures = metric if isinstance(metric, str) else {name: metric}
    found = compare(make_model, data, methods, loss=loss, measures=measures, **training)
    quantity = f"{name}/test" if isinstance(metric, str) else name
    empty = np.full(len(found.seeds), np.nan)
    rows = [found.values[m].get(quantity, empty) for m in list(methods)[1:]]
    baseline = float(np.mean(found.values["none"].get(quantity, empty)))
    return Sweep(sigmas, np.array(rows), quantity, "seeds", baseline)


def _sigmas(sigmas: Any) -> tuple[float, ...]:
    try:
        found = tuple(sigmas)
    except TypeError:
        found = ()
    numbers = all(isinstance(s, Real) and not isinstance(s, bool) for s in found)
    if not found or not numbers or not all(0 <= float(s) < math.inf for s in found):
        raise DitherError(f"sweep: sigmas are numbers ≥ 0, one or more: got {sigmas!r}")
    if len(set(found)) < len(found):
        raise DitherError(f"sweep: a σ occurs twice in {sigmas!r}: give each once")
    return tuple(sorted(map(float, found)))
