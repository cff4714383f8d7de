"""Functions whose gradients can't be differentiated again: some of torch's, and a user's own.

Where a user's backward leaves torch (numpy, `detach`, `once_differentiable`), autograd takes what
comes out for a constant. A second derivative then lacks a part, and nobody says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from dither.engine.tap import Tap
from dither.errors import DitherError
from dither.torch_internals import ONCE


def is_doubtful(node: Any) -> bool:
    """Whether a function of the graph is a Function of somebody's own, or one of torch's that has
    no second derivative.
    """
    cls = getattr(node, "_forward_cls", Tap)
    return node.name() in ONCE or (
        isinstance(node, BackwardCFunction)
        and cls is not Tap
        and not cls.__module__.startswith("torch.")
    )


def check_twice(nodes: Iterable[Any], what: str, otherwise: str = "") -> None:
    """Raises DitherError where the gradients of one of these Functions depend on what it saved, and
    autograd does not know it. `what` differentiates them; `otherwise`: what else can be done.
    """
    for node in nodes:
        if node.name() in ONCE:
            raise DitherError(
                f"{what} differentiates gradients, and torch cannot differentiate those of "
                f"{ONCE[node.name()]}: write it with other functions of torch{otherwise}"
            )
        if _cut(node):
            raise DitherError(
                f"{what} differentiates gradients, and those that {node._forward_cls.__name__} "
                "gives cannot be differentiated: write its backward with torch's functions of what "
                "it saved, without once_differentiable, numpy or detach" + otherwise
            )


def _cut(node: Any) -> bool:
    try:
        saved = [t for t in node.saved_tensors if t is not None]
    except RuntimeError:  # freed: nothing is differentiated again
        return False
    kept = [v for v in vars(node).values() if isinstance(v, Tensor | np.ndarray)]
    g = [torch.randn(m.shape, dtype=m.dtype, device=m.device) for m in node._input_metadata]
    through = _gradients(node, [t.clone().requires_grad_() for t in g], True)
    if through and not any(t.requires_grad for t in through):
        return True  # what comes in is taken for a constant
    inexact = [t for t in (*saved, *kept) if isinstance(t, Tensor) and t.is_floating_point()]
    arrays = [v for v in kept if isinstance(v, np.ndarray)]
    if not inexact and not arrays:
        return False  # its gradients are linear in what comes in, and in nothing else
    before = _gradients(node, g, True)
    if any(t.requires_grad for t in before):
        return False
    held = [t.detach().clone() for t in inexact] + [v.copy() for v in arrays]
    try:
        for t in inexact:
            t.data.mul_(0.75).add_(0.125)
        for v in arrays:
            v[...] = 0.75 * v + 0.125
        after = _gradients(node, g, False)
    finally:
        for t, was in zip((*(t.data for t in inexact), *arrays), held, strict=True):
            t[...] = was
    pairs = zip(before, after, strict=True)
    return not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


def _gradients(node: Any, g: list[Tensor], recorded: bool) -> list[Tensor]:
    with torch.set_grad_enabled(recorded):
        found = node.apply(*g)
    return [t for t in (found if isinstance(found, tuple) else (found,)) if isinstance(t, Tensor)]
