"""The common part of the callbacks: the noise of one training, whose steps are `hold` blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dither.attach.hooks import Hook
from dither.attach.inject import Injection, inject
from dither.calling import evaluating
from dither.errors import DitherError, check_whole
from dither.noise.draw import key
from dither.regulariser.balance import own_random_state
from dither.regulariser.explicit import explicit
from dither.regulariser.rebalance import rebalance
from dither.schedule import Balanced


class Attached:
    """The noise that a callback puts on a model; arguments as in `dither.inject`."""

    def __init__(
        self,
        what: Any,
        *,
        loss: Any = "cross_entropy",
        batch: Any = None,
        log_every: int | None = None,
        **how: Any,
    ) -> None:
        if log_every is not None:
            check_whole("log_every", log_every, why="in steps")
        self.what, self.how, self.log_every = what, how, log_every
        self.loss, self.batch = loss, batch  # for schedule.Balanced and log_every
        self.noise: Injection | None = None
        self.steps = 0  # complete steps
        self.seen: Seen | None = None
        self._held, self._seen = ExitStack(), ExitStack()
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

    def watch(self) -> None:
        """Note the batches of the model's forwards, for loops that do not tell a callback; only
        if a site has a `schedule.Balanced`, or if R is logged.
        """
        if self.noise is not None and (self.balances or self.log_every):
            self.seen = Seen(self.noise)
            handle = self.noise.model.register_forward_pre_hook(self.seen, with_kwargs=True)
            self._seen.callback(handle.remove)

    def detach(self) -> None:
        """Take the noise off. A step that is not complete does not count. A second call does
        nothing.
        """
        self._held.close()
        self._seen.close()
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

    @property
    def balances(self) -> bool:
        """Whether a site has a `schedule.Balanced`."""
        sites = () if self.noise is None else self.noise.ordered
        return any(isinstance(site.noise.sigma, Balanced) for site in sites)

    def rebalance(self, batch: Any) -> None:
        """`dither.rebalance` on a batch of the loop, between two steps."""
        if self.noise is not None and not self.noise.held and self.balances:
            self.noise.step = self.steps
            x, y = (self.batch or pair)(batch)
            rebalance(self.noise, x, y, self.loss)

    def numbers(self, batch: Any) -> dict[str, float]:
        """{"dither/R", "dither/R over loss", "dither/sigma SITE"} on a batch, every `log_every`
        steps; else nothing. R is that of two random columns, in eval mode.
        """
        noise = self.noise
        if noise is None or noise.held or not self.log_every or self.steps % self.log_every:
            return {}
        noise.step = self.steps + 1  # the σ of the step that comes
        x, y = (self.batch or pair)(batch)
        with (
            own_random_state(key(noise.seeds[0], "log", self.steps)),
            evaluating(noise.model),
            torch.no_grad(),
        ):
            loss, R, _ = explicit(noise, x, y, self.loss, samples=2)
        found = {"dither/R": float(R), "dither/R over loss": float(R / loss)}
        sigmas = {n: float(noise.noise_at(site).sigma) for n, site in noise.sites.items()}
        noise.step = self.steps
        return found | {f"dither/sigma {name}": sigma for name, sigma in sigmas.items()}

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


class Seen(Hook):
    """The last batch that a model was given in train mode."""

    batch: Any = None

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if module.training:
            self.batch = kwargs or args


def pair(batch: Any) -> tuple[Any, Any]:
    """(x, y) of a batch: a pair, or a mapping with "labels". Raises DitherError for others."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping) and "labels" in batch:
        return {name: part for name, part in batch.items() if name != "labels"}, batch["labels"]
    raise DitherError(
        "R of the noise needs x and y, and a batch of this loop is neither a pair nor a mapping "
        f"with 'labels': got {type(batch).__name__}; say how, Noise(…, batch=lambda batch: (x, y))"
    )
