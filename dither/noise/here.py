"""A site in one call, and sums over its dimensions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dither.errors import DitherError
from dither.precision import wide


@dataclass(slots=True)
class Here:
    """A site in one call: its tensor h [B, …], or a parameter, and for a Node its vectors w [n, …].

    In a stacked model of S replicas h is [S, B, …] and w is [S, n, …], and `stack` is 1. mask: the
    positions [B, T] that get noise; None: all (`Masked`).
    """

    h: Tensor
    w: Any = None  # Tensor at a Node
    stack: int = 0
    batch_dim: int = 0
    name: str = ""
    mask: Any = None  # Tensor under a mask

    @property
    def samples(self) -> int:
        """The dimension of h that counts the samples."""
        dim = self.stack + self.batch_dim
        if dim >= self.h.dim():
            raise DitherError(
                f"the noise at {self.name!r} looks for the samples in dimension {dim} of its "
                f"tensor, {list(self.h.shape)} (batch_dim={self.batch_dim}): say with batch_dim= "
                "which dimension counts them"
            )
        return dim

    def wide(self) -> Here:
        """The same site, with tensors of half precision in single."""
        if wide(self.h) is self.h and wide(self.w) is self.w:
            return self
        return replace(self, h=wide(self.h), w=wide(self.w))


def norm2(g) -> Tensor:
    """‖g‖² over all but the first two dimensions [K, B, …], in single precision or better. A
    per-sample gradient (`dither.engine.ghost`) computes its own.
    """
    if hasattr(g, "norm2"):
        return g.norm2()
    g = wide(g).reshape(*g.shape[:2], -1)
    if g.requires_grad:
        return g.square().sum(-1)
    return torch.linalg.vector_norm(g, dim=-1).square()  # one pass, no copy; no gradient at 0


def fitting(site: Here) -> None:
    """Raises DitherError unless a Node's vectors have shape, type and device of h's features."""
    h, w = site.h, site.w
    rest = list(h.shape[site.stack :])
    del rest[site.batch_dim : site.batch_dim + 1]
    features = list(w.shape[site.stack + 1 :])
    if rest[len(rest) - len(features) :] != features:
        raise DitherError(
            f"Node at {site.name!r} has vectors {features} and gets a tensor {list(h.shape)}: its "
            "last dimensions must be the vectors'; inject with an example of this shape, and with "
            "batch_dim= if dimension 0 does not count the samples"
        )
    double = torch.float64 in (h.dtype, w.dtype)  # autocast does not change it
    mixed = torch.is_autocast_enabled(h.device.type) and not double
    if w.device != h.device or (w.dtype != h.dtype and not mixed):
        raise DitherError(
            f"Node at {site.name!r} has vectors of {w.dtype} on {w.device} and gets a tensor of "
            f"{h.dtype} on {h.device}: move the noise with the model, "
            f"noise.to({str(h.device)!r}, {h.dtype})"
        )


def spread(delta: Tensor, h: Tensor, site: Here) -> Tensor:
    """[*S, B, *features] → a shape that broadcasts with h [*S, B, positions…, *features]."""
    for _ in range(h.dim() - delta.dim()):
        delta = delta.unsqueeze(site.stack + 1)
    return delta.movedim(site.stack, site.stack + site.batch_dim) if site.batch_dim else delta


def gather(g: Tensor, features: int, site: Here) -> Tensor:
    """The adjoint of `spread`: g [K, *S, B, positions…, *features] summed over the positions."""
    b = site.stack + 1
    g = g.movedim(b + site.batch_dim, b) if site.batch_dim else g
    positions = tuple(range(b + 1, g.dim() - features))
    return g.sum(positions) if positions else g
