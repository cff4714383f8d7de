"""Weight noise: the parameters of a model read W + δ for the time of a forward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dither.attach.compiled import Traced, check_not_kept
from dither.attach.recompute import Recomputed
from dither.attach.shadow import Shadow, Statistics, current, put, take
from dither.calling import tensors
from dither.noise.noises import plus
from dither.torch_internals import (
    after_backward,
    around_checkpoints,
    backward_task,
    functions_behind,
    in_backward,
    saving,
)

if TYPE_CHECKING:
    from dither.attach.keys import Draws
    from dither.attach.site import Site
    from dither.noise.draw import Source
    from dither.noise.here import Here


READ = (
    "the forward takes it as it is registered (parameters(), named_parameters(), state_dict() or a "
    "list of its own) and not as an attribute of its module (self.weight), without the noise; read "
    "the attribute, or leave that parameter out of the noise"
)
Stamp = tuple[nn.Module, int, int]  # (the outermost module, step, micro) of a forward
Drawn = dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]]  # {site: (W + δ, W ↦ W + δ)}


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
    told_of_reads: bool = False
    stamp: Stamp | None = None  # of the forward that reads W + δ
    drawn_again: tuple[int, dict[Stamp, Drawn]] | None = None  # (backward pass, W + δ)
    kept: dict[str, dict[str, Any]]
    draws: Draws
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

    def shadow(self, module: nn.Module, step: int, micro: int, lasting: bool = False) -> None:
        """Let the parameters used inside `module` read W + δ. lasting: through a backward, for
        functions that are recomputed and not differentiated.
        """
        if self.statistics and self.acts(step):
            self.statistics.put()
        self.stamp = module, step, micro
        values = self._through_backward(self.stamp) if lasting else None
        below = None if module is self.model else {id(m) for m in module.modules()}
        for site in self.shadowed:
            if below is not None and not any(id(owner) in below for owner, _ in site.owners):
                continue
            if site.sharded is None or self._whole_again(site):
                if values is not None and (drawn := values.get(site.name)) is not None:
                    _put_again(site, *drawn)
                else:
                    self.shadow_at(site, step, micro, values)

    def _whole_again(self, site: Site) -> bool:
        """Whether a sharded parameter is gathered for the backward of its unit."""
        site.gathered = in_backward() and type(site.raw).__name__ != "DTensor"
        return site.gathered

    def _through_backward(self, stamp: Stamp) -> Drawn:
        """The W + δ that this backward pass has drawn again, of one forward."""
        task = backward_task()
        if self.drawn_again is None or self.drawn_again[0] != task:
            self.drawn_again = task, {}
            after_backward(partial(setattr, self, "drawn_again", None))
        return self.drawn_again[1].setdefault(stamp, {})

    def shadow_at(self, site: Site, step: int, micro: int, values: Drawn | None = None) -> None:
        """Let a parameter read W + δ, if the noise is on."""
        if not self.on(site.module):
            return
        check_not_kept(site)
        scale, noise = self.scale(site, step), self.noise_at(site, step)
        if not (scale and noise.sigma):
            return
        self.source(site, step, micro, 0)  # the ranks agree on seeds, before they are bound
        source = partial(self.draws.source, site, step, micro, 0)
        displaced = partial(_displaced, noise, scale, source, partial(self.here, site))
        w = current(site)
        if values is not None:
            with torch.no_grad(), saving():
                values[site.name] = displaced(w), displaced
            _put_again(site, *values[site.name])
            return
        with saving() if in_backward() else nullcontext():  # not among what a checkpoint counts
            put(site, displaced(w), partial(displaced, w))
        if site.sharded is not None and isinstance(site.put, Shadow):
            below = getattr(w, "from_raw", None)  # of another injection
            site.put.from_raw = displaced if below is None else lambda raw: displaced(below(raw))

    @contextmanager
    def again(self, stamp: Stamp | None, collecting: bool, lasting: bool) -> Iterator[None]:
        """The parameters read W + δ as in an earlier forward."""
        around_checkpoints(self, begins=True)  # there may be one inside
        if self._inside:
            yield
            return
        self._inside.append(0)  # the modules that are called inside begin nothing
        self.collecting = collecting
        try:
            if stamp is not None:
                self.shadow(*stamp, lasting=lasting)
            yield
        finally:
            self._inside.clear()
            self.unshadow()
            self.collecting = False

    def acting(self) -> dict[str, Any]:
        """What says which noise a forward gets."""
        noises = {s.name: s.noise for s in self.ordered if self.on(s.module)}
        return {"noises": noises, "σ": dict(self.kept.get("sigma", {})), "draws": self.draws}

    def recomputed(self, function: Callable, reentrant: bool) -> Callable:
        """What a checkpoint that is made in a forward recomputes in the place of its function."""
        return Recomputed(self, function, reentrant)

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

    def unshadow(self, out: Any = None) -> None:
        """Let every parameter read W again, after a forward that gave `out`."""
        past = []
        if not torch.compiler.is_compiling():
            past = self._past(out)
            self.stamp = None
            around_checkpoints(self, begins=False)
        for site in self.shadowed:
            take(site)
            if site.gathered:
                site.gathered = False
        if self.statistics:
            self.statistics.take()
        if past:
            warnings.warn(f"weight noise on {past[0]!r} is absent in a part: {READ}", stacklevel=5)

    def acts(self, step: int) -> bool:
        """Whether a step displaces anything."""
        return any(
            self.on(s.module) and self.scale(s, step) * self.noise_at(s, step).sigma
            for s in self.ordered
        )

    def _past(self, out: Any) -> list[str]:
        """The sites that lack their noise because the forward reads W itself. The first forward
        with a graph tells.
        """
        if self.told_of_reads or in_backward():
            return []
        put = [site for site in self.shadowed if site.made is not None]
        found = [t for t in tensors(out) if t.grad_fn is not None] if put else []
        self.told_of_reads = bool(found)
        return read_past(put, found) if found else []

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


def read_past(sites: Iterable[Site], outputs: Iterable[Tensor]) -> list[str]:
    """The sites whose parameter the outputs depend on otherwise than by what stands for it."""
    sites = list(sites)
    raw = {id(site.parameter): site.name for site in sites}
    until = [site.made for site in sites if site.made is not None]
    leaves = (
        getattr(node, "variable", None) for z in outputs for node in functions_behind(z, until)
    )
    return list(dict.fromkeys(raw[id(leaf)] for leaf in leaves if id(leaf) in raw))


def _put_again(site: Site, value: Tensor, displaced: Callable[[Tensor], Tensor]) -> None:
    """Let a parameter read a W + δ that was drawn before, as a leaf."""
    w = current(site)
    put(site, value.detach().requires_grad_(w.requires_grad), partial(displaced, w))


def _displaced(noise: Any, scale: float, source: Callable, here: Callable, w: Tensor) -> Tensor:
    """W + δ."""
    return plus(noise, here(w), source(), scale)
