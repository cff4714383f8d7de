"""Where the samples are in a tensor inside a network: the dimension that counts them, or how they
are folded into one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where the samples are.

    way "dim": dimension `at` counts them; "major", "minor": dimension 0 is (sample, place) or
    (place, sample); "both": dimensions 0 and 1 together do, as in a stack of replicas.
    """

    way: str
    at: int
    batch: int

    def first(self, t: Tensor) -> Tensor:
        """The samples moved to dimension 0, [B, …]."""
        if self.way == "dim":
            return t.movedim(self.at, 0)
        if self.way == "major":
            return t.unflatten(0, (self.batch, -1))
        if self.way == "both":
            return t.flatten(0, 1)
        return t.unflatten(0, (-1, self.batch)).movedim(1, 0)

    def __call__(self, t: Tensor, features: int) -> Tensor:
        """[B, P, *features]: all positions of a sample in one dimension."""
        kept = t.shape[t.dim() - features :]
        return self.first(t).reshape(self.batch, -1, *kept)

    def unbroadcast(self, g: Tensor, shape: torch.Size) -> Tensor:
        """[B, *shape]: each sample's g summed over what `shape` was broadcast along."""
        if self.way == "both":
            g = g.flatten(0, 1).unsqueeze(1) * self.replica(g)
            return self._summed(g.unsqueeze(2), shape)
        return self._summed(g.movedim(self.at, 0).unsqueeze(self.at + 1), shape)

    def replica(self, t: Tensor) -> Tensor:
        """[S·B, S, 1…]: 1 where a sample of t [S, B, …] belongs to a replica."""
        s, b = t.shape[:2]
        eye = torch.eye(s, dtype=t.dtype, device=t.device).repeat_interleave(b, 0)
        return eye.view(s * b, s, *[1] * (t.dim() - 2))

    def _summed(self, g: Tensor, shape: torch.Size) -> Tensor:
        own = (1,) * (g.dim() - 1 - len(shape)) + tuple(shape)
        along = tuple(i + 1 for i, n in enumerate(own) if n == 1)
        return (g.sum(along, keepdim=True) if along else g).reshape(self.batch, *shape)


def layouts(lead: Sequence[int], batch: int) -> list[Layout]:
    """The layouts that fit a tensor's leading dimensions, the likeliest first; none where no
    dimension holds the samples.
    """
    found = [Layout("dim", d, batch) for d, n in enumerate(lead) if n == batch]
    if lead and lead[0] != batch and lead[0] % batch == 0:
        found += [Layout("major", 0, batch), Layout("minor", 0, batch)]
    if len(lead) == 2 and lead[0] * lead[1] == batch and 1 not in lead:
        found.append(Layout("both", 0, batch))
    return found[:1] if batch == 1 else found


def elementwise_layouts(out: torch.Size, shape: torch.Size, batch: int) -> list[Layout]:
    """The dimensions of `out` that may count the samples where a parameter of `shape` is
    broadcast along them.
    """
    own = (1,) * (len(out) - len(shape)) + tuple(shape)
    found = [Layout("dim", d, batch) for d, n in enumerate(out) if n == batch and own[d] == 1]
    if len(out) > 2 and out[0] * out[1] == batch and own[:2] == (out[0], 1) and out[1] > 1:
        found.append(Layout("both", 0, batch))
    return found[:1] if batch == 1 else found
