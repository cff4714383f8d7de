"""Activation checkpointing: a recomputed forward gets the draws of the first time.

torch keeps one record per checkpointed part of a network. The same record is on the Python stack in
the forward and in the recomputation (`torch_internals.stretches`). The stamps of calls are kept
under that record, in their order. Other implementations of checkpoints have no such record: there a
call is recognised by a few numbers of its input.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dither.errors import DitherError
from dither.torch_internals import backward_task, in_backward, saves_elsewhere, stretches

Stamp = tuple[int, int, int]  # (step, micro, call)


def may_be_recomputed() -> bool:
    """Whether autograd saves nothing here. Checkpoints do that by no_grad or by hooks."""
    return not torch.is_grad_enabled() or saves_elsewhere()


def sample_of(args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor by which a call of a module is recognised."""
    return next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)


class Calls:
    """The stamps of one checkpointed part by place, and how many a backward pass has used."""

    def __init__(self) -> None:
        self.stamps: defaultdict[Any, list[Stamp]] = defaultdict(list)
        self.asked: defaultdict[Any, int] = defaultdict(int)
        self.task = -1

    def next(self, place: Any, task: int) -> Stamp | None:
        """The next stamp, in the order of the calls. Each backward pass starts from the first."""
        if task != self.task:
            self.task, self.asked = task, defaultdict(int)
        stamps = self.stamps.get(place, ())
        self.asked[place] += 1
        return stamps[self.asked[place] - 1] if self.asked[place] <= len(stamps) else None


class Recomputed:
    """A function with a checkpoint, made in a forward of a noisy model. While the backward
    recomputes it, the noise is as in that forward: on or off, and the parameters read the same
    W + δ, also those that no module inside the function is called for.
    """

    def __init__(self, noise: Any, function: Callable, reentrant: bool) -> None:
        self.noise, self.function = noise, function
        self.stamp, self.collecting, self.acted = noise.stamp, noise.collecting, noise.acting()
        self.lasting = not reentrant  # the graph of a recomputation is used by a reentrant one

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not in_backward():
            return self.function(*args, **kwargs)
        noise, before = self.noise, self.noise.paused
        noise.paused = not self.acted["noises"]
        try:
            self.check()
            if calls_a_module(self.function):  # which has hooks, and reads by them
                return self.function(*args, **kwargs)
            with noise.again(self.stamp, self.collecting, self.lasting):
                return self.function(*args, **kwargs)
        finally:
            noise.paused = before

    def check(self) -> None:
        """Raises DitherError if the noise can't be as it was."""
        now, was = self.noise.acting(), self.acted
        same = now["noises"].keys() == was["noises"].keys() and now["σ"] == was["σ"]
        same = same and all(now["noises"][n] is noise for n, noise in was["noises"].items())
        if self.noise.removed or not same or now["draws"] is not was["draws"]:
            raise DitherError(
                "backward recomputes a checkpoint of a forward whose noise was changed since "
                "(removed or set, or the model changed between train and eval mode): call "
                "backward before that"
            )


def calls_a_module(function: Any) -> bool:
    """Whether a function is the call of a module, and nothing else."""
    while isinstance(function, partial | Recomputed):
        function = function.func if isinstance(function, partial) else function.function
    called = getattr(function, "__func__", None) is nn.Module.__call__
    return isinstance(function, nn.Module) or called


class Ledger:
    """{place: stamps of its calls}. Without checkpoints it stays empty."""

    def __init__(self, length: int = 256) -> None:
        self.stretches: WeakKeyDictionary[Any, Calls] = WeakKeyDictionary()
        self.seen: defaultdict[Any, deque[tuple[int, Tensor | None, Stamp]]] = defaultdict(
            lambda: deque(maxlen=length)
        )
        self.number = 0  # of calls in `seen` so far: several of one step have one stamp
        self.used: set[int] = set()
        self.task = -1

    def note(self, place: Any, h: Tensor | None, stamp: Stamp) -> None:
        """Keep a stamp if this forward may be recomputed, also inside a recomputation (nested
        checkpoints).
        """
        if not may_be_recomputed():
            return
        fresh, _ = stretches()
        for stretch in fresh:
            self.stretches.setdefault(stretch, Calls()).stamps[place].append(stamp)
        if not fresh and not in_backward():
            self.number += 1
            self.seen[place].append((self.number, glimpse(h), stamp))

    def recall(self, place: Any, h: Tensor | None) -> Stamp | None:
        """The stamp of the forward that is recomputed here, or None."""
        task = backward_task()
        for stretch in stretches()[1]:
            calls = self.stretches.get(stretch)
            stamp = calls and calls.next(place, task)
            if stamp:
                return stamp
        return self._by_value(place, h, task)

    def _by_value(self, place: Any, h: Tensor | None, task: int) -> Stamp | None:
        """A backward pass goes from the last call to the first: among equal inputs take the latest
        call that is not used yet.
        """
        if task != self.task:
            self.task, self.used = task, set()
        look = glimpse(h)
        for number, seen, stamp in reversed(self.seen.get(place, ())):
            if number not in self.used and alike(seen, look):
                self.used.add(number)
                return stamp
        return None


def glimpse(h: Tensor | None, n: int = 16) -> Tensor | None:
    """A few numbers of a tensor, spread over it, by which it is recognised."""
    if h is None or h.numel() == 0:
        return None
    with torch.no_grad():
        flat = h.detach().flatten()
        return flat[:: max(1, flat.numel() // n)].clone()


def alike(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two glimpses are equal, bit for bit."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
