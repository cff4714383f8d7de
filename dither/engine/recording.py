"""One recorded forward, and columns pulled back through it.

    recording = Recording(parameters)          {name: parameter} whose uses are met
    h = recording.tap(name, h)                 in the forward: an activation to be told of
    graph = recording(forward)                 runs it
    graph.pull(columns, catch)                 catch(n, g) for activation n; → gradients of the
    parameters

A column is [*z.shape]. Torch only: no noise, no site, no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dither.engine.certificate import Compared, coarsest
from dither.engine.ghost import Gradient, Use
from dither.engine.kinds import Caught, Kept
from dither.engine.replay import Hooked, Replay
from dither.engine.tap import Ear, Tap
from dither.engine.uses import Uses
from dither.precision import wide
from dither.torch_internals import inside_functorch, version

Catch = Callable[[int, Any], None]


class Tapped(NamedTuple):
    """An activation that was met: its name, the dimension whose rows a sample must have for itself
    (None: its elements), its shape, the value that must stay and that one's version.
    """

    name: str
    rows: int | None
    shape: torch.Size
    value: Tensor | None
    version: int


class Recording:
    """A forward under way. `recorded`: what is pulled back is differentiated again."""

    def __init__(self, parameters: Mapping[str, Tensor], device: Any, *, recorded: bool) -> None:
        self.parameters, self.recorded = parameters, recorded
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.ear, self.taps = Ear(), 0
        self.activations: dict[int, Tapped] = {}
        self.used: dict[int, list[Use]] = {}
        self.unseen: list[str] = []  # activations met where gradients are off
        self.uses = Uses(parameters, self._used)

    def tap(
        self,
        name: str,
        h: Tensor,
        *,
        normed: bool = False,
        rows: int | None = None,
        value: Tensor | None = None,
    ) -> tuple[int, Tensor]:
        """(n, h): the number under which its gradients will be told, and what the forward goes on
        with. `normed`: their norm is all that is asked; `value`: what must stay as it is.
        """
        if not torch.is_grad_enabled() or inside_functorch():
            self.unseen.append(name)
        n = self._number()
        held = h if value is None else value
        self.activations[n] = Tapped(name, rows, h.shape, value, version(held))
        return n, Tap.apply(h, self.anchor, self.ear, n, False, normed)  # pyright: ignore

    def _used(self, out: Tensor, uses: list[Use]) -> Tensor:
        n = self._number()
        self.used[n] = uses
        return Tap.apply(out, self.anchor, self.ear, n, True, False)  # pyright: ignore

    def _number(self) -> int:
        self.taps += 1
        return self.taps - 1

    def __call__(self, forward: Callable[[], Tensor]) -> Graph:
        """Run the forward."""
        with self.uses if self.parameters else nullcontext(), Hooked() as hooked:
            try:
                z = forward()
            finally:  # else the mode, its tap and this object would hold each other
                self.uses.tap = None
        self.ear.recording = False
        return Graph(self, z, hooked.found)


class Graph:
    """A recorded forward: z [B, …], the activations met, the uses of parameters.

    stray         parameters that no rule has met wholly: pull them back one sample at a time
    overwritten   activations whose tensor was changed in place after they were met
    doubtful      functions in it whose gradients may not be differentiable
    eps           of the coarsest type in it, by which two ways of one gradient may differ
    differentiates  the forward takes gradients itself: an activation's noise may reach z through
    them
    """

    def __init__(self, recording: Recording, z: Tensor, hooked: bool) -> None:
        self.z, self.parameters, self.recorded = z, recording.parameters, recording.recorded
        self.anchor, self.ear, self.hooked = recording.anchor, recording.ear, hooked
        self.activations, self.used = recording.activations, recording.used
        self.uses = recording.uses.uses
        self.unseen = {*recording.unseen, *(recording.uses.unseen - recording.uses.met)}
        self.differentiates = self.ear.early
        self.replay: Replay | None = None
        self.total = 1
        recording.uses.settle(z.shape[0])
        walked = recording.uses.walk(z)
        self.nodes, self.stray, self.doubtful = walked.nodes, walked.stray, walked.doubtful
        self.eps = coarsest(*walked.types)
        if self.differentiates:
            self.stray = set(self.parameters)

    @property
    def overwritten(self) -> set[str]:
        met = self.activations.values()
        return {t.name for t in met if t.value is not None and version(t.value) != t.version}

    def plan(self, total: int) -> None:
        """Look for a faster way for `total` columns than one after another: `replay`."""
        self.total = max(total, 1)
        self.forget_operands()
        if not (self.z.requires_grad and total) or (self.recorded and total == 1) or self.hooked:
            return
        found = Replay(self.z, total, recorded=self.recorded)
        if found.fits and not (self.recorded and found.chunk == 1):
            self.replay = found

    @property
    def chunk(self) -> int:
        """How many columns one pull takes."""
        return self.replay.chunk if self.replay else 1

    def pull(
        self, columns: Tensor, catch: Catch, compared: Compared | None = None
    ) -> dict[str, Gradient]:
        """Pull columns [K, *z.shape] back (K = 1 without a replay); {parameter: its gradients}.

        What comes by enters the mixture that is `compared`.
        """
        self._forget()
        if not self.z.requires_grad:
            return {}
        if compared is not None:
            compared.add(columns)
        self._listen(columns, partial(self._hear, catch, compared), replay=self.replay)
        found: dict[str, list[Use]] = {}
        for use in self.uses:
            if use.caught is not None:
                found.setdefault(use.name, []).append(use)
        return {name: Gradient(uses, self.parameters[name]) for name, uses in found.items()}

    def own(self, column: Tensor, leaf: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch's gradients of some parameters, by autograd."""
        if not self.z.requires_grad or not leaf:
            return {}
        keep = {"retain_graph": True, "create_graph": self.recorded, "allow_unused": True}
        found = torch.autograd.grad(self.z, list(leaf.values()), column, **keep)
        return {n: g for n, g in zip(leaf, found, strict=True) if g is not None}

    def tell(self, columns: Tensor, listener: Catch, *, replay: Replay | None) -> None:
        """Pull columns back, without recording, and let every tap tell `listener`."""
        if replay is not None:
            for part in columns.split(max(1, replay.chunk)):
                self._listen(part, listener, replay=replay)
        else:
            for column in columns:
                self._listen(column.unsqueeze(0), listener, replay=None, recorded=False)

    @property
    def fingerprint(self) -> tuple:
        """By which a graph of the same functions and shapes is known again."""
        used = tuple((u.name, type(u.kind).__name__, u.region, u.out) for u in self.uses)
        met = tuple((t.name, t.rows, tuple(t.shape)) for t in self.activations.values())
        return tuple(self.z.shape), self.recorded, used, met, self.nodes

    def let_go(self) -> None:
        """Drop the columns under way. They hold nodes of this graph, and its taps hold the uses:
        reference counting alone would never free that circle.
        """
        self._forget()

    def forget_operands(self) -> None:
        """What was worked out of the operands is worked out anew."""
        for use in self.uses:
            use.kind.kept = Kept(self.total)

    def _forget(self) -> None:
        for use in self.uses:
            use.caught = None

    def compare(self, compared: Compared) -> None:
        """Pull the mixture back once more, a random half of its samples silenced."""
        if compared.column is not None:
            self.tell(compared.silenced(), compared.second, replay=self.replay)

    def _hear(self, catch: Catch, compared: Compared | None, n: int, g: Any) -> None:
        """A tap tells its columns."""
        if compared is not None:
            compared.first(n, g)
        if n in self.used:
            caught = Caught(wide(g))
            for use in self.used[n]:
                use.catch(caught)
        else:
            catch(n, g)

    def _listen(
        self,
        columns: Tensor,
        listener: Catch,
        *,
        replay: Replay | None,
        recorded: bool | None = None,
    ) -> None:
        self.ear.listener = listener
        try:
            if replay is not None:
                replay(columns)
            else:
                torch.autograd.grad(
                    self.z,
                    self.anchor,
                    columns[0],
                    retain_graph=True,
                    create_graph=self.recorded if recorded is None else recorded,
                    allow_unused=True,
                )
        finally:
            self.ear.listener = None
