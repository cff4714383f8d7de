"""Shadowed parameters: for a while a module's attribute reads W + δ, the registered parameter stays
what and where it is.

An attribute in a module's `__dict__` is found before its `_parameters`. So `module.weight` reads
the shadow while `parameters()`, `state_dict()` and the optimiser see W.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from dither.attach.site import Site
from dither.errors import DitherError

RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def current(site: Site) -> Tensor:
    """What the parameter reads now: W, or the shadow another injection has put there."""
    owner, name = site.owners[0]
    return owner.__dict__.get(name, site.parameter)


def put(site: Site, value: Tensor) -> None:
    """Let the parameter's owners read `value`, until `take`."""
    if not torch.compiler.is_compiling():
        _copyable(value, site.parameter)
    site.put = value
    site.under = [owner.__dict__.get(name) for owner, name in site.owners]
    for owner, name in site.owners:
        owner.__dict__[name] = value
        _flat(owner)


def take(site: Site) -> None:
    """Undo `put`: read what was there before. Does nothing where nothing was put, or another has
    put since.
    """
    if site.put is None:
        return
    for (owner, name), before in zip(site.owners, site.under, strict=True):
        if owner.__dict__.get(name) is site.put:
            if before is None:
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = before
            _flat(owner)
    site.put, site.under = None, []


def clear(site: Site) -> None:
    """Read W whatever was put there, by this injection or another (after Ctrl-C)."""
    for owner, name in site.owners:
        owner.__dict__.pop(name, None)
        _flat(owner)
    site.put, site.under = None, []


class Statistics:
    """The running statistics of the BatchNorms of a model, kept from a noisy forward.

    Between `put` and `take` the modules read, and write to, copies; `state_dict()` and the saved
    graph of an earlier forward see the registered buffers, which nothing touches.
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

    def put(self) -> None:
        """Let the modules in train mode use copies."""
        for owner, name in self.buffers:
            buffer = owner._buffers[name]
            if owner.training and buffer is not None and name not in owner.__dict__:
                copied = buffer.clone()
                if not torch.compiler.is_compiling():
                    _copyable(copied, buffer)
                owner.__dict__[name] = copied
                self.shown.append((owner, name, copied))

    def take(self) -> None:
        """Let them use their own again."""
        for owner, name, copied in self.shown:  # not what another injection has put
            if owner.__dict__.get(name) is copied:
                del owner.__dict__[name]
        self.shown.clear()


def _flat(owner: nn.Module) -> None:
    """Recurrent modules read a list of their own."""
    if isinstance(owner, nn.RNNBase):
        owner.__dict__["_flat_weights"] = [getattr(owner, n) for n in owner._flat_weights_names]


def _copyable(value: Tensor, parameter: Tensor) -> None:
    """A copy or pickle taken while the shadow is up, or after Ctrl-C left it there, gets the
    parameter.
    """
    shadow: Any = value
    shadow.__deepcopy__ = lambda memo: copy.deepcopy(parameter, memo)
    shadow.__reduce_ex__ = lambda protocol: (_itself, (parameter,))


def _itself(parameter: Tensor) -> Tensor:
    return parameter
