"""Weight noise under fully_shard (FSDP2).

Each rank holds a shard of every parameter. A module that was given to fully_shard, a *unit*,
gathers its parameters before its forward and frees them after it, and once more around its
backward. So the shadows W + δ of a unit stand between these two moments only. All ranks draw the
whole δ from one key, so the noise is that of the model before sharding. What the backward needs of
W + δ is not kept: it is computed again from the gathered W and the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dither.attach.hooks import Hook
from dither.attach.shadow import Shadow, take
from dither.attach.site import Site
from dither.errors import DitherError
from dither.torch_internals import pop_saving_hooks, saves_elsewhere, saving_hooks


class Gathered(Hook):
    """Before the forward of a unit, after its own hook: its parameters are whole and read W + δ.

    The hook of the latest injection acts for all, in the order in which they displace elsewhere.
    """

    noise: Any  # an Injection

    def __init__(self, noise: Any, unit: nn.Module) -> None:
        super().__init__(noise)
        self.unit = unit
        self.running: list[Kept] = []

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if torch.compiler.is_compiling() and self.noise.on(module):
            raise DitherError(
                "noise on sharded weights (fully_shard) can't be compiled: call the model as it is "
                "written, or put the noise on activations"
            )
        every = on_unit(module)
        if every[-1] is self:
            for hook in reversed(every):
                hook.begin()

    def begin(self) -> None:
        """Put the shadows."""
        noise, kept = self.noise, Kept()
        if noise.reader is None and noise.stamp is not None:
            for site in noise.shadowed:
                if site.sharded is self.unit and site.put is None:
                    site.gathered = True
                    noise.shadow_at(site, *noise.stamp[1:])
                    kept.add(site)
        if kept.redrawn and not saves_elsewhere():  # a checkpoint or an offload decides by itself
            saved_tensors_hooks(kept.pack, kept.unpack).__enter__()
        self.running.append(kept)

    def end(self) -> None:
        """Take the shadows of the forward that began last."""
        if not self.running:
            return
        kept = self.running.pop()
        for site in self.noise.shadowed:
            if site.sharded is self.unit and (site.put is None or kept.has(site)):
                take(site)
                site.gathered = False
        kept.close()


class Freed(Hook):
    """After the forward of a unit, before its own hook frees its parameters: they read W again."""

    def __init__(self, gathered: Gathered) -> None:
        super().__init__(gathered.noise)
        self.gathered = gathered

    def __call__(self, module: nn.Module, args: tuple, out: Any) -> None:
        every = on_unit(module)
        if every and every[-1] is self.gathered:
            for hook in every:
                hook.end()


class Kept:
    """What autograd keeps of the W + δ of one forward of a unit: how to make it from W again."""

    def __init__(self) -> None:
        self.redrawn: dict[int, tuple[Site, Shadow]] = {}  # by the storage of W + δ, kept alive
        self.closed = False

    def has(self, site: Site) -> bool:
        """Whether the shadow at a site is of this forward."""
        return any(site.put is shadow for _, shadow in self.redrawn.values())

    def close(self) -> None:
        """The forward has ended: its hooks go off, and those below that could not before."""
        self.redrawn.clear()
        self.closed = True
        while (top := own(saving_hooks())) is not None and top.closed:
            pop_saving_hooks()

    def add(self, site: Site) -> None:
        """The shadow at a site, if there is one."""
        if isinstance(site.put, Shadow):
            self.redrawn[site.put.untyped_storage()._cdata] = site, site.put

    def pack(self, t: Tensor) -> Any:
        """What is kept in the place of a tensor: for a view of W + δ the view alone."""
        if not self.redrawn or t.layout is not torch.strided or t.is_conj() or t.is_neg():
            return t
        found = self.redrawn.get(t.untyped_storage()._cdata)
        if found is None or t.dtype != found[1].dtype:
            return t
        site, shadow = found
        return site, shadow.from_raw, t.size(), t.stride(), t.storage_offset()

    def unpack(self, kept: Any) -> Tensor:
        """The tensor, in the backward of its unit."""
        if isinstance(kept, Tensor):
            return kept
        site, from_raw, *view = kept
        with torch.no_grad():
            return from_raw(site.raw).as_strided(*view)


def own(hooks: tuple | None) -> Kept | None:
    """The `Kept` whose hooks these are."""
    kept = getattr(hooks[0], "__self__", None) if hooks else None
    return kept if isinstance(kept, Kept) else None


def hooks(noise: Any) -> Mapping[nn.Module, tuple[Gathered, Freed]]:
    """The hooks for each unit with a noisy parameter."""
    found = dict.fromkeys(s.sharded for s in noise.shadowed if s.sharded is not None)
    pairs = {unit: Gathered(noise, unit) for unit in found}
    return {unit: (gathered, Freed(gathered)) for unit, gathered in pairs.items()}


def on_unit(unit: nn.Module) -> list[Gathered]:
    """The hooks of all injections, the earliest first."""
    return [hook for hook in unit._forward_pre_hooks.values() if isinstance(hook, Gathered)]


def release(noise: Any, everyone: bool = False) -> None:
    """End the forwards of units that run with an injection, or with any: before it is removed, and
    after Ctrl-C, which runs no hooks.
    """
    for unit in noise.units.values():
        for hook in on_unit(unit):
            while hook.running and (everyone or hook.noise is noise):
                hook.end()
