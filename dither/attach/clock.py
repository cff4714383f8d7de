"""The clock of an injection: which draw a forward takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dither.errors import DitherError

if TYPE_CHECKING:
    from typing_extensions import Self

    from dither.attach.site import Site


class Clock:
    """Forwards counted in steps, and what makes some of them one step.

    A site has a clock of its own, which only counts where no forward of the whole model does.
    """

    ordered: list[Site]

    def __init__(self) -> None:
        self.step = 0  # forwards begun; the first has the step 0 in schedules and keys
        self.micro = 0  # which forward of a held step
        self.turn = 0  # the hold that moved the clock last
        self.holds, self.held = 0, False
        self.mirror = False

    @contextmanager
    def hold(self) -> Iterator[Self]:
        """All forwards inside count as one step: weight noise keeps its draw, activations draw
        afresh for each.

        For gradient accumulation: one `hold` around the micro-batches of an optimiser step. Around
        compiled code, not inside it.
        """
        _outside_compiled_code("hold")
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
        """A forward inside repeats the draws of the last one, mirrored: W − δ after W + δ. It is no
        step of its own. The other half of an antithetic pair, in which odd orders of the noise
        cancel where the law is symmetric:

            (loss(model(x), y) / 2).backward()
            with noise.mirrored():
                (loss(model(x), y) / 2).backward()

        Laws that are drawn from a uniform number u take 1 − u: `dropout` is symmetric at p = .5
        only; a dropout of the model's own draws anew. A half is one call of the model; where its
        parts are called one by one, both halves go into one `hold` if there is weight noise. Of two
        injections each has to be mirrored. Around compiled code, not inside it. Raises DitherError
        where there was no forward yet.
        """
        _outside_compiled_code("mirrored")
        if not self.step:
            raise DitherError("mirrored repeats the draws of the last forward: there was none yet")
        before, self.mirror = self.mirror, True
        try:
            yield self
        finally:
            self.mirror = before

    @contextmanager
    def apart(self) -> Iterator[Self]:
        """Forwards inside have steps of their own, whatever holds or mirrors around; the clocks
        stand afterwards as they did before.
        """
        clocks = [(c, c.step, c.micro, c.turn) for c in (self, *self.ordered)]
        before, self.held, self.mirror = (self.held, self.mirror), False, False
        try:
            yield self
        finally:
            self.held, self.mirror = before
            for clock, step, micro, turn in clocks:
                clock.step, clock.micro, clock.turn = step, micro, turn

    def advance(self, clock: Clock | Site) -> None:
        """A new step; inside `hold` only once, then the next forward of the same step; inside
        `mirrored` the same forward again.
        """
        if self.mirror:
            if not clock.step:
                where = getattr(clock, "name", "this model")
                raise DitherError(
                    f"mirrored repeats the draws of the last forward, and {where!r} had none yet"
                )
            return
        if self.held and clock.turn == self.holds:
            clock.micro += 1
        else:
            clock.step, clock.micro = clock.step + 1, 0
            clock.turn = self.holds if self.held else 0

    def now(self, clock: Clock | Site) -> tuple[int, int]:
        """(step, micro) of a forward's draws; ~micro where they are mirrored."""
        return clock.step, ~clock.micro if self.mirror else clock.micro


def _outside_compiled_code(what: str) -> None:
    """torch.compile would run the `with` once, when it traces, and not when the code runs."""
    if torch.compiler.is_compiling():
        raise DitherError(f"`with noise.{what}():` belongs around compiled code, not inside it")
