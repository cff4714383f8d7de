"""Weight noise: the parameters of a model read W + δ for the time of a forward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dither.attach.compiled import Traced, check_not_kept
from dither.attach.shadow import Statistics, current, put, take
from dither.noise.noises import plus
from dither.torch_internals import around_checkpoints, in_backward, saving

if TYPE_CHECKING:
    from dither.attach.site import Site
    from dither.noise.draw import Source
    from dither.noise.here import Here


class Weights:
    """The part of an injection that displaces parameters (`shadow`)."""

    model: nn.Module
    ordered: list[Site]
    shadowed: list[Site]  # the sites that are parameters
    modules_of_sites: list[nn.Module]
    statistics: Statistics | None
    collecting: bool
    _inside: list[int]
    handle: int
    stamp: tuple[int, int] | None = None  # (step, micro) of the forward that reads W + δ
    on: Callable[[nn.Module], bool]
    scale: Callable[[Site, int], float]
    noise_at: Callable[[Site, int], Any]
    here: Callable[[Site, Tensor], Here]
    source: Callable[[Site, int, int, int], Source]

    def displacement(self, site: Site, step: int, rng: Any = None) -> Tensor | None:
        """δ of a parameter at a step, or None if the step does not displace it."""
        scale, noise = self.scale(site, step), self.noise_at(site, step)
        if scale == 0 or noise.sigma == 0:
            return None
        here = self.here(site, site.parameter)
        delta = noise.displace(here, rng or self.source(site, step, 0, 0))
        return delta if scale == 1 else scale * delta

    def shadow(self, module: nn.Module, step: int, micro: int) -> None:
        """Let the parameters used inside `module` read W + δ."""
        if self.statistics and self.acts(step):
            self.statistics.put()
        self.stamp = step, micro
        below = None if module is self.model else {id(m) for m in module.modules()}
        for site in self.shadowed:
            if below is not None and not any(id(owner) in below for owner, _ in site.owners):
                continue
            if site.sharded is None or self._whole_again(site):
                self.shadow_at(site, step, micro)

    def _whole_again(self, site: Site) -> bool:
        """Whether a sharded parameter is gathered for the backward of its unit."""
        site.gathered = in_backward() and type(site.raw).__name__ != "DTensor"
        return site.gathered

    @contextmanager
    def again(
        self, module: nn.Module, stamp: tuple[int, int] | None, collecting: bool
    ) -> Iterator[None]:
        """The parameters read W + δ as in an earlier forward of `module`."""
        if self._inside or not (self.shadowed or self.statistics):
            yield
            return
        self._inside.append(0)  # the modules that are called inside begin nothing
        self.collecting = collecting
        try:
            if stamp is not None:
                self.shadow(module, *stamp)
            yield
        finally:
            self._inside.clear()
            self.unshadow()
            self.collecting = False

    def acting(self) -> dict[str, Any]:
        """The noises that are on, by site."""
        return {s.name: s.noise for s in self.ordered if self.on(s.module)}

    def shadow_at(self, site: Site, step: int, micro: int) -> Callable[[Tensor], Tensor] | None:
        """Let a parameter read W + δ. Returns W ↦ W + δ, or None where the noise is off."""
        if not self.on(site.module):
            return None
        check_not_kept(site)
        scale, noise = self.scale(site, step), self.noise_at(site, step)
        if not (scale and noise.sigma):
            return None
        displaced = partial(self._displaced, site, step, micro)
        again = partial(displaced, current(site))
        with saving() if in_backward() else nullcontext():  # not among what a checkpoint counts
            put(site, again(), again)
        return displaced

    def _displaced(self, site: Site, step: int, micro: int, w: Tensor) -> Tensor:
        source = self.source(site, step, micro, 0)
        return plus(self.noise_at(site, step), self.here(site, w), source, self.scale(site, step))

    def shadow_traced(self) -> None:
        """The same while torch.compile traces: the draw happens when the compiled code runs."""
        if not torch.compiler.is_exporting():  # a strict export warns of side effects
            self._calls = {}
        if self.statistics and any(map(self.on, self.modules_of_sites)):
            self.statistics.put()
        for site in self.shadowed:
            if self.on(site.module) and site.sharded is None:
                check_not_kept(site)
                w = current(site)
                put(site, w + site.unit.displace(self.here(site, w), Traced(self.handle, site, 0)))

    def unshadow(self) -> None:
        """Let every parameter read W again."""
        if not torch.compiler.is_compiling():
            self.stamp = None
            around_checkpoints(self.handle, None)
        for site in self.shadowed:
            take(site)
            if site.gathered:
                site.gathered = False
        if self.statistics:
            self.statistics.take()

    def acts(self, step: int) -> bool:
        """Whether a step displaces anything."""
        return any(
            self.on(s.module) and self.scale(s, step) * self.noise_at(s, step).sigma
            for s in self.ordered
        )

    def warn_of_parents(self, module: nn.Module) -> None:
        """Warn of weight noise that is absent because a part of the model is called by itself."""
        for site in self.shadowed:
            over = [owner for owner, _ in site.owners if owner is not module]
            parent = next((owner for owner in over if module in owner.modules()), None)
            if parent is not None and self.on(parent):
                warnings.warn(
                    f"weight noise on {site.name!r} is absent: {type(module).__name__} is called "
                    f"outside a call of {type(parent).__name__}, whose parameter it is; call the "
                    "whole model, model(x), or leave that parameter out of the noise",
                    stacklevel=2,
                )
                return
