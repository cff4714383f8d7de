"""Whether the samples of a batch keep apart at the sites, so that the columns of all can be pulled
back together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from dither.errors import DitherError
from dither.noise.noises import Node


def keep_apart(pull: Any, z: Tensor) -> None:
    """Raises DitherError where two samples reach one element of a site, or one ε of a Node: pulled
    back together they could not be told apart.

    The first two and the last are asked, once for a forward of these shapes; all of them where a
    Node's ε are not plainly one a sample.
    """
    noise = pull.noise
    shapes = tuple(s.seen for s in noise.sites.values())
    mark, known = ("apart", shapes, z.shape, noise.model.training), noise.layouts
    if len(z) < 2 or mark in known or not z.requires_grad:
        return
    if not _disjoint(pull, z, sorted({0, 1, len(z) - 1})):
        _disjoint(pull, z, range(len(z)))
    known[mark] = True


def _disjoint(pull: Any, z: Tensor, samples: Iterable[int]) -> bool:
    """Whether each sample reaches, of every Node, the ε of its own number and no other."""
    taken: dict[tuple[str, int], Tensor] = {}
    plain = True
    for i in samples:
        for n, (name, own) in enumerate(pull.reach(z, i)):
            shape = list(own.shape)
            node = isinstance(pull.noise.sites[name].noise, Node) and not pull.noise.stack
            if node:
                own = own.movedim(pull.noise.batch_dim, 0)
                own = own.reshape(len(own), -1).any(1)  # [indices], one ε each
                alone = bool(own[i : i + 1].any()) and int(own.sum()) == 1
                plain &= len(own) == len(z) and (alone or not own.any())
            other = taken.get((name, n))
            if other is not None and other.shape == own.shape and bool((other & own).any()):
                raise DitherError(_together(name, shape, pull.noise.batch_dim if node else None))
            taken[name, n] = own if other is None else other | own
    return plain


def _together(name: str, shape: list[int], dim: int | None) -> str:
    if dim is None:
        return (
            "exact R needs independent samples in dimension 0 of the output, but two of them "
            f"depend on the same elements at {name!r}: the model mixes the batch, or shares that "
            "tensor; pass samples=1, or put the samples first"
        )
    return (
        f"Node at {name!r} draws one ε for each index of dimension {dim} of its tensor, {shape}, "
        "and two samples of the output depend on the same: say with batch_dim= of inject which "
        "dimension counts the samples, or pass samples=1"
    )
