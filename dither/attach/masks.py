"""The masks of `Masked` noises: found among the arguments of the model at each forward."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dither.attach.find import placed
from dither.attach.site import Site
from dither.errors import DitherError
from dither.noise.masked import Masked


def masked(model: nn.Module, what: Any, mask: Any) -> Any:
    """The same noises, each under a mask; those on parameters as they are."""
    what = placed(model) if what is None else what
    if isinstance(what, Mapping):
        return {pattern: masked(model, noise, mask) for pattern, noise in what.items()}
    return what if getattr(what, "side", None) == "parameter" else Masked(what, mask)


def read(model: nn.Module, mask: Any, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """The mask of a forward with these arguments. Raises DitherError if there is none."""
    if callable(mask):
        found = mask(*args, **kwargs)
    else:
        found = kwargs.get(mask)
        if found is None and args:
            try:
                bound = inspect.signature(model.forward).bind_partial(*args, **kwargs)
            except TypeError:  # the forward itself will say it
                bound = None
            found = bound.arguments.get(mask) if bound is not None else None
    if not isinstance(found, Tensor) or not found.dim():
        what = repr(mask) if isinstance(mask, str) else "its function"
        raise DitherError(
            f"the mask of the noise, {what}, is no tensor [B, T] in this call of "
            f"{type(model).__name__}: got {type(found).__name__}; pass it to the model"
        )
    return found


def check_compiled(site: Site) -> None:
    """Raises DitherError for a noise under a mask in compiled code."""
    if isinstance(site.noise, Masked):
        raise DitherError(
            f"noise at {site.name!r} has a mask, which compiled code does not read: leave the "
            "model uncompiled, or multiply the mask into the model"
        )
