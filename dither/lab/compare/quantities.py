"""What is measured after training, on the test part with the noise off.

A quantity is called as quantity(look) → {name: number}. `MEASURES` are those that `compare` knows
by name. A function f(model, x, y) → a number, or a mapping of numbers, is one too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dither import loss as losses
from dither.calling import output
from dither.errors import DitherError
from dither.lab.compare.problem import IGNORED, Problem, each, said
from dither.lab.training.watch import State
from dither.measures import calibration, margins, robustness
from dither.measures.curvature import trace
from dither.regulariser.explicit import explicit

SIGMA = "σ, median over sites"
LIMIT = 1000  # examples for quantities that need gradients
FEW = 256  # examples for R: of noise on the weights of a recurrent net it takes long


class Look:
    """A trained model with the data of its problem. Outputs are computed once."""

    def __init__(self, state: State, problem: Problem, loss: Any, chunk: int) -> None:
        self.model, self.noise, self.problem = state.model, state.noise, problem
        self.loss, self.chunk, self.seed = loss, chunk, state.seed
        self.device = state.run.device  # type: ignore[attr-defined]
        self._seen: dict[str, tuple[Tensor, Any]] = {}

    def part(self, split: str, limit: int | None = None) -> tuple[Any, Any]:
        """X and y of "train" or "test", the first `limit` examples."""
        parts = (self.problem.parts[f"{name}_{split}"][:limit] for name in "xy")
        x, y = (each(part, lambda t: t.to(self.device)) for part in parts)
        return x, y

    @torch.no_grad()
    def outputs(self, split: str) -> tuple[Tensor, Any]:
        """Outputs [n, …] and targets."""
        if split not in self._seen:
            x = self.problem.parts[f"x_{split}"]
            z = [
                output(self.model, each(x[i : i + self.chunk], lambda t: t.to(self.device)))
                for i in range(0, len(x), self.chunk)
            ]
            self._seen[split] = torch.cat(z), self.part(split)[1]
        return self._seen[split]

    def splits(self) -> tuple[str, ...]:
        """The parts that are held: the training part may be read anew in each epoch."""
        return ("train", "test") if self.problem.stream is None else ("test",)


@dataclass(frozen=True)
class Watch:
    """A quantity, called as a watch of the training loop, once at its end."""

    quantity: Any
    loss: Any
    chunk: int
    every: int | None = None
    last: ClassVar[list[Any]] = [None, None]  # the state of the last call, and its look

    def __call__(self, state: State) -> Mapping[str, float]:
        if self.last[0] is not state:  # one look for all quantities of a state
            problem = state.run.data.held()
            self.last[:] = state, Look(state, problem, self.loss, self.chunk)
        return self.quantity(self.last[1])


@dataclass(frozen=True)
class Loss:
    """The mean loss of the comparison, on both parts."""

    def __call__(self, look: Look) -> dict[str, float]:
        found = {}
        for split in reversed(look.splits()):
            z, y = look.outputs(split)
            found[f"loss/{split}"] = float(losses.get(look.loss).per_sample(z, y).mean())
        return found


@dataclass(frozen=True)
class Accuracy:
    """The share of right answers on both parts; of sequences, over the labels that count."""

    def __call__(self, look: Look) -> dict[str, float]:
        return {
            f"accuracy/{split}": accuracy(*look.outputs(split)) for split in reversed(look.splits())
        }


def accuracy(z: Tensor, y: Tensor) -> float:
    """The share of right answers among the labels that count, from outputs z and classes y."""
    classes = z if z.shape[:-1] == y.shape else z.movedim(1, -1)
    counted = y != IGNORED
    return float((classes.argmax(-1) == y)[counted].double().mean())


@dataclass(frozen=True)
class Calibration:
    """The expected calibration error over 15 bins, and what chance gives a calibrated model."""

    def __call__(self, look: Look) -> dict[str, float]:
        z, y = look.outputs("test")
        p = (z if z.shape[:-1] == y.shape else z.movedim(1, -1)).softmax(-1)
        p, y = p.flatten(0, -2), y.flatten()
        found = calibration.reliability(p[y != IGNORED], y[y != IGNORED])
        return {"calibration error": float(found.error), "its chance level": float(found.chance)}


@dataclass(frozen=True)
class Share:
    """R of the method's noise over the loss, on the first 256 examples of each part, from 4
    columns; and σ, the median over its sites.
    """

    def __call__(self, look: Look) -> dict[str, float]:
        if look.noise is None:
            return {}
        found = {}
        for split in reversed(look.splits()):
            x, y = look.part(split, FEW)
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(look.seed)
                value, R, _ = explicit(look.noise, x, y, look.loss, samples=4)
            found["R/loss" if split == "test" else f"R/loss, {split}"] = float(R / value)
        sigmas = [float(look.noise.noise_at(site).sigma) for site in look.noise.ordered]
        return {**found, SIGMA: median(sigmas)}


@dataclass(frozen=True)
class Corruption:
    """Accuracy on corrupted inputs, √(1 − s²) x + s δ (Levi et al. 2022, eq. 8), δ in standard
    deviations of the training inputs.
    """

    levels: Sequence[float] = (0.25, 0.5, 0.75)

    def __call__(self, look: Look) -> dict[str, float]:
        scaled, x, y = _standardised(look, "corruption")
        found = robustness.corruption(scaled, x, y, self.levels, seed=look.seed)
        return {f"accuracy, s = {level:g}": e.value for level, e in found.items()}


@dataclass(frozen=True)
class Attack:
    """Accuracy under PGD in ℓ_∞ with ε in standard deviations of the training inputs, on the first
    1000 test examples; attacked inputs stay in the range of the training inputs.
    """

    strengths: Sequence[float] = (0.05, 0.1)

    def __call__(self, look: Look) -> dict[str, float]:
        scaled, x, y = _standardised(look, "attack")
        x, y = x[:LIMIT], y[:LIMIT]
        bounds = (min(scaled.low, float(x.min())), max(scaled.high, float(x.max())))
        found = robustness.attack(
            scaled, x, y, strengths=self.strengths, bounds=bounds, method="pgd", target="margin"
        )
        return {f"accuracy, PGD ε = {e:g}": a.value for e, a in found.accuracy.items()}


class _Scaled(nn.Module):
    """The model on inputs in standard deviations of the training inputs."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, x.mean(), x.std().clamp_min(1e-12)
        self.low, self.high = (float((e - self.mean) / self.std) for e in (x.min(), x.max()))

    def forward(self, x: Tensor) -> Any:
        return self.model(x * self.std + self.mean)


def _standardised(look: Look, what: str) -> tuple[_Scaled, Tensor, Tensor]:
    x, y = look.part("test")
    train, _ = look.part("train")
    if not isinstance(x, Tensor) or not x.is_floating_point() or y.dim() != 1:
        raise DitherError(
            f"{what} needs one tensor of real inputs and one class each: leave it out of measures"
        )
    scaled = _Scaled(look.model, train)
    return scaled, (x - scaled.mean) / scaled.std, y


@dataclass(frozen=True)
class Margin:
    """The median distance to another answer, to first order, of the first 1000 test examples."""

    def __call__(self, look: Look) -> dict[str, float]:
        x, y = look.part("test", LIMIT)
        if not isinstance(x, Tensor) or not x.is_floating_point() or y.dim() != 1:
            raise DitherError(
                "margin needs one tensor of real inputs and one class each: leave it out of "
                "measures"
            )
        return {"median margin": float(margins.inputs(look.model, x, y).value.median())}


@dataclass(frozen=True)
class Curvature:
    """The trace of the Hessian of the mean loss in the parameters, on the first 1000 training
    examples, exact or to 5 %.
    """

    def __call__(self, look: Look) -> dict[str, float]:
        data = look.part("train" if look.problem.stream is None else "test", LIMIT)
        return {"trace of Hessian": trace(look.model, look.loss, data, precision=0.05).value}


@dataclass(frozen=True)
class Determination:
    """R² on the test part, 1 − Σ(y − z)² / Σ(y − ȳ)²; of several targets the mean of theirs. Of a
    target that is constant there: 1 if it is met, else 0, as scikit-learn has it.
    """

    def __call__(self, look: Look) -> dict[str, float]:
        z, y = _real(look, "r2")
        left, whole = (z - y).square().sum(0), (y - y.mean(0)).square().sum(0)
        each = torch.where(whole > 0, 1 - left / whole, (left == 0).double())
        return {"R²": float(each.mean())}


@dataclass(frozen=True)
class AbsoluteError:
    """The mean of |z − y| on the test part."""

    def __call__(self, look: Look) -> dict[str, float]:
        z, y = _real(look, "mae")
        return {"mean absolute error": float((z - y).abs().mean())}


def _real(look: Look, what: str) -> tuple[Tensor, Tensor]:
    """Outputs and targets of the test part as [n, targets]. Raises DitherError for others."""
    z, y = look.outputs("test")
    if not isinstance(y, Tensor) or z.numel() != y.numel():
        raise DitherError(
            f"{what} needs one real target for each output: got targets of shape "
            f"{list(getattr(y, 'shape', []))} and outputs of {list(z.shape)}; leave it out of "
            "measures"
        )
    return z.double().reshape(len(z), -1), y.double().reshape(len(y), -1)


@dataclass(frozen=True)
class Own:
    """A user's function f(model, x, y) → a number or a mapping of numbers, on the test part."""

    name: str
    function: Callable[..., Any]

    def __call__(self, look: Look) -> dict[str, float]:
        try:
            with torch.no_grad():
                found = self.function(look.model, *look.part("test"))
        except DitherError:
            raise
        except Exception as error:
            raise DitherError(f"measure {self.name!r} fails with {said(error)}") from error
        named = found if isinstance(found, Mapping) else {self.name: found}
        try:
            return {str(name): float(value) for name, value in named.items()}
        except (TypeError, ValueError) as error:
            raise DitherError(
                f"measure {self.name!r} must give a number or a mapping of numbers: got {found!r}"
            ) from error


MEASURES: dict[str, Any] = {
    "loss": Loss(),
    "accuracy": Accuracy(),
    "calibration": Calibration(),
    "R": Share(),
    "corruption": Corruption(),
    "attack": Attack(),
    "margin": Margin(),
    "trace": Curvature(),
    "r2": Determination(),
    "mae": AbsoluteError(),
}
USUAL = ("loss", "accuracy", "calibration", "R")
KNOWN = tuple(map(type, MEASURES.values()))
LABELS = ("accuracy", "calibration", "corruption", "attack", "margin")  # need class numbers
REALS = ("r2", "mae")  # need real targets


def quantities(given: Any, problem: Problem) -> list[Any]:
    """The quantities of `measures=`: names, objects of this module, functions, or {name: function}.

    Raises DitherError for anything else, and for names that need classes where there are none.
    """
    if given is None:
        given = [n for n in USUAL if problem.classes is not None or n not in LABELS]
    if isinstance(given, str) or callable(given):
        given = [given]
    named = given.items() if isinstance(given, Mapping) else [(None, one) for one in given]
    found = []
    for name, one in named:
        if isinstance(one, str):
            if one not in MEASURES:
                raise DitherError(
                    f"measures: there is no {one!r}; there are {', '.join(MEASURES)}, and any "
                    "function f(model, x, y)"
                )
            if one in LABELS and problem.classes is None:
                raise DitherError(f"measures: {one} needs class numbers, and targets are real")
            if one in REALS and problem.classes is not None:
                raise DitherError(
                    f"measures: {one} needs real targets, and whole numbers are taken for classes: "
                    "give the targets as floats"
                )
            found.append(MEASURES[one])
        elif isinstance(one, KNOWN):
            found.append(one)
        elif callable(one):
            found.append(Own(name or getattr(one, "__name__", type(one).__name__), one))
        else:
            raise DitherError(
                f"measures: {one!r} is neither a name ({', '.join(MEASURES)}) nor a function"
            )
    return found


def sense(quantity: str) -> str:
    """Which is better, "low" or "high"; "" where neither is."""
    heads = {"loss/": "low", "accuracy": "high", "calibration error": "low", "median": "high"}
    heads |= {"R²": "high", "mean absolute error": "low"}
    return next((way for head, way in heads.items() if quantity.startswith(head)), "")
