"""The clock of an injection: which draw a forward takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dither.errors import DitherError

if TYPE_CHECKING:
    from typing_extensions import Self

    from dither.site import Site


class Clock:
    """Forwards counted in steps, and what makes some of them one step.

    A site has a clock of its own, which only counts where no forward of the whole model does.
    """

    ordered: list[Site]

    def __init__(self) -> None:
        self.step = 0  # forwards begun; the first has the step 0 in schedules and keys
        self.micro = 0  # which forward of a held step; ~m: that of m once more, mirrored
        self.turn = 0  # the hold that moved the clock last
        self.holds, self.held = 0, False

    @contextmanager
    def hold(self) -> Iterator[Self]:
        """All forwards inside count as one step: weight noise keeps its draw, activations draw
        afresh for each.

        For gradient accumulation: one `hold` around the micro-batches of an optimiser step.
        """
        if self.held:  # a hold inside a hold is the outer one
            yield self
            return
        self.holds, self.held = self.holds + 1, True
        try:
            yield self
        finally:
            self.held = False

    @contextmanager
    def mirrored(self) -> Iterator[Self]:
        """Forwards inside repeat the draws of the last one, mirrored: W − δ after W + δ. They count
        as no step. The other half of an antithetic pair, in which odd orders of the noise cancel:

            (loss(model(x), y) / 2).backward()
            with noise.mirrored():
                (loss(model(x), y) / 2).backward()

        Laws that are drawn from a uniform number u take 1 − u. Raises DitherError before the first
        forward.
        """
        if not self.step:
            raise DitherError("mirrored repeats the draws of the last forward: there was none yet")
        clocks = [clock for clock in (self, *self.ordered) if clock.step and clock.micro >= 0]
        for clock in clocks:
            clock.micro = ~clock.micro
        try:
            yield self
        finally:
            for clock in clocks:
                clock.micro = ~clock.micro

    def advance(self, clock: Clock | Site) -> None:
        """A new step; inside `hold` only once, then the next forward of the same step; inside
        `mirrored` the same forward again.
        """
        if clock.micro < 0:
            return
        if self.held and clock.turn == self.holds:
            clock.micro += 1
        else:
            clock.step, clock.micro = clock.step + 1, 0
            clock.turn = self.holds if self.held else 0
