"""The common part of the callbacks: the noise of one training, whose steps are `hold` blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dither.attach.inject import Injection, inject
from dither.errors import DitherError


class Attached:
    """The noise that a callback puts on a model; arguments as in `dither.inject`."""

    def __init__(self, what: Any, **how: Any) -> None:
        self.what, self.how = what, how
        self.noise: Injection | None = None
        self.steps = 0  # complete steps
        self._held = ExitStack()
        self._state: dict[str, Any] | None = None  # of a checkpoint, until a model is attached

    @property
    def waiting(self) -> bool:
        """Whether a state waits for a model."""
        return self._state is not None

    def attach(self, model: nn.Module) -> Injection:
        """Put the noise on the model. The noise of an earlier training is removed first."""
        self.detach()
        self.noise, self.steps = inject(model, self.what, **self.how), 0
        if self._state is not None:
            self.restore(self._state)
        return self.noise

    def detach(self) -> None:
        """Take the noise off. A step that is not complete does not count. A second call does
        nothing.
        """
        self._held.close()
        if self.noise is not None:
            self.noise.remove()

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trained vectors of Nodes."""
        return iter(()) if self.noise is None else self.noise.parameters()

    def teach(self, optimisers: Iterable[Optimizer]) -> None:
        """Give Nodes' vectors to the first optimiser, unless an optimiser has them already."""
        groups = [group for optimiser in optimisers for group in optimiser.param_groups]
        known = {id(p) for group in groups for p in group["params"]}
        new = [p for p in self.parameters() if id(p) not in known]
        if new and not groups:
            raise DitherError(
                "the noise has vectors to be trained (Node), and there is no optimiser: make one"
            )
        if new:
            groups[0]["params"].extend(new)

    def hold(self) -> None:
        """Begin a step, unless one has begun. All forwards until `release` are one step of the
        noise. Forwards between `release` and the next `hold` (evaluation) do not count.
        """
        if self.noise is not None and not self.noise.held:
            self.noise.step = self.steps
            self._held.enter_context(self.noise.hold())

    def release(self) -> None:
        """End the step."""
        if self.noise is not None and self.noise.held:
            self.steps += 1
        self._held.close()

    def state(self) -> dict[str, Any]:
        """Seed, clock and vectors."""
        if self.noise is None:
            return {}
        if not self.noise.held:
            self.noise.step = self.steps
        return self.noise.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, now or as soon as a model is attached."""
        if self.noise is None or self.noise.removed:
            self._state = state
            return
        self._state = None
        if state:
            self.noise.load_state_dict(state)
            self.steps = self.noise.step
