"""Reading a model at its sites: while a reader is in place the noise itself is off, and so is every
other injection's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from dither.attach.hooks import Hook
from dither.attach.injection import Injection
from dither.attach.shadow import put, take
from dither.attach.site import Site
from dither.calling import eager
from dither.torch_internals import forget_parametrised


class Reader(Protocol):
    """Gets every activation site's tensor during a forward; may give another in its place."""

    def activation(self, site: Site, h: Tensor) -> Tensor | None: ...


class Silent:
    """Reads nothing and changes nothing: what other injections on the model do meanwhile."""

    silent = True

    def activation(self, site: Site, h: Tensor) -> None:
        return None


@contextmanager
def reading(noise: Injection, reader: Any) -> Iterator[None]:
    """Route the noise's sites through `reader`; compiled submodules run as they are written."""
    before = noise.reader
    try:
        with silenced(noise.model), eager():
            noise.reader = reader
            yield
    finally:
        noise.reader = before


@contextmanager
def silenced(model: nn.Module) -> Iterator[None]:
    """No noise of any injection inside, also of those that are always on; their clocks stand
    still.
    """
    found = sorted(injections(model), key=lambda n: -n.handle)  # as a forward enters them
    with ExitStack() as others:
        for noise in found:
            others.enter_context(noise.turn_of.reading())
        before = [(n, n.reader) for n in found]
        for noise in found:
            noise.reader = Silent()
        try:
            yield
        finally:
            for noise, was in before:
                noise.reader = was


def injections(model: nn.Module) -> list[Injection]:
    """All injections with a hook on the model or anything inside it."""
    hooks = (
        hook
        for module in model.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    )
    return list({id(h.noise): h.noise for h in hooks if isinstance(h, Hook)}.values())


@contextmanager
def leaves(noise: Injection) -> Iterator[dict[str, Tensor]]:
    """{site: what to differentiate by} for noisy parameters: themselves, or where frozen a
    shadow.
    """
    sites = [s for s in noise.sites.values() if s.side == "parameter"]
    frozen = [s for s in sites if not s.parameter.requires_grad]
    try:
        for site in sites:
            site.held = site.parameter
            if site in frozen:
                put(site, site.held.detach().requires_grad_())
        forget_parametrised()
        yield {s.name: getattr(*s.owners[0]) for s in sites}
    finally:
        for site in sites:
            take(site)
            site.let_go()
        forget_parametrised()
