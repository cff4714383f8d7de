"""Compare noises on one's own problem: every method with the same seeds, one table.

    dither.compare(make_model, data, {"none": None, "gni": Additive(0.1), …}, seeds=5)

With seed s every method starts from the same weights and sees the data in the same order. So
differences from the first method are taken seed by seed: their spread is that of the difference,
not of two means. Training loop, mark of divergence and watches are those of the figures.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dither.attach.inject import inject
from dither.errors import DitherError
from dither.lab.data.sets import Tensors
from dither.lab.figure import Run, Silent
from dither.lab.training.loop import train
from dither.lab.training.optimiser import SGD
from dither.lab.training.watch import Accuracy, Loss, State
from dither.measures import calibration
from dither.noise.noises import is_noise
from dither.regulariser.explicit import explicit
from dither.text import grid

__all__ = ["Comparison", "Method", "compare"]

PERCENT = ("accuracy/test", "accuracy/train", "calibration error")  # shares, shown in %


@dataclass(frozen=True)
class Method:
    """A noise and how to train with it. A bare noise in `compare` stands for `Method(noise)`.

    objective  "noise": train with the noise on; "explicit", "sampled": train on loss + R instead
    draw, by   how Weight is drawn (see `inject`)
    optimiser  in place of the optimiser of the comparison
    """

    noise: Any = None
    objective: str = "noise"
    draw: str = "each"
    by: str = "tensor"
    optimiser: Any = None


@dataclass
class Comparison:
    """The values at the end of training: `values[method][quantity]` is [seeds], nan for a run that
    diverged.

    It prints as a table of mean ± sd over seeds, with the differences from the first method.
    """

    values: dict[str, dict[str, np.ndarray]]
    seeds: tuple[int, ...]

    @classmethod
    def plan(
        cls,
        make_model: Callable[[], nn.Module],
        data: Sequence[Tensor],
        methods: Mapping[str, Any],
        *,
        seeds: int | Sequence[int],
        epochs: int,
        batch: int | None,
        optimiser: Any,
        loss: Any,
    ) -> "Plan":
        """The runs of a comparison, checked; nothing is trained yet. Arguments as in `compare`."""
        tensors, chosen, numbers = _tensors(data), _methods(methods), _seeds(seeds)
        if not isinstance(epochs, Integral) or epochs < 1:
            raise DitherError(f"compare: epochs is a whole number ≥ 1: got {epochs!r}")
        for given in (optimiser, *(m.optimiser for m in chosen.values() if m.optimiser)):
            _check_optimiser(given)
        for method in chosen.values():
            _check_fits(make_model, method, tensors.x_train[:2])
        watches = _watches(tensors)
        runs = {
            name: Run(
                data=Given(tensors),
                model=Made(make_model),
                optimiser=method.optimiser or optimiser,
                noise=method.noise,
                draw=method.draw,
                by=method.by,
                objective=method.objective,
                loss=loss,
                batch=batch,
                epochs=epochs,
                watch=(*watches, *([Price()] if method.noise is not None else [])),
            )
            for name, method in chosen.items()
        }
        return Plan(runs, numbers)

    def difference(self, method: str, quantity: str) -> np.ndarray:
        """The method's values minus those of the first method, seed by seed [seeds]."""
        first = next(iter(self.values.values()))
        return self.values[method][quantity] - first[quantity]

    def __str__(self) -> str:
        quantities = list(dict.fromkeys(q for values in self.values.values() for q in values))
        first = next(iter(self.values))
        rows = [["", *quantities]]
        for method, values in self.values.items():
            rows.append([method, *(_cell(q, values.get(q)) for q in quantities)])
            if method != first:
                shared = [q for q in quantities if q in values and q in self.values[first]]
                gaps = {q: self.difference(method, q) for q in shared}
                rows.append(
                    [f"  − {first}", *(_cell(q, gaps.get(q), sign=True) for q in quantities)]
                )
        n = len(self.seeds)
        foot = f"mean ± standard deviation over {n} seed{'s' * (n > 1)}"
        return "\n".join([*grid(rows, right=True), foot])

    __repr__ = __str__


@dataclass(frozen=True)
class Plan:
    """What a comparison trains: {method: run}, each with every seed."""

    runs: dict[str, Run]
    seeds: tuple[int, ...]

    def run(self, progress: Any = None, device: str = "cpu") -> Comparison:
        """Train all runs, seed after seed, and collect their last values."""
        rows: dict[str, dict[int, dict[str, float]]] = {name: {} for name in self.runs}
        total = len(self.runs) * len(self.seeds)
        pairs = [(seed, name) for seed in self.seeds for name in self.runs]
        for done, (seed, name) in enumerate(pairs, 1):
            trained = train(self.runs[name], (seed,), Silent(), device)[seed]
            rows[name][seed] = {quantity: value for _, quantity, value in trained}
            if progress is not None:
                progress(name, seed, done, total)
        values = {name: _columns(by_seed, self.seeds) for name, by_seed in rows.items()}
        return Comparison(values, self.seeds)


def compare(
    make_model: Callable[[], nn.Module],
    data: Sequence[Tensor],
    methods: Mapping[str, Any],
    *,
    seeds: int | Sequence[int] = 5,
    epochs: int = 10,
    batch: int | None = 128,
    optimiser: Any = SGD(0.05),  # noqa: B008
    loss: Any = "cross_entropy",
    progress: Any = None,
    device: str = "cpu",
) -> Comparison:
    """Train every method on every seed and measure all of them in the same way.

    make_model  () → a new nn.Module; torch's generator is seeded for it.
    data        (x_train, y_train, x_test, y_test).
    methods     {name: None, a noise, a mapping from patterns to noises, or a `Method`}. All are
                compared with the first one.
    optimiser   SGD, Adam or RMSprop of `dither.lab`; it trains Nodes' vectors too.
    progress    called as progress(method, seed, done, total) after each run.

    Quantities: loss and accuracy (integer targets) on both parts, the calibration error (15 bins)
    and R of the method's noise over the loss, both on the test part. Raises DitherError for data
    or methods that can't be used, before it trains anything.
    """
    plan = Comparison.plan(
        make_model,
        data,
        methods,
        seeds=seeds,
        epochs=epochs,
        batch=batch,
        optimiser=optimiser,
        loss=loss,
    )
    return plan.run(progress, device)


def _methods(methods: Any) -> dict[str, Method]:
    if not isinstance(methods, Mapping):
        raise DitherError(f"compare: methods is a mapping, as {{'none': None}}: got {methods!r}")
    if not methods:
        raise DitherError("compare needs at least one method, such as {'none': None}: got none")
    return {name: _method(name, method) for name, method in methods.items()}


def _check_optimiser(optimiser: Any) -> None:
    """Raises DitherError unless it is a specification, from which each run builds its own."""
    if not hasattr(optimiser, "build"):
        raise DitherError(
            f"compare: the optimiser is one of dither.lab, such as SGD(0.05): got {optimiser!r}; "
            "it is built anew for each run"
        )


def _watches(tensors: Tensors) -> list[Any]:
    """The quantities that are measured after training with any noise."""
    watches = [Loss("train", every=None), Loss("test", every=None)]
    if tensors.classes is None:
        return watches
    return [*watches, Accuracy("train", every=None), Accuracy("test", every=None), Calibration()]


def _seeds(seeds: Any) -> tuple[int, ...]:
    try:
        many = range(seeds) if isinstance(seeds, Integral) else seeds
        numbers = tuple(map(operator.index, many))
    except TypeError:
        raise DitherError(
            f"compare: seeds is a whole number or a sequence of them: got {seeds!r}"
        ) from None
    if not numbers:
        raise DitherError(f"compare needs at least one seed: got {seeds!r}")
    return numbers


def _check_fits(make_model: Any, method: Method, x: Tensor) -> None:
    """Raises DitherError if the method does not fit the model."""
    with torch.random.fork_rng(devices=[]):
        is_one = isinstance(make_model, nn.Module) or not callable(make_model)
        model = make_model if is_one else make_model()
        if is_one or not isinstance(model, nn.Module):
            raise DitherError(
                f"compare: make_model is a function that gives a new nn.Module: got {model!r}"
            )
        if method.noise is not None:
            inject(model, method.noise, seed=0, draw=method.draw, by=method.by, example=x).remove()


def _columns(by_seed: dict[int, dict[str, float]], seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """{quantity: [seeds]}, nan for a run that diverged or has no such quantity."""
    diverged = np.array(["diverged" in by_seed[s] for s in seeds])
    names = dict.fromkeys(q for s in seeds for q in by_seed[s] if q != "diverged")
    values = {q: np.array([by_seed[s].get(q, np.nan) for s in seeds]) for q in names}
    values = {q: np.where(diverged, np.nan, v) for q, v in values.items()}
    return {**values, "diverged": diverged.astype(float)} if diverged.any() else values


def _cell(quantity: str, values: np.ndarray | None, *, sign: bool = False) -> str:
    """Mean ± sd of the finite values, with as many digits as the sd allows."""
    if values is None:
        return ""
    if quantity == "diverged":
        return "" if sign else f"{int(values.sum())} of {len(values)}"
    values = values[~np.isnan(values)] * (100 if quantity in PERCENT else 1)
    if not len(values):
        return "–"
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    places = (
        3
        if spread == 0
        else int(np.clip(1 - np.floor(np.log10(spread)), 0, 2 if quantity in PERCENT else 5))
    )
    mean = f"{values.mean():{'+' if sign else ''}.{places}f}"
    unit = " %" if quantity in PERCENT else ""
    return f"{mean} ± {spread:.{places}f}{unit}" if len(values) > 1 else mean


def _method(name: str, method: Any) -> Method:
    if isinstance(method, Method):
        return method
    if method is None or is_noise(method) or isinstance(method, Mapping):
        return Method(method)
    raise DitherError(
        f"method {name!r} must be None, a noise, a mapping from patterns to noises, or a Method: "
        f"got {method!r}"
    )


def _tensors(data: Sequence[Tensor]) -> Tensors:
    if len(data) != 4 or not all(isinstance(part, Tensor) for part in data):
        raise DitherError("data must be four tensors: x_train, y_train, x_test, y_test")
    x, y, x_test, y_test = data
    y, y_test = (t if t.is_floating_point() else t.long() for t in (y, y_test))
    if not (len(x) and len(x_test)):
        raise DitherError(f"data: {len(x)} inputs to train on and {len(x_test)} to test on")
    if not all(bool(torch.isfinite(t).all()) for t in (x, x_test)):
        raise DitherError("data: inputs are not finite")
    if len(x) != len(y) or len(x_test) != len(y_test):
        raise DitherError(
            f"data needs as many targets as inputs: got {len(x)} and {len(y)} to train on, "
            f"{len(x_test)} and {len(y_test)} to test on"
        )
    labels = not y.is_floating_point()
    return Tensors(
        x, y, x_test, y_test, classes=int(torch.cat([y, y_test]).max()) + 1 if labels else None
    )


@dataclass(frozen=True, eq=False)
class Given:
    """A user's tensors, in place of a data set's name."""

    tensors: Tensors
    per_seed: bool = False

    def load(self, seed: int = 0) -> Tensors:
        return self.tensors


@dataclass(frozen=True, eq=False)
class Made:
    """A user's model, in place of a network's specification."""

    make: Callable[[], nn.Module]

    def build(self, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.make()


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error on the test part: Σ share · |accuracy − confidence|, 15 bins."""

    every: int | None = None

    def __call__(self, state: State) -> dict[str, float]:
        z, y = (t[0] for t in state.outputs("test"))
        p = z.softmax(-1).flatten(0, -2)
        return {"calibration error": calibration.error(p, y.flatten(), bins=15)}


@dataclass(frozen=True)
class Price:
    """R of the run's noise over the loss, on the first 1000 test examples, from 4 columns."""

    every: int | None = None
    limit: int = 1000
    parts: int = field(default=4)

    def __call__(self, state: State) -> dict[str, float]:
        if state.noise is None:
            return {}
        x, y = state.examples("test", self.limit)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(state.seed)
            value, R, _ = explicit(state.noise, x, y, state.run.loss, samples=self.parts)
        return {"R/loss": (R / value).item()}
