"""The noise of one `inject`.

Forward hooks displace activations, and shadows displace parameters (`shadow`). So no parameter is
written to, the graph keeps W + δ for the backward, and the optimiser updates W.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from dither.attach import masks
from dither.attach.clock import Clock, Phase
from dither.attach.compiled import Traced, check_not_kept, register
from dither.attach.find import check_whole, replicas, units
from dither.attach.hooks import Enter, Reader, real
from dither.attach.keys import Draws, noise_at
from dither.attach.ranks import agreed, compare, ranks
from dither.attach.recompute import Ledger, sample_of
from dither.attach.seeds import ordinals, seeds
from dither.attach.shadow import Statistics, clear
from dither.attach.sharded import release
from dither.attach.site import Site, Sites, groups, label
from dither.attach.threads import OneAtATime
from dither.attach.weights import Weights
from dither.calling import unfused
from dither.noise.draw import Source
from dither.noise.here import Here
from dither.noise.masked import Masked
from dither.noise.noises import Node, plus
from dither.schedule import Balanced
from dither.torch_internals import around_checkpoints, calls, forget_compiled, in_backward


class Injection(Clock, Weights, nn.Module):
    """The noise of one `inject`: its sites, its trained vectors and its clock.

    `parameters()` are the vectors of Nodes (`nodes[site]`, with "/" for "." in the name),
    `state_dict()` holds them with the seed and the step; both are separate from the model's. As a
    context manager it removes itself at the end.
    """

    beside_its_model = True  # another injection finds no sites in it
    model: nn.Module
    wrapper: nn.Module  # DistributedDataParallel, or the model itself

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
        self.__dict__["model"] = model  # no submodule: `parameters()` are the vectors alone
        self.sites, self.by, self.when = sites, by, when
        self.batch_dim = batch_dim
        self.stack = int(isinstance(seed, Sequence))
        own = seeds(seed)
        beside = [n.draws for n in on_model(model) if not n.sites.keys().isdisjoint(sites)]
        number = ordinals(own, [(d.seeds, d.ordinals) for d in beside])
        self.draws = Draws(own, number, draw, groups(sites, by))
        self.seed_given = seed is not None or ranks() > 1  # False: the ranks have to agree first
        self.compared = False  # whether the ranks have compared their seeds
        self.nodes = nn.ParameterDict()
        self.paused = self.removed = False
        self.ordered = list(sites.values())
        self.shadowed = [site for site in self.ordered if site.side == "parameter"]
        self.owned: dict[int, list[tuple[Site, str]]] = {}  # a module's own noisy parameters
        for site in self.shadowed:
            for owner, name in site.owners:
                self.owned.setdefault(id(owner), []).append((site, name))
        self.modules_of_sites = list({id(s.module): s.module for s in self.ordered}.values())
        self.units = {id(unit): unit for unit in units(model).values()}
        self.handle = register(self)
        self.statistics: Statistics | None = None  # BatchNorms', for statistics="keep"
        self.collecting = False  # this forward collects statistics without noise
        self.turn_of = OneAtATime(model)
        self.reader: Reader | None = None  # gets the sites' tensors in place of the noise
        self.kept: dict[str, dict[str, Any]] = {}  # σ of schedule.Balanced, and what it is from
        self.layouts: dict[Any, Any] = {}  # batch dimensions that `explicit` found
        self.masks: dict[Any, Tensor] = {}  # of the last forward, for noises under a mask
        self._inside: list[int] = []  # the modules whose forward is running, outermost first
        self._calls: dict[int, int] = {}
        self._unfused = ExitStack()
        self._alone: set[int] = set()  # modules of the warning: called outside the model
        self._ledger = Ledger()
        self._handles: list[Any] = []

    # ------------------------------------------------------------------------------ what users call

    def pause(self) -> None:
        """No noise until `resume`. The clock stops too."""
        self.paused = True
        forget_compiled()

    def resume(self) -> None:
        """Noise again, from the step at which it was paused."""
        self.paused = False
        forget_compiled()

    @contextmanager
    def off(self) -> Iterator[Injection]:
        """No noise inside; afterwards as before, also after an exception."""
        before = self.paused
        self.pause()
        try:
            yield self
        finally:
            self.paused = before
            forget_compiled()

    def set(self, sigmas: Mapping[str, Any]) -> None:
        """Give sites other σ, {site: σ}, as `balance` returns them; draws and steps go on. Raises
        DitherError for a site that this injection does not have.
        """
        self.sites.set(sigmas)
        forget_compiled()

    def remove(self) -> None:
        """Take every hook off the model. Its output is then bit for bit what it was without noise.
        A second call does nothing.
        """
        release(self)
        self.unhook()
        self.unshadow()
        self.removed = True
        forget_compiled()

    @property
    def beside(self) -> list[Injection]:
        """The other injections on its model, the oldest first."""
        return [noise for noise in on_model(self.model) if noise is not self]

    def unhook(self) -> None:
        """Take every hook off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Injection:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _repr_html_(self) -> str:
        return self.sites.html(f"noise on {len(self.sites)} sites of {type(self.model).__name__}")

    def __repr__(self) -> str:
        return f"noise on {len(self.sites)} sites of {type(self.model).__name__}\n{self.sites}"

    def __getstate__(self) -> dict[str, Any]:
        """Without hooks and without the state of a running forward: a copy is removed from its
        model.
        """
        return {k: v for k, v in self.__dict__.items() if k not in _OF_THE_MOMENT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.update(_moment(), handle=register(self), wrapper=self.model, removed=True)
        self.turn_of = OneAtATime(self.model)
        for site in self.shadowed:
            site.let_go()

    def get_extra_state(self) -> dict[str, Any]:
        """Seed and clock: a resumed run continues as if it had never stopped."""
        clocks = {name: (site.step, site.micro) for name, site in self.sites.items()}
        return {
            "seeds": self.draws.seeds,
            "ordinals": self.draws.ordinals,
            "step": self.step,
            "micro": self.micro,
            "clocks": clocks,
            "kept": copy.deepcopy(self.kept),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_extra_state`; sites are matched by name."""
        own, self.step, self.micro = tuple(state["seeds"]), state["step"], state["micro"]
        number = tuple(state.get("ordinals", (0,) * len(own)))
        self.draws = replace(self.draws, seeds=own, ordinals=number)
        self.seed_given, self.kept = True, copy.deepcopy(state.get("kept", {}))
        for name, (step, micro) in state["clocks"].items():
            if name in self.sites:
                self.sites[name].step, self.sites[name].micro = step, micro

    # ------------------------------------------------------------------------------------ the clock

    def on(self, module: nn.Module) -> bool:
        """Whether a module is noisy now: in its train mode, like dropout."""
        off = self.paused or self.collecting
        return not off and (self.when == "always" or module.training)

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """A forward starts; the outermost begins a step."""
        if getattr(module, "_is_replica", False):  # DataParallel was put around it after inject
            raise replicas(type(module).__name__)
        if self.shadowed and id(module) not in self.units:
            check_whole(type(module).__name__, module)
        if module is self.model and id(module) in self._inside and calls(module) < 2:
            for noise in on_model(module):  # Ctrl-C ran no hooks: remove what its forward left
                noise._inside.clear()
                release(noise, everyone=True)
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

    def leave(self, module: nn.Module, out: Any = None) -> None:
        """A forward ends, also by an exception. After the outermost one parameters read W again."""
        if id(module) in self._inside:
            while self._inside.pop() != id(module):
                pass
        if not self._inside:
            self._unfused.close()
            self.unshadow(out)
            self.collecting = False

    def begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """The outermost forward starts: the clocks move, and parameters read W + δ."""
        self.collecting = self.statistics is not None and self.statistics.collected()
        around_checkpoints(self, begins=True)
        phase = self._phase(module)
        if phase is Phase.QUIET:
            return
        if phase is Phase.RECOMPUTED:
            if self.shadowed or self.statistics:
                stamp = self._ledger.recall(id(module), sample_of(args, kwargs))
                self.shadow(module, *(stamp[:2] if stamp else self.now(self)))
            return
        self._calls = {}
        self.advance(self, phase)
        for site in self.shadowed:  # compiled code reads the sites' clocks
            self.follow(site)
        self.shadow(module, *self.now(self))
        if self.shadowed and module is not self.model and id(module) not in self._alone:
            self._alone.add(id(module))
            self.warn_of_parents(module)

    def _phase(self, module: nn.Module) -> Phase:
        """What an outermost forward that begins now is for the common clock."""
        if in_backward():
            return Phase.RECOMPUTED
        noisy = self.on(module) or any(map(self.on, self.modules_of_sites))
        return self.phase(self) if noisy else Phase.QUIET

    def moment(self, site: Site, call: int) -> tuple[int, int]:
        """(step, micro) of a site's draw. Inside a forward of the model the common clock says it.
        Outside, the site's own clock does, and the site's first call advances it.
        """
        if self._inside:
            self.follow(site)
        elif call == 0 and not in_backward():
            self.advance(site, self.phase(site))
            self.step = max(self.step, site.step)
        return self.now(site)

    # ------------------------------------------------------------------------------------ the draws

    @property
    def seeds(self) -> tuple[int, ...]:
        """One seed, or one per replica of a stacked model."""
        return self.draws.seeds

    @property
    def draw(self) -> str:
        """How a step spends σ over several parameters."""
        return self.draws.draw

    @property
    def groups(self) -> tuple[frozenset[str], ...]:
        """The M sets of parameter names among which `draw` shares σ."""
        return self.draws.groups

    def scale(self, site: Site, step: int) -> float:
        """The factor on σ for a parameter at a step."""
        return self.draws.scale(site, step)

    def share(self, site: Site) -> float:
        """The share of σ² that a parameter has in R."""
        return self.draws.share(site)

    def noise_at(self, site: Site, step: int | None = None) -> Any:
        """A site's noise with σ of its schedule at a step; by default at the current one."""
        if isinstance(site.noise.sigma, Balanced):
            return replace(site.noise, sigma=self.kept.get("sigma", {}).get(site.name, 0.0))
        return noise_at(site, self.step if step is None else step)

    def here(self, site: Site, h: Tensor) -> Here:
        """The site as `displace` and `variance` of a noise see it."""
        w = self.nodes[label(site.name)] if isinstance(site.noise, Node) else None
        mask = self.masks.get(site.noise.mask) if isinstance(site.noise, Masked) else None
        return Here(h, w, self.stack, self.batch_dim, site.name, mask)

    def read_masks(self, args: tuple, kwargs: dict) -> None:
        """A forward of the model starts: find the masks among its arguments."""
        kinds = [s.noise for s in self.ordered if isinstance(s.noise, Masked)]
        self.masks = {k.mask: masks.read(self.model, k.mask, args, kwargs) for k in kinds}

    def source(self, site: Site, step: int, micro: int, call: int) -> Source:
        """The source of a draw. Before the first draw the ranks agree on the seeds."""
        if not self.seed_given and ranks() > 1:
            self.draws, self.seed_given = replace(self.draws, seeds=agreed(self.seeds)), True
        if not self.compared and ranks() > 1 and torch.is_grad_enabled():
            self.compared = True  # once, in a step that all ranks take
            compare(self.seeds)
        return self.draws.source(site, step, micro, call)

    def activation(self, site: Site, h: Tensor, module: nn.Module) -> Tensor | None:
        """H + δ if the noise is on, None if it is off. The hooks call it."""
        if self.reader is not None:
            return self.reader.activation(site, h)
        if not self.on(module):
            return None
        real(site, h)
        check_not_kept(site)
        if torch.compiler.is_compiling():
            masks.check_compiled(site)
            traced = Traced(self.handle, site, self._next(site))
            return h + site.unit.displace(self.here(site, h), traced)
        site.seen = tuple(h.shape)
        step, micro, call = self._stamp(site, h)
        noise = self.noise_at(site, step)
        if noise.sigma == 0:
            return None
        return plus(noise, self.here(site, h), self.source(site, step, micro, call))

    def _stamp(self, site: Site, h: Tensor) -> tuple[int, int, int]:
        """(step, micro, call) of this call of a site. If a checkpoint recomputes the call, it is
        that of the first time.
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
        """σ of the step times a draw; compiled code asks for it at run time."""
        step, micro = self.moment(site, call)
        sigma = self.noise_at(site, step).sigma * self.scale(site, step)
        if sigma == 0 or self.paused:
            return torch.zeros_like(like)
        return sigma * self.source(site, step, micro, call)(site.noise.law, like)


def _moment() -> dict[str, Any]:
    """The state of a running forward, empty. Copies and pickles do not have it."""
    return {
        "reader": None,
        "stamp": None,
        "units": {},
        "open_hold": 0,
        "mirror": False,
        "collecting": False,
        "layouts": {},
        "masks": {},
        "_inside": [],
        "_calls": {},
        "_unfused": ExitStack(),
        "_alone": set(),
        "_ledger": Ledger(),
        "_handles": [],
    }


_OF_THE_MOMENT = {*_moment(), "handle", "wrapper", "turn_of"}


def on_model(model: nn.Module) -> list[Injection]:
    """The injections whose model this module is (`reading.injections`: also those inside it)."""
    hooks = model._forward_pre_hooks.values()
    noises = [cast(Injection, h.noise) for h in hooks if isinstance(h, Enter)]
    return list({id(noise): noise for noise in noises}.values())
