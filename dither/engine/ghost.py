"""Per-sample gradient norms of parameters without per-sample gradients.

Sample i's gradient of a matrix used as z_t = W a_t is Σ_t g_t a_tᵀ, and

    ‖Σ_t g_t a_tᵀ‖² = Σ_{t,t'} (g_t·g_t')(a_t·a_t'),
    (ghost norm)

so T×T matrices will do; where they are larger than the matrix, the sum itself is formed
(`outer_norms` knows the ways). A convolution is such a product over patches; biases, norms and
embeddings have simple sums (`kinds`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dither.engine.batch_axis import Layout
from dither.engine.kinds import Caught, Kind, Product, Rows
from dither.engine.outer_norms import cheapest
from dither.torch_internals import version


@dataclass
class Use:
    """One use of a parameter, or of a slice of it, in a forward.

    region    (offset, shape, stride) of the slice in its storage
    out, type  shape and type of what the function gave
    features  its trailing dimensions that are no positions; −1 where the parameter is broadcast
    caught    the columns under way [K, *out], once they have come by
    """

    name: str
    kind: Kind
    shape: torch.Size
    region: tuple
    out: torch.Size
    type: torch.dtype
    features: int
    candidates: list[Layout]
    caught: Caught | None = None

    def __post_init__(self) -> None:
        a = self.kind.a
        self.version = version(a) if isinstance(a, Tensor) else 0

    @property
    def overwritten(self) -> bool:
        """Whether the operand was changed in place after its use."""
        return isinstance(self.kind.a, Tensor) and version(self.kind.a) != self.version

    @property
    def layout(self) -> Layout:
        return self.candidates[0]

    def catch(self, caught: Caught) -> None:
        """The columns come by."""
        self.caught = caught if self.caught is None else Caught(self.caught.g + caught.g)

    @property
    def g(self) -> Tensor:
        """The columns under way [K, *out]."""
        assert self.caught is not None
        return self.caught.g

    def dense(self, k: int) -> Tensor:
        """G [B, *shape] of column k."""
        return self.kind.dense(self.g[k], self.layout, self.shape)

    def squares(self, sign: list[float]) -> Tensor | None:
        """Σ_k sign_k Σ_i G_ki∘G_ki [*shape], where it can be had without each G."""
        weight, total = self.g.new_tensor(sign), None
        for side in (1, -1):
            kept = side * weight > 0
            if bool(kept.any()):
                root = (side * weight[kept]).sqrt().view(-1, *[1] * (self.g.dim() - 1))
                part = self.kind.squares(self.g[kept] * root, self.layout, self.shape)
                if part is None:
                    return None
                part = part if side == 1 else -part
                total = part if total is None else total + part
        return self.g.new_zeros(self.shape) if total is None else total

    def norm2(self) -> Tensor | None:
        """‖G_i‖² [K, B], where samples are in front and it can be had at once."""
        layout = self.layout
        if self.caught is None or (layout.way, layout.at) != ("dim", 0):
            return None
        return self.kind.norm2(self.caught, layout, self.shape)


@dataclass
class Gradient:
    """The per-sample gradients of one parameter for K columns: all its uses together."""

    uses: list[Use]
    parameter: Tensor
    at: int | None = None  # the only column that is looked at; None: all

    @property
    def columns(self) -> list[int]:
        return [self.at] if self.at is not None else list(range(len(self.uses[0].g)))

    def column(self, k: int) -> Gradient:
        """The gradient of column k alone."""
        return Gradient(self.uses, self.parameter, k)

    def norm2(self) -> Tensor:
        """‖G_i‖² [K, B]: slices apart from each other, uses of one slice summed before."""
        regions: dict[tuple, list[Use]] = {}
        for use in self.uses:
            regions.setdefault(use.region, []).append(use)
        if not apart(list(regions)):
            rows = [self.column(k).dense()[0].flatten(1).square().sum(1) for k in self.columns]
            return torch.stack(rows)
        if self.at is None and len(regions) == len(self.uses):
            found = [use.norm2() for use in self.uses]
            if all(f is not None for f in found):
                return sum(found[1:], found[0])  # pyright: ignore
        rows = [
            torch.stack([square(uses, k) for uses in regions.values()]).sum(0) for k in self.columns
        ]
        return torch.stack(rows)

    def __mul__(self, other: Tensor) -> Tensor:
        """G∘other, formed [1, B, *shape]: for noises that weigh the elements."""
        return self.dense() * other

    def dense(self) -> Tensor:
        """G of one column [1, B, *shape]: every use put where its slice lies in the storage."""
        (k,) = self.columns
        return self._placed([(use, use.dense(k)) for use in self.uses]).unsqueeze(0)

    def squares(self, sign: list[float]) -> Tensor:
        """Σ_k sign_k Σ_i G_ki∘G_ki [*shape] of all columns, the diagonal of Σ_k sign_k Gᵀ_k G_k."""
        found = []
        for use in self.uses if apart([use.region for use in self.uses]) else ():
            total = use.squares(sign)
            if total is None:
                break
            found.append((use, total.unsqueeze(0)))
        else:
            if found:
                return self._placed(found).squeeze(0)
        rows = (s * self.column(k).dense()[0].square().sum(0) for k, s in enumerate(sign))
        return sum(rows)  # pyright: ignore

    def _placed(self, parts: list[tuple[Use, Tensor]]) -> Tensor:
        """Σ [n, *shape] of what belongs to each use's slice, [n, *slice]."""
        w = self.parameter
        if all(use.shape == w.shape and use.region[2] == w.stride() for use in self.uses):
            (_, first), *rest = parts
            return sum((part for _, part in rest), first)
        places = torch.arange(w.numel(), device=w.device)
        total: Any = 0
        for use, part in parts:
            offset, shape, stride = use.region
            at = places.as_strided(shape, stride, offset - w.storage_offset()).reshape(-1)
            part = part.reshape(-1, use.shape.numel())
            total = total + part.new_zeros(len(part), w.numel()).index_add(1, at, part)
        return total[:, places.as_strided(w.shape, w.stride())]


def apart(regions: list[tuple]) -> bool:
    """Whether slices (offset, shape, stride) of one storage surely don't overlap."""
    spans = sorted(
        (o, o + sum((n - 1) * d for n, d in zip(s, t, strict=True))) for o, s, t in regions
    )
    return all(a[1] < b[0] for a, b in pairwise(spans))


def square(uses: list[Use], k: int) -> Tensor:
    """‖Σ_uses G_i‖² [B] of column k, by the smaller of two contractions where all are products of
    one kind.
    """
    first = uses[0]
    pairs = [_pair(use, k, first) for use in uses]
    if all(pair is not None for pair in pairs):
        a, g = (torch.cat(ts, 2) if len(uses) > 1 else ts[0] for ts in zip(*pairs, strict=True))  # pyright: ignore
        t, i, o = a.shape[2], a.shape[3], g.shape[3]
        if t == 1:
            return (a.square().sum((2, 3)) * g.square().sum((2, 3))).sum(1)
        way = cheapest(1, t, i, o, a, g)
        if way is None:
            return (g.mT @ a).square().sum((1, 2, 3))
        return way.norm2(way.small(a), g).sum(1)
    if len(uses) == 1 and isinstance(first.kind, Rows):
        found = first.kind.square(first.g[k], first.layout)
        if found is not None:
            return found
    g: Any = sum(use.dense(k) for use in uses)
    return g.reshape(g.shape[0], -1).square().sum(1)


def _pair(use: Use, k: int, first: Use) -> tuple[Tensor, Tensor] | None:
    """The operand and the gradient of a product that can be summed with the first; else None."""
    kind, other = use.kind, first.kind
    if not (isinstance(kind, Product) and isinstance(other, Product)):
        return None
    if kind.transposed != other.transposed:
        return None
    return kind.pairs(use.g[k], use.layout, use.shape)
