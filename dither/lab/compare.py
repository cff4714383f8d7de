"""Which noise helps on one's own problem: every method from the same seeds, one table.

    dither.compare(make_model, data, {"none": None, "gni": Additive(0.1), …}, seeds=5)

Seed s gives every method the same first weights, the same order of the data and its own draws, so
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

__all__ = ["Comparison", "Method", "compare"]

SCALES = {"accuracy/test": 100, "accuracy/train": 100, "calibration error": 100}
MARK = {"accuracy/test": " %", "accuracy/train": " %", "calibration error": " %"}


@dataclass(frozen=True)
class Method:
    """A noise and how it is trained with: what a bare noise in `compare` stands for.

    objective  "noise": train with it; "sampled", "explicit": on loss + R instead
    draw, by   how Weight is drawn (see `inject`)
    optimiser  in place of the comparison's own
    """

    noise: Any = None
    objective: str = "noise"
    draw: str = "each"
    by: str = "tensor"
    optimiser: Any = None


@dataclass
class Comparison:
    """The last values: `values[method][quantity]` is [seeds], nan where a run diverged.

    Prints as a table of mean ± sd over seeds, with the differences from the first method.
    """

    values: dict[str, dict[str, np.ndarray]]
    seeds: tuple[int, ...]

    def difference(self, method: str, quantity: str) -> np.ndarray:
        """Of a method from the first one, seed by seed [seeds]."""
        first = next(iter(self.values.values()))
        return self.values[method][quantity] - first[quantity]

    def __str__(self) -> str:
        quantities = list(dict.fromkeys(q for found in self.values.values() for q in found))
        first = next(iter(self.values))
        rows = [["", *quantities]]
        for method, found in self.values.items():
            rows.append([method, *(_spelt(q, found.get(q)) for q in quantities)])
            if method != first:
                own = [q for q in quantities if q in found and q in self.values[first]]
                gaps = {q: self.difference(method, q) for q in own}
                rows.append(
                    [f"  − {first}", *(_spelt(q, gaps.get(q), sign=True) for q in quantities)]
                )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                c.ljust(w) if i == 0 else c.rjust(w)
                for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        n = len(self.seeds)
        return "\n".join([*lines, f"mean ± standard deviation over {n} seed{'s' * (n > 1)}"])

    __repr__ = __str__


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
    """Train every method on every seed and measure them alike.

    make_model  () → a new nn.Module; torch's generator is seeded for it.
    data        (x_train, y_train, x_test, y_test).
    methods     {name: None, a noise, a mapping from patterns to noises, or a `Method`}; the first
                is what the others are compared with.
    optimiser   SGD, Adam or RMSprop of `dither.lab`; Node vectors are trained with it too.
    progress    called as progress(method, seed, done, total) after each run.

    Quantities: loss and accuracy (integer targets) on both parts, the calibration error (15 bins)
    and R of the method's noise over the loss, both on the test part. Raises DitherError for data
    or methods that can't be used, before anything is trained.
    """
    tensors = _tensors(data)
    if not isinstance(methods, Mapping):
        raise DitherError(f"methods is a mapping such as {{'none': None}}: got {methods!r}")
    chosen = {name: _method(name, method) for name, method in methods.items()}
    if not chosen:
        raise DitherError("compare needs at least one method, such as {'none': None}: got none")
    seeds = _seeds(seeds)
    if not isinstance(epochs, Integral) or epochs < 1:
        raise DitherError(f"compare: epochs is a whole number ≥ 1: got {epochs!r}")
    for given in (optimiser, *(m.optimiser for m in chosen.values() if m.optimiser)):
        if not hasattr(given, "build"):
            raise DitherError(
                "compare: the optimiser is one of dither.lab.training.loop, such as SGD(0.05): got "
                f"{given!r}; it is built anew for each run"
            )
    for method in chosen.values():
        _tried(make_model, method, tensors.x_train[:2])
    watches = [Loss("train", every=None), Loss("test", every=None)]
    if tensors.classes is not None:
        watches += [Accuracy("train", every=None), Accuracy("test", every=None), Calibration()]
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
    rows: dict[str, dict[int, dict[str, float]]] = {name: {} for name in runs}
    total = len(runs) * len(seeds)
    for done, (seed, name) in enumerate([(s, n) for s in seeds for n in runs], 1):
        found = train(runs[name], (seed,), Silent(), device)[seed]
        rows[name][seed] = {quantity: value for _, quantity, value in found}
        if progress is not None:
            progress(name, seed, done, total)
    return Comparison({name: _columns(by_seed, seeds) for name, by_seed in rows.items()}, seeds)


def _seeds(seeds: Any) -> tuple[int, ...]:
    try:
        many = range(seeds) if isinstance(seeds, Integral) else seeds
        found = tuple(map(operator.index, many))
    except TypeError:
        raise DitherError(
            f"compare: seeds is a whole number or a sequence of them: got {seeds!r}"
        ) from None
    if not found:
        raise DitherError(f"compare needs at least one seed: got {seeds!r}")
    return found


def _tried(make_model: Any, method: Method, x: Tensor) -> None:
    """Raises DitherError, before anything is trained, where the method does not fit the model."""
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
    diverged = np.array(["diverged" in by_seed[s] for s in seeds])
    names = dict.fromkeys(q for s in seeds for q in by_seed[s] if q != "diverged")
    found = {q: np.array([by_seed[s].get(q, np.nan) for s in seeds]) for q in names}
    found = {q: np.where(diverged, np.nan, v) for q, v in found.items()}
    return {**found, "diverged": diverged.astype(float)} if diverged.any() else found


def _spelt(quantity: str, values: np.ndarray | None, *, sign: bool = False) -> str:
    if values is None:
        return ""
    if quantity == "diverged":
        return "" if sign else f"{int(values.sum())} of {len(values)}"
    values = values[~np.isnan(values)] * SCALES.get(quantity, 1)
    if not len(values):
        return "–"
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    places = (
        3
        if spread == 0
        else int(np.clip(1 - np.floor(np.log10(spread)), 0, 2 if quantity in MARK else 5))
    )
    mean = f"{values.mean():{'+' if sign else ''}.{places}f}"
    return f"{mean} ± {spread:.{places}f}{MARK.get(quantity, '')}" if len(values) > 1 else mean


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
            f"data: as many targets as inputs are needed: got {len(x)} and {len(y)} to train on, "
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
