"""The noise of one `inject`: its clock, its draws, and the way to take it off.

Activations are displaced by forward hooks, parameters by shadows (`shadow`). So nothing is
ever written to a parameter, the graph keeps W + δ for the backward, and the optimiser updates W.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dither.attach.clock import Clock
from dither.attach.compiled import Traced, register
from dither.attach.draws import Draws
from dither.attach.find import check_whole, replicas
from dither.attach.hooks import Enter, real
from dither.attach.ranks import ranks
from dither.attach.recompute import Ledger, sample_of
from dither.attach.seeds import ordinals, seeds
from dither.attach.shadow import Statistics, clear, current, put, take
from dither.attach.site import Site, Sites, groups
from dither.attach.threads import OneAtATime
from dither.calling import unfused
from dither.noise.noises import plus
from dither.torch_internals import calls, forget_compiled, in_backward


class Injection(Clock, Draws, nn.Module):
    """The noise of one `inject`: its sites, its trained vectors, its clock, and the way to take it
    off.

    `parameters()` are the vectors of Nodes (`nodes[site]`, with "/" for "." in the name),
    `state_dict()` holds them with the seed and the step; both are separate from the model's. As a
    context manager it removes itself at the end.
    """

    beside_its_model = True  # no place for another injection's sites
    model: nn.Module
    wrapper: nn.Module  # as it was given: DistributedDataParallel, or the model itself

    def __init__(
        self,
        model: nn.Module,
        sites: Sites,
        seed: int | Sequence[int] | None,
        draw: str,
        by: str,
        when: str,
        batch_dim: int,
    ) -> None:
        nn.Module.__init__(self)
        Clock.__init__(self)
        self.__dict__["model"] = model  # no submodule: its parameters stay its own
        self.sites, self.draw, self.by, self.when = sites, draw, by, when
        self.batch_dim = batch_dim
        self.stack = int(isinstance(seed, Sequence))
        self.seeds = seeds(seed)
        beside = [n for n in on_model(model) if not n.sites.keys().isdisjoint(sites)]
        self.ordinals = ordinals(self.seeds, [(n.seeds, n.ordinals) for n in beside])
        self.seed_given = seed is not None or ranks() > 1  # else the ranks have yet to agree
        self.compared = False  # whether the ranks have compared their seeds
        self.nodes = nn.ParameterDict()
        self.paused = self.removed = False
        self.groups = groups(sites, by)
        self.ordered = list(sites.values())
        self.shadowed = [site for site in self.ordered if site.side == "parameter"]
        self.owned: dict[int, list[tuple[Site, str]]] = {}  # a module's own noisy parameters
        for site in self.shadowed:
            for owner, name in site.owners:
                self.owned.setdefault(id(owner), []).append((site, name))
        self.modules_of_sites = list({id(s.module): s.module for s in self.ordered}.values())
        self.handle = register(self)
        self.statistics: Statistics | None = None  # of BatchNorms, kept from noisy forwards
        self.collecting = False  # the running forward collects statistics that are kept from noise
        self.turn_of = OneAtATime(model)
        self.reader: Any = None  # explicit and expected read the sites through this instead
        self.layouts: dict[Any, Any] = {}  # where parameters have their samples, learnt by explicit
        self._inside: list[int] = []  # the modules whose forward is running, outermost first
        self._calls: dict[int, int] = {}
        self._unfused = ExitStack()
        self._alone: set[int] = set()  # modules of which it was said that they run alone
        self._ledger = Ledger()
        self._handles: list[Any] = []

    # ------------------------------------------------------------------------------ what users call

    def pause(self) -> None:
        """No noise until `resume`; the clock stands still too."""
        self.paused = True
        forget_compiled()

    def resume(self) -> None:
        """Noise again, from where it was paused."""
        self.paused = False
        forget_compiled()

    @contextmanager
    def off(self) -> Iterator[Injection]:
        """No noise inside, whatever is raised there; afterwards as before."""
        before = self.paused
        self.pause()
        try:
            yield self
        finally:
            self.paused = before
            forget_compiled()

    def remove(self) -> None:
        """Take every hook off the model; its output is bit for bit what it was. Harmless when
        called twice.
        """
        self.unhook()
        self.unshadow()
        self.removed = True
        forget_compiled()

    def unhook(self) -> None:
        """Take every hook off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Injection:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"noise on {len(self.sites)} sites of {type(self.model).__name__}\n{self.sites}"

    def __getstate__(self) -> dict[str, Any]:
        """Without hooks, clocks of running forwards and records of checkpoints: a copy is off its
        model, as if removed.
        """
        return {k: v for k, v in self.__dict__.items() if k not in _OF_THE_MOMENT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.update(_moment(), handle=register(self), wrapper=self.model, removed=True)
        self.turn_of = OneAtATime(self.model)
        for site in self.shadowed:
            site.let_go()

    def get_extra_state(self) -> dict[str, Any]:
        """Seed and clock, so that a resumed run goes on as if it had never stopped."""
        clocks = {name: (site.step, site.micro) for name, site in self.sites.items()}
        return {
            "seeds": self.seeds,
            "ordinals": self.ordinals,
            "step": self.step,
            "micro": self.micro,
            "clocks": clocks,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_extra_state`; sites are matched by name."""
        self.seeds, self.step, self.micro = tuple(state["seeds"]), state["step"], state["micro"]
        self.ordinals = tuple(state.get("ordinals", (0,) * len(self.seeds)))
        self.seed_given = True
        for name, (step, micro) in state["clocks"].items():
            if name in self.sites:
                self.sites[name].step, self.sites[name].micro = step, micro

    # ------------------------------------------------------------------------------------ the clock

    def on(self, module: nn.Module) -> bool:
        """Whether a module is noisy now: like dropout, in its train mode."""
        off = self.paused or self.collecting
        return not off and (self.when == "always" or module.training)

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """A forward starts; the outermost begins a step."""
        if getattr(module, "_is_replica", False):  # DataParallel around it, after inject
            raise replicas(type(module).__name__)
        if self.shadowed:
            check_whole(type(module).__name__, module)
        if module is self.model and id(module) in self._inside and _left(module):
            for noise in on_model(module):  # Ctrl-C ran no hooks: clear away what it left
                noise._inside.clear()
                for site in noise.shadowed:
                    clear(site)
                noise.unshadow()
        if not self._inside:
            if not module.training:  # fused layers of eval mode call none of their parts
                self._unfused.enter_context(unfused())
            self.begin(module, args, kwargs)
        self._inside.append(id(module))
        if self.shadowed and self.on(module):  # a checkpoint may recompute this module alone
            self._ledger.note(id(module), sample_of(args, kwargs), (*self.now(self), 0))

    def leave(self, module: nn.Module) -> None:
        """A forward ends, perhaps by an exception; after the outermost the parameters read W
        again.
        """
        if id(module) in self._inside:
            while self._inside.pop() != id(module):
                pass
        if not self._inside:
            self._unfused.close()
            self.unshadow()
            self.collecting = False

    def begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """A new step, unless it is recomputed for a backward, or nothing is noisy."""
        self.collecting = self.statistics is not None and self.statistics.collected()
        if in_backward():
            if self.shadowed or self.statistics:
                stamp = self._ledger.recall(id(module), sample_of(args, kwargs))
                self.shadow(module, *(stamp[:2] if stamp else self.now(self)))
        elif self.on(module) or any(map(self.on, self.modules_of_sites)):
            self._calls = {}
            self.advance(self)
            for site in self.shadowed:  # compiled code goes on from here
                site.step, site.micro, site.turn = self.step, self.micro, self.turn
            self.shadow(module, *self.now(self))
            if self.shadowed and module is not self.model and id(module) not in self._alone:
                self._alone.add(id(module))
                self._warn_of_parents(module)

    def _warn_of_parents(self, module: nn.Module) -> None:
        """Say which noise is absent where a part of the model is called by itself."""
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

    def acts(self, step: int) -> bool:
        """Whether anything is displaced in a step."""
        return any(
            self.on(s.module) and self.scale(s, step) * self.noise_at(s, step).sigma
            for s in self.ordered
        )

    def moment(self, site: Site, call: int) -> tuple[int, int]:
        """(step, micro): the common clock's, or the site's own where no forward of the whole model
        moves that one.
        """
        if self._inside:
            site.step, site.micro, site.turn = self.step, self.micro, self.turn
        elif call == 0 and not in_backward():
            self.advance(site)
            self.step = max(self.step, site.step)
        return self.now(site)

    # ------------------------------------------------------------------------------------ the draws

    def activation(self, site: Site, h: Tensor, module: nn.Module) -> Tensor | None:
        """Give h + δ where the noise is on, None where it is off. Called by the hooks."""
        if self.reader is not None:
            return self.reader.activation(site, h)
        if not self.on(module):
            return None
        real(site, h)
        if torch.compiler.is_compiling():
            traced = Traced(self.handle, site, self._next(site))
            return h + site.unit.displace(self.here(site, h), traced)
        site.seen = tuple(h.shape)
        step, micro, call = self._stamp(site, h)
        noise = self.noise_at(site, step)
        if noise.sigma == 0:
            return None
        return plus(noise, self.here(site, h), self.source(site, step, micro, call))

    def _stamp(self, site: Site, h: Tensor) -> tuple[int, int, int]:
        """(step, micro, call) of this call of a site; that of the first time where a checkpoint
        recomputes it.
        """
        stamp = self._ledger.recall(site.name, h) if in_backward() else None
        if stamp is None:
            call = self._next(site) if self._inside else 0
            stamp = (*self.moment(site, call), call)
        self._ledger.note(site.name, h, stamp)
        return stamp

    def _next(self, site: Site) -> int:
        call = self._calls.get(site.index, 0)
        self._calls[site.index] = call + 1
        return call

    def draw_compiled(self, site: Site, like: Tensor, call: int) -> Tensor:
        """What compiled code asks for at run time: σ of the step times a draw."""
        step, micro = self.moment(site, call)
        sigma = self.noise_at(site, step).sigma * self.scale(site, step)
        if sigma == 0 or self.paused:
            return torch.zeros_like(like)
        return sigma * self.source(site, step, micro, call)(site.noise.law, like)

    # -------------------------------------------------------------------------- shadowed parameters

    def displacement(self, site: Site, step: int, rng: Any = None) -> Tensor | None:
        """δ of a parameter in a step, or None where the step leaves it alone."""
        scale, noise = self.scale(site, step), self.noise_at(site, step)
        if scale == 0 or noise.sigma == 0:
            return None
        here = self.here(site, site.parameter)
        delta = noise.displace(here, rng or self.source(site, step, 0, 0))
        return delta if scale == 1 else scale * delta

    def shadow(self, module: nn.Module, step: int, micro: int) -> None:
        """Let the displaced parameters below `module` read W + δ."""
        if self.statistics and self.acts(step):
            self.statistics.put()
        below = None if module is self.model else {id(m) for m in module.modules()}
        for site in self.shadowed:
            if not self.on(site.module):
                continue
            if below is not None and not any(id(owner) in below for owner, _ in site.owners):
                continue
            scale, noise = self.scale(site, step), self.noise_at(site, step)
            if scale and noise.sigma:
                again = partial(self._displaced, site, current(site), step, micro)
                put(site, again(), again)

    def _displaced(self, site: Site, w: Tensor, step: int, micro: int) -> Tensor:
        source = self.source(site, step, micro, 0)
        return plus(self.noise_at(site, step), self.here(site, w), source, self.scale(site, step))

    def shadow_traced(self) -> None:
        """The same while torch.compile traces: the draw happens when the compiled code runs."""
        self._calls = {}
        if self.statistics and any(map(self.on, self.modules_of_sites)):
            self.statistics.put()
        for site in self.shadowed:
            if self.on(site.module):
                w = current(site)
                put(site, w + site.unit.displace(self.here(site, w), Traced(self.handle, site, 0)))

    def unshadow(self) -> None:
        """Let every parameter read W again."""
        for site in self.shadowed:
            take(site)
        if self.statistics:
            self.statistics.take()


def _moment() -> dict[str, Any]:
    """What an injection holds only for the moment, empty."""
    return {
        "reader": None,
        "held": False,
        "mirror": False,
        "collecting": False,
        "layouts": {},
        "_inside": [],
        "_calls": {},
        "_unfused": ExitStack(),
        "_alone": set(),
        "_ledger": Ledger(),
        "_handles": [],
    }


_OF_THE_MOMENT = {*_moment(), "handle", "wrapper", "turn_of"}


def _left(module: nn.Module) -> bool:
    """Whether a forward that began is on the stack no more, beside the one that begins now."""
    return calls(module) < 2


def on_model(model: nn.Module) -> list[Injection]:
    """The injections whose model this module is (`read.injections`: also those inside it)."""
    hooks = model._forward_pre_hooks.values()
    return list({id(h.noise): h.noise for h in hooks if isinstance(h, Enter)}.values())
