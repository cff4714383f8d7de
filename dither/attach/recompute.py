"""How a forward that activation checkpointing recomputes finds the draws of the first time again.

torch keeps one record per checkpointed stretch of a network, and the same record is on the Python
stack in the forward and in the recomputation (`torch_internals.stretches`). Stamps are kept under
it, in the order of the calls. Under a foreign checkpoint a forward is known again by a few of its
input's numbers instead.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dither.torch_internals import backward_task, in_backward, saves_elsewhere, stretches

Stamp = tuple[int, int, int]  # (step, micro, call)


def may_be_recomputed() -> bool:
    """Whether something keeps autograd from saving here: checkpoints do, by no_grad or by hooks."""
    return not torch.is_grad_enabled() or saves_elsewhere()


def sample_of(args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor by which a module's call is known again."""
    return next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)


class Calls:
    """The stamps of one stretch by place, and how many of them a backward pass has asked for."""

    def __init__(self) -> None:
        self.stamps: defaultdict[Any, list[Stamp]] = defaultdict(list)
        self.asked: defaultdict[Any, int] = defaultdict(int)
        self.task = -1

    def next(self, place: Any, task: int) -> Stamp | None:
        """The stamps come in the order they were noted, from the start in each backward pass."""
        if task != self.task:
            self.task, self.asked = task, defaultdict(int)
        stamps = self.stamps.get(place, ())
        self.asked[place] += 1
        return stamps[self.asked[place] - 1] if self.asked[place] <= len(stamps) else None


class Ledger:
    """Which (step, micro, call) a forward at a place belonged to. Empty where nothing is
    checkpointed.
    """

    def __init__(self, length: int = 256) -> None:
        self.stretches: WeakKeyDictionary[Any, Calls] = WeakKeyDictionary()
        self.seen: defaultdict[Any, deque[tuple[Tensor | None, Stamp]]] = defaultdict(
            lambda: deque(maxlen=length)
        )
        self.used: set[tuple[Any, Stamp]] = set()
        self.task = -1

    def note(self, place: Any, h: Tensor | None, stamp: Stamp) -> None:
        """Keep a stamp if this forward may be recomputed; also one inside a recomputed stretch
        (nested).
        """
        if not may_be_recomputed():
            return
        fresh, _ = stretches()
        for stretch in fresh:
            self.stretches.setdefault(stretch, Calls()).stamps[place].append(stamp)
        if not fresh and not in_backward():
            self.seen[place].append((glimpse(h), stamp))

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
        """Backward goes from the last to the first: among equal inputs the latest not yet asked for
        is meant.
        """
        if task != self.task:
            self.task, self.used = task, set()
        look = glimpse(h)
        for seen, stamp in reversed(self.seen.get(place, ())):
            if (place, stamp) not in self.used and alike(seen, look):
                self.used.add((place, stamp))
                return stamp
        return None


def glimpse(h: Tensor | None, n: int = 16) -> Tensor | None:
    """A few numbers of a tensor, spread over it: enough to know it again."""
    if h is None or h.numel() == 0:
        return None
    with torch.no_grad():
        flat = h.detach().flatten()
        return flat[:: max(1, flat.numel() // n)].clone()


def alike(a: Tensor | None, b: Tensor | None) -> bool:
    """The same glimpse, bit for bit."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
