"""A tap: the identity, which shows the gradients that come back through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Tap(torch.autograd.Function):
    """The identity, which hands the gradient that comes back through it to `catch`, with K columns
    in front [K, *h.shape]. Nothing is copied.

    `anchor` is a leaf: differentiating with respect to it alone runs the backward through every
    tap and nowhere else. `kept`: the gradient is still read after the catch; `normed`: all that is
    asked of it is its norm.
    """

    @staticmethod
    def forward(  # pyright: ignore
        ctx: Any,
        h: Tensor,
        anchor: Tensor,
        catch: Callable[[Tensor], None],
        kept: bool,
        normed: bool,
    ) -> Tensor:
        ctx.catch, ctx.kept, ctx.normed = catch, kept, normed
        return h.detach()  # not a view: what follows may work in place

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        ctx.catch(g.unsqueeze(0))
        return g, None, None, None, None
