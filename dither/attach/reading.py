"""Reading a model at its sites. While a reader is in place, this noise and every other injection's
is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch import Tensor, nn

from dither.attach.hooks import Hook, Reader
from dither.attach.inject import inject
from dither.attach.injection import Injection
from dither.attach.shadow import put, take
from dither.attach.site import Site
from dither.calling import eager
from dither.torch_internals import forget_parametrised


class Idle:
    """A reader that changes nothing. Other injections on the model have it for the time of a
    reading.
    """

    idle = True

    def activation(self, site: Site, h: Tensor) -> None:
        return None


@contextmanager
def reading(noise: Injection, reader: Reader) -> Iterator[None]:
    """Give the sites' tensors to `reader` in place of the noise. Compiled submodules run as they
    are written.
    """
    before = noise.reader
    try:
        with silenced(noise.model), eager():
            noise.reader = reader
            yield
    finally:
        noise.reader = before


@contextmanager
def silenced(model: nn.Module) -> Iterator[None]:
    """No injection adds noise inside, also one that is always on, and no clock moves."""
    noises = sorted(injections(model), key=lambda n: -n.handle)  # as a forward enters them
    with ExitStack() as others:
        for noise in noises:
            others.enter_context(noise.turn_of.reading())
        before = [(n, n.reader) for n in noises]
        for noise in noises:
            noise.reader = Idle()
        try:
            yield
        finally:
            for noise, was in before:
                noise.reader = was


@contextmanager
def probing(model: nn.Module, what: Any, **how: Any) -> Iterator[Injection]:
    """An injection for a measure, removed at the end. The other injections are silent inside."""
    with silenced(model), inject(model, what, **how) as noise:
        yield noise


def injections(model: nn.Module) -> list[Injection]:
    """All injections with a hook on the model or anything inside it."""
    hooks = (
        hook
        for module in model.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    )
    noises = [cast(Injection, hook.noise) for hook in hooks if isinstance(hook, Hook)]
    return list({id(noise): noise for noise in noises}.values())


@contextmanager
def leaves(noise: Injection) -> Iterator[dict[str, Tensor]]:
    """{site: the tensor to differentiate by} for noisy parameters. It is the parameter itself; for
    a frozen one it is a shadow.
    """
    sites = [s for s in noise.sites.values() if s.side == "parameter"]
    frozen = [s for s in sites if not s.parameter.requires_grad]
    try:
        for site in sites:
            site.held = site.parameter
            if site in frozen:
                put(site, site.held.detach())
                getattr(*site.owners[0]).requires_grad_()  # the shadow itself is the leaf
        forget_parametrised()
        yield {s.name: getattr(*s.owners[0]) for s in sites}
    finally:
        for site in sites:
            take(site)
            site.let_go()
        forget_parametrised()
