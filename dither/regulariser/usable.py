"""Whether an injection, its targets and a loss can be used together."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dither.attach.injection import Injection
from dither.attach.site import Site
from dither.errors import DitherError
from dither.loss import AnyLoss


def check_usable(noise: Any, y: Any, loss: Any) -> None:
    """An injection whose sites are still in its model, and targets of one sample or more; what
    targets of a callable loss are is its own affair.
    """
    check_there(noise)
    if not isinstance(y, Tensor):
        if isinstance(loss, AnyLoss):
            return
        raise DitherError(f"targets are a tensor: got {type(y).__name__}; torch.as_tensor(y)")
    if not y.numel():
        raise DitherError(f"the batch is empty: got targets {list(y.shape)}")


def check_there(noise: Any) -> None:
    """Raises DitherError unless it is an injection whose sites are still in its model."""
    if not isinstance(noise, Injection):
        raise DitherError(
            f"the first argument is the noise that inject gave, not {type(noise).__name__}: noise "
            "= dither.inject(model, …)"
        )
    if noise.removed:
        raise DitherError("this noise was removed from its model: inject it again")
    here = set(map(id, noise.model.modules()))
    gone = [site.name for site in noise.ordered if not _there(site, here)]
    if gone:
        raise DitherError(
            f"what is noisy at {gone[0]!r} is no longer in the model: it was replaced, or "
            "parametrised, after inject; inject again"
        )


def _there(site: Site, modules: set[int]) -> bool:
    """Whether the model, of these modules, still has a site."""
    if site.side != "parameter":
        return id(site.module) in modules
    return any(id(m) in modules and name in m._parameters for m, name in site.owners)
