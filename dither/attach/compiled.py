"""Noise inside torch.compile: one opaque operator draws when the compiled code runs.

So compiled code draws what eager code would draw, from the same keys, and reads schedules and turns
anew in each step.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from typing import Any

import torch
from torch import Tensor

from dither.errors import DitherError

_INJECTIONS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def register(injection: Any) -> int:
    """A number by which compiled code finds the injection."""
    number = next(_NUMBERS)
    _INJECTIONS[number] = injection
    return number


class Traced:
    """A source while torch.compile traces: it leaves the draw to the running code, which knows the
    noise's `law`.

    A noise that draws from two laws in one `displace` can't be compiled; it says so.
    """

    def __init__(self, handle: int, site: Any, call: int) -> None:
        self.handle, self.site, self.call, self.drawn = handle, site, call, False

    def __call__(self, law: Any, like: Tensor) -> Tensor:
        if self.drawn or law is not self.site.unit.law:
            raise DitherError(
                f"{type(self.site.noise).__name__} at {self.site.name!r} can't be compiled: under "
                "torch.compile a noise draws once, from its own `law`; compile with "
                "torch.compiler.disable around it, or give it one law"
            )
        self.drawn = True
        return draw(like.detach(), self.handle, self.site.index, self.call)


# Drawn by Python at run time: a captured CUDA graph would replay one draw for ever.
_TAGS = [getattr(torch.Tag, t) for t in ("nondeterministic_seeded", "cudagraph_unsafe")
         if hasattr(torch.Tag, t)]  # fmt: skip
_TAGGED = "tags" in inspect.signature(torch.library.custom_op).parameters  # since torch 2.8
_KNOWN: dict[str, Any] = {"tags": _TAGS} if _TAGGED else {}


@torch.library.custom_op("dither::draw", mutates_args=(), **_KNOWN)
def draw(like: Tensor, handle: int, site: int, call: int) -> Tensor:
    """σ of the step times a draw of the site's law, in the shape of `like`."""
    injection = _INJECTIONS[handle]
    return injection.draw_compiled(injection.ordered[site], like, call)


@draw.register_fake
def _(like: Tensor, handle: int, site: int, call: int) -> Tensor:
    return torch.empty_like(like)
