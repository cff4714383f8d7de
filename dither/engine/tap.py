"""A tap: the identity, which shows the gradients that come back through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Ear:
    """What all taps of one recorded forward tell: who listens changes from pull to pull.

    The taps hold the ear, and nothing else of the graph that they are part of: no circle of
    references is made. `early` notes a gradient that came by while the forward was still recorded:
    it differentiates inside.
    """

    def __init__(self) -> None:
        self.listener: Callable[[int, Any], None] | None = None
        self.recording = True
        self.early = False

    def __call__(self, n: int, g: Any) -> None:
        if self.listener is not None:
            self.listener(n, g)
        elif self.recording:
            self.early = True


class Tap(torch.autograd.Function):
    """The identity; a gradient that comes back is told as `ear(n, g)`, g [K, *h.shape]. Nothing is
    copied.

    anchor   a leaf: to differentiate by it alone runs the backward through every tap and nowhere
             else
    kept     the gradient is still read after it was told: it must not be overwritten
    normed   all that is asked of the gradient is its norm
    """

    @staticmethod
    def forward(  # pyright: ignore
        ctx: Any, h: Tensor, anchor: Tensor, ear: Ear, n: int, kept: bool, normed: bool
    ) -> Tensor:
        ctx.ear, ctx.n, ctx.kept, ctx.normed = ear, n, kept, normed
        return h.detach()  # not a view: what follows may work in place

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        ctx.ear(ctx.n, g.unsqueeze(0))
        return g, None, None, None, None, None
