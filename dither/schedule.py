"""Schedules of σ over the training steps. The σ of a noise is a number, one of these, or any
function of the step.

The step counts forwards of the model in train mode from 0 (`inject`). All forwards inside one
`hold` are one step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dither.errors import DitherError


def _positive(self: Linear | Cosine | Until) -> None:
    if not (isinstance(self.steps, int) and self.steps >= 1):
        raise DitherError(
            f"{type(self).__name__} needs a whole number of steps ≥ 1: got steps={self.steps!r}"
        )


@dataclass(frozen=True)
class Constant:
    """σ at every step; the same as the number itself."""

    sigma: float

    def __call__(self, step: int) -> float:
        return self.sigma


@dataclass(frozen=True)
class Until:
    """σ before step `steps`, 0 from then on."""

    sigma: float
    steps: int
    __post_init__ = _positive

    def __call__(self, step: int) -> float:
        return self.sigma if step < self.steps else 0.0


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` in equal increments over `steps` steps, then `end`."""

    start: float
    end: float
    steps: int
    __post_init__ = _positive

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Cosine:
    """From `start` to `end` along half a cosine over `steps` steps, then `end`."""

    start: float
    end: float
    steps: int
    __post_init__ = _positive

    def __call__(self, step: int) -> float:
        falling = (1 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2
        return self.end + (self.start - self.end) * falling
