"""The graph that autograd recorded, pulled back through by hand: many columns at once.

Autograd takes one column of √H at a time and works out the same slopes for each. Here the nodes
between the output and the taps are gone through with K columns in front, g [K, B, …]: a slope is
worked out once, a product has K·B rows, and a gradient that nobody else reads is overwritten. Rules
for nodes are in `backward_rules`; a node that has none is asked itself, column by column, so any
graph of torch's own functions can be gone through. Where R is differentiated, all of this is
recorded in its turn, and nothing is overwritten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from dither.engine.backward_rules import RULES, Edge, Rule, asked
from dither.engine.tap import Tap

ELEMENTS = 2**21  # of the largest gradient with its columns, at most: 8 MiB of float32
ALONE = 0.1  # the share of elements in steps that take one column after another, at most


class Step:
    """A node on the way from the output to a tap, and what has come in for each of its outputs."""

    def __init__(self, node: Any, recorded: bool) -> None:
        self.node, self.recorded = node, recorded
        self.shapes = [tuple(m.shape) for m in node._input_metadata]
        self.types = [m.dtype for m in node._input_metadata]
        self.next: list[Edge] = []
        self.sources = 0
        self.skipped = False  # another step does its work
        self.alone = False  # takes one column after another
        self.inbox: list[Tensor | None] = [None] * len(self.shapes)
        self.own = False
        self.rule: Rule

    @property
    def tap(self) -> Any:
        """What to tell a gradient that comes by, if this is a tap."""
        node = self.node
        return partial(node.ear, node.n) if getattr(node, "_forward_cls", None) is Tap else None

    def give(self, nr: int, g: Tensor, own: bool) -> None:
        """One more gradient of output `nr`; `own` if nobody else holds it. As autograd does, sum it
        over what was broadcast.
        """
        g = g if g.dtype == self.types[nr] else g.to(self.types[nr])
        if isinstance(g, Tensor) and g.shape[1:] != self.shapes[nr]:
            shape = self.shapes[nr]
            ones = [1] * (g.dim() - 1 - len(shape))
            g = g.sum_to_size(len(g), *ones, *shape).reshape(len(g), *shape)
        before = self.inbox[nr]
        if before is not None:
            g, own = (before.add_(g) if self.own and not self.recorded else before + g), True
        self.inbox[nr], self.own = g, own

    def take(self) -> tuple[list[Tensor | None], bool]:
        """All of them; the inbox is empty afterwards."""
        found = self.inbox.copy()
        self.inbox[:] = [None] * len(found)
        return found, self.own and len(found) == 1 and not self.recorded


class Hooked(TorchFunctionMode):
    """Notes whether a forward may have put hooks on gradients, by a tensor or by its node: they
    stand in no node, so that a graph that has some can't be told from one that has none.
    """

    found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.register_hook, _GRAD_FN):
            self.found = True
        return func(*args, **(kwargs or {}))


_GRAD_FN = Tensor.grad_fn.__get__  # pyright: ignore


class Replay:
    """All steps from z to its taps, in order; `total` columns are going to be asked for.

    `fits` is False where the graph has a Python function that is no tap, or something that is not
    saved but recomputed: what happens there in a backward is not known. `recorded`: what the taps
    catch can be differentiated.
    """

    def __init__(self, z: Tensor, total: int, *, recorded: bool = False) -> None:
        self.steps, self.fits = _steps(z, recorded), True
        self.nr, self.total, self.recorded = z.output_nr, total, recorded
        for step in self.steps:
            if step.tap is None and (
                isinstance(step.node, BackwardCFunction) or _unpacked(step.node)
            ):
                self.fits = False
                return
        with torch.set_grad_enabled(recorded):
            for step in self.steps:
                step.rule = _rule(step, total)
        sizes = [(sum(map(_size, step.shapes)), step.alone) for step in self.steps]
        self.largest = max((n for n, _ in sizes), default=1)
        self.alone = sum(n for n, alone in sizes if alone) / max(1, sum(n for n, _ in sizes))

    @property
    def chunk(self) -> int:
        """How many columns to take at once; one where much is done column by column anyway."""
        if self.alone > ALONE:
            return 1
        most = max(1, min(self.total, ELEMENTS // max(1, self.largest)))
        return math.ceil(self.total / math.ceil(self.total / most))  # chunks of about one size

    def __call__(self, columns: Tensor) -> None:
        """Pull columns [K, *z.shape] back; the taps catch them."""
        if not self.steps:
            return
        with torch.set_grad_enabled(self.recorded):
            self.steps[0].give(self.nr, columns, own=False)
            for step in self.steps:
                g, own = step.take()
                if all(part is None for part in g):
                    continue
                outs, own = step.rule(g, own)
                for edge, out in zip(step.next, outs, strict=True):
                    if out is not None:
                        edge.step.give(edge.nr, out, own and len(step.next) == 1)


def _steps(z: Tensor, recorded: bool) -> list[Step]:
    """The steps in an order in which each stands before what it passes on to."""
    found: dict[Any, Step | None] = {}  # None: leads to no tap
    done: list[Step] = []
    stack: list[tuple[Any, bool]] = [(z.grad_fn, False)]
    while stack:
        node, seen = stack.pop()
        if not seen:
            if node in found:
                continue
            found[node] = None
            stack.append((node, True))
            stack += [(n, False) for n, _ in node.next_functions if n is not None]
            continue
        to = [
            Edge(i, step, nr)
            for i, (n, nr) in enumerate(node.next_functions)
            if n is not None and (step := found[n]) is not None
        ]
        step = Step(node, recorded)
        if to or step.tap is not None:
            step.next = to
            found[node] = step
            done.append(step)
            for edge in to:
                edge.step.sources += 1
    return done[::-1]


def _unpacked(node: Any) -> bool:
    """Whether what a node has saved comes back through hooks, as under activation checkpointing."""
    kind = type(node)
    if kind not in _SAVED:
        _SAVED[kind] = [name for name in dir(node) if name.startswith("_raw_saved_")]
    found = (getattr(node, name) for name in _SAVED[kind])
    return any(getattr(saved, "unpack_hook", None) is not None for saved in found)


_SAVED: dict[type, list[str]] = {}  # the names of what a kind of node saves


def _rule(step: Step, total: int) -> Rule:
    catch = step.tap
    if catch is not None:
        return _passed(step, catch)
    make = RULES.get(step.node.name())
    made = make(step, total) if make is not None else None
    return made or asked(step)


def _passed(step: Step, catch: Callable[[Tensor], None]) -> Rule:
    """A tap: what comes by is shown, and passed on if anybody upstream wants it."""
    n, kept = len(step.next), step.node.kept

    def rule(g: Sequence[Any], own: bool) -> tuple[list[Any], bool]:
        catch(g[0])
        return [g[0]] * n, own and not kept

    return rule


def _size(shape: Sequence[int]) -> int:
    n = 1
    for k in shape:
        n *= k
    return n
