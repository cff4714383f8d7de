"""The clock of an injection: which draw a forward takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING

import torch

from dither.errors import DitherError

if TYPE_CHECKING:
    from typing_extensions import Self

    from dither.attach.site import Site


class Phase(Enum):
    """What a forward is for a clock."""

    STEP = auto()  # it begins a step
    PART = auto()  # a further forward of a held step
    MIRROR = auto()  # the last forward again, with mirrored draws
    RECOMPUTED = auto()  # an earlier forward again, for a backward pass
    QUIET = auto()  # a forward without noise


def _stay(step: int, micro: int) -> tuple[int, int]:
    return step, micro


# (step, micro) before a forward → (step, micro) of the forward
MOVES: dict[Phase, Callable[[int, int], tuple[int, int]]] = {
    Phase.STEP: lambda step, micro: (step + 1, 0),
    Phase.PART: lambda step, micro: (step, micro + 1),
    Phase.MIRROR: _stay,
    Phase.RECOMPUTED: _stay,
    Phase.QUIET: _stay,
}


class Clock:
    """Counts forwards in steps. A step is one forward, or all forwards inside one `hold`.

    Each site has a clock of its own. It counts where no forward of the whole model does.
    """

    ordered: list[Site]

    def __init__(self) -> None:
        self.step = 0  # steps begun; schedules and keys count the first as step 0
        self.micro = 0  # index of the forward inside a held step
        self.holds = 0  # `hold` blocks so far
        self.open_hold = 0  # index of the `hold` block that is open; 0 for none
        self.last_hold = 0  # index of the last `hold` block that advanced this clock
        self.mirror = False

    @property
    def held(self) -> bool:
        """Whether a `hold` block is open."""
        return self.open_hold > 0

    @contextmanager
    def hold(self) -> Iterator[Self]:
        """All forwards inside count as one step: weight noise keeps its draw, activations draw
        anew in each.

        For gradient accumulation: put one `hold` around the micro-batches of an optimiser step. It
        belongs around compiled code, not inside it. A `hold` inside a `hold` does nothing.
        """
        _outside_compiled_code("hold")
        if self.held:
            yield self
            return
        self.holds += 1
        self.open_hold = self.holds
        try:
            yield self
        finally:
            self.open_hold = 0

    @contextmanager
    def mirrored(self) -> Iterator[Self]:
        """A forward inside repeats the draws of the last one, mirrored: W − δ after W + δ. It
        begins no step. It is the second half of an antithetic pair: odd orders of the noise cancel
        where the law is symmetric.

            (loss(model(x), y) / 2).backward()
            with noise.mirrored():
                (loss(model(x), y) / 2).backward()

        Laws that are drawn from a uniform number u take 1 − u: `dropout` is symmetric only at
        p = .5. A dropout layer of the model draws anew. A half is one call of the model. If the
        parts of the model are called one by one and there is weight noise, put both halves into one
        `hold`. If there are two injections, mirror both. `mirrored` belongs around compiled code,
        not inside it. Raises DitherError if there was no forward yet.
        """
        _outside_compiled_code("mirrored")
        if not self.step:
            raise DitherError(
                "mirrored repeats the draws of the last forward: there was none yet; call "
                "the model once before"
            )
        before, self.mirror = self.mirror, True
        try:
            yield self
        finally:
            self.mirror = before

    @contextmanager
    def own_steps(self) -> Iterator[Self]:
        """Each forward inside begins a step, also inside `hold` and `mirrored`. Afterwards all
        clocks read what they read before.
        """
        clocks = [(c, c.step, c.micro, c.last_hold) for c in (self, *self.ordered)]
        before = self.open_hold, self.mirror
        self.open_hold, self.mirror = 0, False
        try:
            yield self
        finally:
            self.open_hold, self.mirror = before
            for clock, step, micro, last_hold in clocks:
                clock.step, clock.micro, clock.last_hold = step, micro, last_hold

    def phase(self, clock: Clock | Site) -> Phase:
        """What a noisy forward that begins now is for a clock. Raises DitherError inside `mirrored`
        if the clock has counted no forward.
        """
        if self.mirror:
            if not clock.step:
                where = getattr(clock, "name", "this model")
                raise DitherError(
                    f"mirrored repeats the draws of the last forward, and {where!r} had none yet: "
                    "call it once before"
                )
            return Phase.MIRROR
        return Phase.PART if self.held and clock.last_hold == self.open_hold else Phase.STEP

    def advance(self, clock: Clock | Site, phase: Phase) -> None:
        """Move a clock by a forward."""
        clock.step, clock.micro = MOVES[phase](clock.step, clock.micro)
        if phase is Phase.STEP:
            clock.last_hold = self.open_hold

    def follow(self, site: Site) -> None:
        """Set a site's clock to the common one."""
        site.step, site.micro, site.last_hold = self.step, self.micro, self.last_hold

    def now(self, clock: Clock | Site) -> tuple[int, int]:
        """(step, micro) of a forward's draws; ~micro if the draws are mirrored."""
        return clock.step, ~clock.micro if self.mirror else clock.micro


def _outside_compiled_code(what: str) -> None:
    """torch.compile would run the `with` once, when it traces, and not when the code runs."""
    if torch.compiler.is_compiling():
        raise DitherError(f"`with noise.{what}():` belongs around compiled code, not inside it")
