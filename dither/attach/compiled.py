"""Noise inside torch.compile: one opaque operator draws when the compiled code runs.

So compiled code draws what eager code draws, from the same keys, and reads schedules and clocks
anew at each step.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor

from dither.attach.site import Site
from dither.errors import DitherError
from dither.noise.laws import Law
from dither.torch_internals import traced


class Compiled(Protocol):
    """What the operator knows of an injection."""

    ordered: list[Site]

    def draw_compiled(self, site: Site, like: Tensor, call: int) -> Tensor: ...


_INJECTIONS: weakref.WeakValueDictionary[int, Compiled] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def register(injection: Compiled) -> int:
    """A number by which compiled code finds the injection."""
    number = next(_NUMBERS)
    _INJECTIONS[number] = injection
    return number


def check_not_kept(site: Site) -> None:
    """Raises DitherError while the model is exported or traced: the graph would keep the noise,
    also in eval mode and after `remove`, and it would ask this process's injection for the draws.
    """
    exported = torch.compiler.is_exporting()
    if exported or (not torch.compiler.is_compiling() and traced()):
        raise DitherError(
            f"noise at {site.name!r} can't go into a graph of "
            f"{'torch.export' if exported else 'torch.jit.trace'}, which would never be without "
            "it: call model.eval() first, or put with noise.off() around the call"
        )


class Traced:
    """A source while torch.compile traces. The compiled code draws when it runs, from the noise's
    own `law`.

    Raises DitherError for a noise that draws twice in one `displace`, or from another law.
    """

    def __init__(self, handle: int, site: Site, call: int) -> None:
        self.handle, self.site, self.call, self.drawn = handle, site, call, False

    def __call__(self, law: Law, like: Tensor) -> Tensor:
        if self.drawn or law is not self.site.unit.law:
            raise DitherError(
                f"{type(self.site.noise).__name__} at {self.site.name!r} can't be compiled: under "
                "torch.compile a noise draws once, from its own `law`; give it one law, or put "
                "torch.compiler.disable around the module"
            )
        self.drawn = True
        return draw_at_run_time(like.detach(), self.handle, self.site.index, self.call)


# Python draws at run time: a captured CUDA graph would repeat one draw for ever.
_TAGS = [getattr(torch.Tag, t) for t in ("nondeterministic_seeded", "cudagraph_unsafe")
         if hasattr(torch.Tag, t)]  # fmt: skip
_TAGGED = "tags" in inspect.signature(torch.library.custom_op).parameters  # since torch 2.8
_KNOWN: dict[str, Any] = {"tags": _TAGS} if _TAGGED else {}


@torch.library.custom_op("dither::draw", mutates_args=(), **_KNOWN)
def draw_at_run_time(like: Tensor, handle: int, site: int, call: int) -> Tensor:
    """σ of the step times a draw of the site's law, in the shape of `like`."""
    injection = _INJECTIONS[handle]
    return injection.draw_compiled(injection.ordered[site], like, call)


@draw_at_run_time.register_fake
def _(like: Tensor, handle: int, site: int, call: int) -> Tensor:
    return torch.empty_like(like)
