"""Weight noise under fully_shard (FSDP2).

Each rank holds a shard of every parameter. A module that was given to fully_shard, a *unit*,
gathers its parameters before its forward and frees them after it, and once more around its
backward. So the shadows W + δ of a unit stand between these two moments only. All ranks draw the
whole δ from one key, so the noise is that of the model before sharding. What the backward needs of
W + δ is not kept: it is computed again from the gathered W and the key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dither.attach.hooks import Hook
from dither.attach.shadow import take
from dither.attach.site import Site
from dither.errors import DitherError


class Gathered(Hook):
    """Before the forward of a unit, after its own hook: its parameters are whole and read W + δ."""

    noise: Any  # an Injection

    def __init__(self, noise: Any, unit: nn.Module) -> None:
        super().__init__(noise)
        self.unit, self.kept = unit, Kept()

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        noise, stamp = self.noise, self.noise.stamp
        if torch.compiler.is_compiling() and noise.on(module):
            raise DitherError(
                "noise on sharded weights (fully_shard) can't be compiled: call the model as it is "
                "written, or put the noise on activations"
            )
        if noise.reader is not None or stamp is None:
            return
        self.kept = Kept()
        for site in noise.shadowed:
            if site.sharded is self.unit and site.put is None:
                site.gathered = True
                if again := noise.shadow_at(site, *stamp):
                    self.kept.add(site, again)
        self.kept.hooks.__enter__()
        self.kept.entered = True


class Freed(Hook):
    """After the forward of a unit, before its own hook frees its parameters: they read W again."""

    noise: Any  # an Injection

    def __init__(self, gathered: Gathered) -> None:
        super().__init__(gathered.noise)
        self.before = gathered

    def __call__(self, module: nn.Module, args: tuple, out: Any) -> None:
        kept = self.before.kept
        if kept.entered:
            kept.hooks.__exit__(None, None, None)
            kept.entered = False
        for site in self.noise.shadowed:
            if site.sharded is self.before.unit:
                take(site)
                site.gathered = False


class Kept:
    """What autograd keeps of the W + δ of one forward: where to find W, and how to add δ again."""

    def __init__(self) -> None:
        self.again: dict[int, tuple[Site, Callable[[Tensor], Tensor]]] = {}
        self.hooks = saved_tensors_hooks(self.pack, self.unpack)
        self.entered = False

    def add(self, site: Site, again: Callable[[Tensor], Tensor]) -> None:
        """Do not keep the shadow that was put at a site."""
        assert site.put is not None
        self.again[_storage(site.put)] = site, again

    def pack(self, t: Tensor) -> Any:
        """What is kept in the place of a tensor: for a view of W + δ the view alone."""
        if (found := self.again.get(_storage(t))) is None:
            return t
        return *found, t.size(), t.stride(), t.storage_offset()

    def unpack(self, kept: Any) -> Tensor:
        """The tensor, in the backward of its unit."""
        if isinstance(kept, Tensor):
            return kept
        site, again, *view = kept
        with torch.no_grad():
            return again(site.raw).as_strided(*view)


def _storage(t: Tensor) -> int:
    """The identity of the memory of a tensor; 0 for one without."""
    try:
        return t.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return 0


def hooks(noise: Any) -> Mapping[nn.Module, tuple[Gathered, Freed]]:
    """The hooks for each unit with a noisy parameter."""
    found = dict.fromkeys(s.sharded for s in noise.shadowed if s.sharded is not None)
    pairs = {unit: Gathered(noise, unit) for unit in found}
    return {unit: (gathered, Freed(gathered)) for unit, gathered in pairs.items()}
