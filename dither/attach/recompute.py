"""How a forward that activation checkpointing recomputes finds the draws of the first time again.

PyTorch keeps one record per checkpointed stretch of a network (`_CheckpointFrame`, or the node of
`CheckpointFunction`), and the same record is on the Python stack in the forward and in the
recomputation. Stamps are kept under it, in the order of the calls. Under a foreign checkpoint a
forward is known again by a few of its input's numbers instead.
"""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.utils.checkpoint
from torch import Tensor

Stamp = tuple[int, int, int]  # (step, micro, call)

_FILE = torch.utils.checkpoint.__file__
_hooks = getattr(
    torch._C._autograd,  # pyright: ignore
    "_top_saved_tensors_default_hooks",
    lambda _: True,
)


def in_backward() -> bool:
    """A forward inside a backward pass is a recomputation (activation checkpointing)."""
    return torch._C._current_graph_task_id() != -1


def may_be_recomputed() -> bool:
    """Whether something keeps autograd from saving here: checkpoints do, by no_grad or by hooks."""
    return not torch.is_grad_enabled() or _hooks(False) is not None


def sample_of(args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor by which a module's call is known again."""
    return next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)


def stretches() -> tuple[list[Any], list[Any]]:
    """The records of the checkpoints around here, the innermost first: (run for the first time,
    recomputed).
    """
    fresh, again = [], []
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _FILE:
            name, has = frame.f_code.co_name, frame.f_locals
            if name == "checkpoint" and "gen" in has and has["gen"].gi_frame is not None:
                fresh.append(has["gen"].gi_frame.f_locals["new_frame"])
            elif name in ("forward", "backward") and "ctx" in has:
                (fresh if name == "forward" else again).append(has["ctx"])
            elif name == "unpack_hook" and "frame" in has:
                again.append(has["frame"])
        frame = frame.f_back
    return fresh, again


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
        task = torch._C._current_graph_task_id()
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
