"""Shadowed parameters: a module's attribute reads W + δ, and the registered parameter is unchanged.

Python looks an attribute up in a module's `__dict__` before `_parameters`. So `module.weight` reads
the shadow while `parameters()`, `state_dict()` and the optimiser see W.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from dither.attach.site import Site
from dither.errors import DitherError
from dither.torch_internals import as_plain, data_of, forget_parametrised, version

RUNNING = ("running_mean", "running_var", "num_batches_tracked")


class Shadow(Tensor):
    """W + δ in the place of a parameter. It knows whether a forward has written to it.

    The version of a tensor counts writes, except those through `.data`, which are counted here. A
    copy or a pickle of a shadow is the parameter.
    """

    __torch_function__ = as_plain

    parameter: Tensor
    versions: list[tuple[Tensor, int]]  # of the shadow and of each `.data` of it
    below: dict[tuple[int, str], Tensor | None] | None  # what an owner read before, once it is gone
    from_raw: Callable[[Tensor], Tensor]  # makes it from W, and what other injections put below

    @staticmethod
    def of(value: Tensor, parameter: Tensor) -> Shadow:
        """A tensor as the shadow of a parameter."""
        shadow = value.as_subclass(Shadow)
        shadow.parameter = parameter
        shadow.versions = [(value, version(value))]
        shadow.below = None
        return shadow

    def written(self) -> bool:
        """Whether a forward has written to it."""
        return any(version(alias) != before for alias, before in self.versions)

    @property
    def data(self) -> Tensor:
        alias = data_of.__get__(self)
        self.versions.append((alias, version(alias)))
        return alias

    @data.setter
    def data(self, value: Tensor) -> None:
        data_of.__set__(self, value)
        self.versions.append((self, -1))

    def __deepcopy__(self, memo: dict) -> Any:
        return copy.deepcopy(self.parameter, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _itself, (self.parameter,)


def current(site: Site) -> Tensor:
    """What the parameter reads now: W, or the shadow of another injection."""
    owner, name = site.owners[0]
    return owner.__dict__.get(name, site.parameter)


def put(site: Site, value: Tensor, again: Callable[[], Tensor] | None = None) -> None:
    """Let the parameter's owners read `value`, until `take`.

    again  computes the value anew. With it, in-place writes of a forward to the parameter are kept
           (`keep`); without it, they are lost.
    """
    if not torch.compiler.is_compiling():
        site.made = value.grad_fn  # before a write to the shadow gives it another
        value = Shadow.of(value, site.parameter)
    site.put, site.again, site.held = value, again, site.parameter
    site.under = [owner.__dict__.get(name) for owner, name in site.owners]
    for owner, name in site.owners:
        owner.__dict__[name] = value
        _flat(owner)
    forget_parametrised()


@contextmanager
def showing(values: Iterable[tuple[Site, Tensor]]) -> Iterator[None]:
    """Inside, the owners of each site's parameter read the value beside it."""
    shown: list[Site] = []
    try:
        for site, value in values:
            put(site, value)
            shown.append(site)
        yield
    finally:
        for site in reversed(shown):
            take(site)


def take(site: Site) -> None:
    """Undo `put`: read what was there before. Does nothing if nothing was put. Where another
    injection has put a shadow since, that one is read until it is taken.
    """
    if site.put is None:
        return
    keep(site)
    if isinstance(site.put, Shadow):
        owners = ((id(owner), name) for owner, name in site.owners)
        site.put.below = dict(zip(owners, site.under, strict=True))
    for (owner, name), before in zip(site.owners, site.under, strict=True):
        before = standing(before, owner, name)
        if owner.__dict__.get(name) is site.put:
            if before is None:
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = before
            _flat(owner)
    site.let_go()
    forget_parametrised()


def standing(before: Tensor | None, owner: nn.Module, name: str) -> Tensor | None:
    """What an owner is to read again: a shadow that was taken meanwhile (an injection removed
    inside a forward) stands for what was below it.
    """
    while isinstance(before, Shadow) and before.below is not None:
        before = before.below.get((id(owner), name))
    return before


def clear(site: Site) -> None:
    """Read W, whichever injection has put a shadow there (after Ctrl-C)."""
    for owner, name in site.owners:
        owner.__dict__.pop(name, None)
        _flat(owner)
    site.let_go()


def keep(site: Site) -> None:
    """Copy in-place writes of a forward from the shadow to W, or to the shadow below it.

    Such writes are an initialisation from the data, a clamp or `max_norm`. Elements whose value has
    changed take the new value. All others stay as they are, without δ.
    """
    shadow = site.put
    if site.again is None or not isinstance(shadow, Shadow) or not shadow.written():
        return
    below = standing(site.under[0], *site.owners[0])
    below = site.parameter if below is None else below
    with torch.no_grad():
        now = shadow.detach().as_subclass(Tensor)
        if now.shape != below.shape:
            below.data = now
        else:
            same = (now == site.again()) | (now != now)  # nan is not kept
            below.copy_(torch.where(same, below, now))


def check_held(site: Site, owner: nn.Module, name: str) -> None:
    """Raises DitherError if a module is called with another parameter than the displaced one."""
    if site.held is not None and owner._parameters.get(name) is not site.held:
        raise DitherError(
            f"noise can't reach {site.name!r}: the forward runs {type(owner).__name__} with other "
            "parameters in its place (torch.func.functional_call); name a parameter that the "
            "forward reads, or call functional_call around the whole model"
        )


class Statistics:
    """The running statistics of the BatchNorms of a model: a noisy forward does not change them.

    Between `put` and `take` the modules read and write copies. The registered buffers, which
    `state_dict()` and the graph of an earlier forward see, stay as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = (m for m in model.modules() if getattr(m, "track_running_stats", False))
        self.buffers = [(m, name) for m in norms for name in RUNNING if name in m._buffers]
        if any(isinstance(m._buffers[name], UninitializedBuffer) for m, name in self.buffers):
            raise DitherError(
                "inject: statistics='keep' can't keep those of a lazy BatchNorm, which has none "
                "yet: run one forward first"
            )
        self.shown: list[tuple[nn.Module, str, Tensor]] = []
        self.momenta = [(m, m.momentum) for m in dict(self.buffers)]

    def collected(self) -> bool:
        """Whether the statistics are being collected anew, as by `torch.optim.swa_utils.update_bn`.
        It sets the momentum of a BatchNorm to None, so that all batches have the same weight.
        """
        return any(m.momentum is None and before is not None for m, before in self.momenta)

    def put(self) -> None:
        """Let the modules in train mode use copies."""
        for owner, name in self.buffers:
            buffer = owner._buffers[name]
            if owner.training and buffer is not None and name not in owner.__dict__:
                copied = buffer.clone()
                if not torch.compiler.is_compiling():
                    copied = Shadow.of(copied, buffer)
                owner.__dict__[name] = copied
                self.shown.append((owner, name, copied))

    def take(self) -> None:
        """Let the modules use their own buffers again."""
        for owner, name, copied in self.shown:  # not the copy of another injection
            if owner.__dict__.get(name) is copied:
                del owner.__dict__[name]
        self.shown.clear()


def _flat(owner: nn.Module) -> None:
    """Recurrent modules read their parameters from a list."""
    if isinstance(owner, nn.RNNBase):
        owner.__dict__["_flat_weights"] = [getattr(owner, n) for n in owner._flat_weights_names]


def _itself(parameter: Tensor) -> Tensor:
    return parameter
