"""Schedules of σ over the training steps. The σ of a noise is a number, one of these, or any
function of the step. `Balanced` alone looks at the net: `rebalance` sets it.

The step counts forwards of the model in train mode from 0 (`inject`). All forwards inside one
`hold` are one step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dither.errors import DitherError, check_whole, is_number


def _checked(self: Constant | Linear | Cosine | Until) -> None:
    """Raises DitherError unless every σ is a number ≥ 0, and `steps` a whole number ≥ 1."""
    name = type(self).__name__
    for which in ("sigma", "start", "end"):
        value = getattr(self, which, 0.0)
        if not is_number(value) or not 0 <= float(value) < math.inf:
            raise DitherError(f"{name}: {which} is a σ, a number ≥ 0: got {value!r}")
    steps = getattr(self, "steps", 1)
    check_whole(f"{name}: steps", steps)


@dataclass(frozen=True)
class Constant:
    """σ at every step; the same as the number itself."""

    sigma: float
    __post_init__ = _checked

    def __call__(self, step: int) -> float:
        return self.sigma


@dataclass(frozen=True)
class Until:
    """σ before step `steps`, 0 from then on."""

    sigma: float
    steps: int
    __post_init__ = _checked

    def __call__(self, step: int) -> float:
        return self.sigma if step < self.steps else 0.0


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` in equal increments over `steps` steps, then `end`."""

    start: float
    end: float
    steps: int
    __post_init__ = _checked

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Cosine:
    """From `start` to `end` along half a cosine over `steps` steps, then `end`."""

    start: float
    end: float
    steps: int
    __post_init__ = _checked

    def __call__(self, step: int) -> float:
        falling = (1 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2
        return self.end + (self.start - self.end) * falling


@dataclass(frozen=True)
class Balanced:
    """σ at which R is a share of the loss, at equal parts of the sites that have it; measured anew
    every `every` steps by `rebalance`, which the loop calls before each forward.

        noise = dither.inject(model, dither.Additive(dither.schedule.Balanced(0.1)))
        for x, y in batches:
            dither.rebalance(noise, x, y)
            …

    ratio  R / loss, > 0
    every  steps, ≥ 1
    bound  the largest noise in sizes of what it displaces, as in `balance`
    of     a fixed loss that R is a share of, in the loss' units; None: the loss at each measure

    0 until the net has learnt something (`rebalance`).
    """

    ratio: float = 0.1
    every: int = 50
    bound: float = 0.5
    of: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("ratio", self.ratio), ("bound", self.bound), ("of", self.of)):
            if name == "of" and value is None:
                continue
            if not is_number(value) or not float(value) > 0:
                raise DitherError(f"Balanced: {name} is a number > 0: got {value!r}")
        if math.inf in (self.ratio, self.of):
            raise DitherError("Balanced: ratio is a share of the loss: got inf")
        check_whole("Balanced: every", self.every)

    def __call__(self, step: int) -> float:
        return 0.0

    def __str__(self) -> str:
        return f"kept at R = {self.ratio:g} of {'the loss' if self.of is None else f'{self.of:g}'}"
