"""Kinds of use: from the gradient g of what a function gave to the per-sample gradient G [B,
*shape] of the parameter that it used.

    Outer        z_t = W a_t           G_i = Σ_t g_t a_tᵀ
    Batched      z_s = x_s W_s         the same for each slice of a stack W [S, in, out]
    Convolution  W over patches        G_i = Σ_t g_t patch_tᵀ
    Sum          z_t = … + b           G_i = Σ_t g_t
    Scale        z_t = γ∘a_t           G_i = Σ_t g_t∘a_t
    Rows         rows of W by number   G_i: g_t added up in row number a_t
    Elementwise  p broadcast           G_i: g, or g∘a, summed over what p was broadcast along
    Einsum       by letters            G_i: g and a by letters, the samples' kept

`dense` gives G of one column. Of K columns at once `norm2` gives ‖G_i‖² [K, B], and `squares` gives
Σ_k Σ_i G_ki∘G_ki [*shape]; None where that kind has no way to it. B samples, T positions of a
sample, I inputs, O outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dither.engine.batch_axis import Layout
from dither.engine.conv_norms import Patch
from dither.engine.outer_norms import KEPT, Way, cheapest, rows2

BLOCK = 2**20  # numbers of per-sample gradients that are formed at once
HOW = ("stride", "padding", "dilation")


class Caught:
    """The columns that came by a tap, g [K, …], and what several uses ask of them."""

    def __init__(self, g: Tensor) -> None:
        self.g = g
        self._norm2: Tensor | None = None

    @property
    def norm2(self) -> Tensor:
        """‖g‖² over all but the first two dimensions [K, B]."""
        if self._norm2 is None:
            self._norm2 = rows2(self.g)
        return self._norm2


@dataclass
class Kept:
    """What a use has worked out of its operand for the columns to come."""

    columns: int = 1  # how many come, in all
    norm2: Tensor | None = None
    way: Way | None = None
    small: Tensor | None = None
    unfolded: Tensor | None = None


@dataclass
class Kind(ABC):
    """`a` is the operand, None where there is none."""

    a: Any = None
    kept: Kept = field(default_factory=Kept, repr=False)

    @abstractmethod
    def dense(self, g: Tensor, layout: Layout, shape: torch.Size) -> Tensor:
        """G [B, *shape] of one column g [*out]."""

    def norm2(self, caught: Caught, layout: Layout, shape: torch.Size) -> Tensor | None:
        """‖G_i‖² [K, B] of the columns that were caught, all at once; None: not this way."""
        return None

    def squares(self, g: Tensor, layout: Layout, shape: torch.Size) -> Tensor | None:
        """Σ_k Σ_i G_ki∘G_ki [*shape] of columns g [K, *out]; None: not this way."""
        return None

    def pairs(self, g: Tensor, layout: Layout, shape: torch.Size) -> tuple[Tensor, Tensor] | None:
        """(a [B, P, T, I], g [B, P, T, O]) of a product, P of them apart; None for what is none."""
        return None


@dataclass
class Product(Kind):
    """What a product is, whatever its operand: Σ_t g_t a_tᵀ."""

    transposed: bool = False

    def dense(self, g: Tensor, layout: Layout, shape: torch.Size) -> Tensor:
        a, g = self.pairs(g, layout, shape)  # pyright: ignore
        w = g.mT @ a  # [B, P, O, I]
        return (w.mT if self.transposed else w).reshape(-1, *shape)

    def beside(self, g: Tensor) -> Tensor:
        """The columns g [K, …, O] as further outputs of one product, […, K·O]."""
        return g.movedim(0, -2).flatten(-2)

    def squares(self, g: Tensor, layout: Layout, shape: torch.Size) -> Tensor | None:
        pair = self.pairs(self.beside(g), layout, shape)
        if pair is None:
            return None
        a, g = pair[0], pair[1].unflatten(-1, (len(g), -1))  # [B, P, T, I], [B, P, T, K, O]
        if a.shape[2] == 1:  # G∘G = (g∘g)(a∘a)ᵀ, so that all columns are one product
            total = torch.einsum("bpo,bpi->poi", g.square().sum((2, 3)), a.square().squeeze(2))
        else:
            few = max(1, BLOCK // shape.numel())
            some = max(1, few // g.shape[3])
            parts = zip(a.split(some), g.split(some), strict=True)
            total = sum(_squared(a, h) for a, g in parts for h in g.split(few, 3))
        return (total.mT if self.transposed else total).reshape(shape)  # pyright: ignore

    def by_way(self, g: Tensor, layout: Layout, shape: torch.Size, patch: Patch | None) -> Any:
        """By the cheapest of `outer_norms`, what it makes of the operand kept; None: by forming."""
        kept, o = self.kept, g.shape[2] if patch else g.shape[-1]
        if kept.way is None:
            t, i = g[0, 0].numel() // o, shape.numel() // o
            kept.way = cheapest(kept.columns, t, i, o, self.a, g, patch)
        if kept.way is None:
            return None
        if kept.small is None:
            a = self.a
            if not kept.way.whole:
                pair = self.pairs(g[0], layout, shape)
                assert pair is not None
                a = pair[0].squeeze(1)  # pyright: ignore [B, T, I]
        if not kept.way.whole:
            g = g.flatten(3).mT if patch else g.flatten(2, -2)  # [K, B, T, O]
        if kept.small is None:
            if kept.columns == 1 or kept.way.numbers * len(a) > KEPT:  # pyright: ignore
                return kept.way.once(a, g)  # pyright: ignore
            kept.small = kept.way.small(a)  # pyright: ignore
        return kept.way.norm2(kept.small, g)


def _squared(a: Tensor, g: Tensor) -> Tensor:
    """Σ_b Σ_k (Σ_t g_t a_tᵀ)∘(…) [P, O, I] of a [b, P, T, I] and g [b, P, T, k, O]."""
    w = g.flatten(3).mT @ a
    return w.unflatten(2, g.shape[3:]).square_().sum((0, 2))


@dataclass
class Outer(Product):
    """A matrix."""

    def pairs(self, g: Tensor, layout: Layout, shape: torch.Size) -> tuple[Tensor, Tensor]:
        return layout(self.a, 1).unsqueeze(1), layout(g, 1).unsqueeze(1)

    def norm2(self, caught: Caught, layout: Layout, shape: torch.Size) -> Tensor | None:
        if caught.g.dim() > 3:
            return self.by_way(caught.g, layout, shape, None)
        if self.kept.norm2 is None:  # one position: ‖g aᵀ‖ = ‖g‖ ‖a‖
            self.kept.norm2 = rows2(self.a.unsqueeze(0))
        return caught.norm2 * self.kept.norm2


@dataclass
class Batched(Product):
    """A stack of matrices."""

    def pairs(self, g: Tensor, layout: Layout, shape: torch.Size) -> tuple[Tensor, Tensor]:
        if (layout.way, layout.at) == ("dim", 1):  # every sample meets all of the stack
            return layout.first(self.a).unsqueeze(2), layout.first(g).unsqueeze(2)
        return layout(self.a, 1).unsqueeze(1), layout(g, 1).unsqueeze(1)

    def squares(self, g: Tensor, layout: Layout, shape: torch.Size) -> Tensor | None:
        return None

    def dense(self, g: Tensor, layout: Layout, shape: torch.Size) -> Tensor:
        a, g = self.pairs(g, layout, shape)
        w = g.mT @ a
        w = w.mT if self.transposed else w
        if w.shape[1] != shape[0]:  # a sample belongs to one slice: to the others it gives 0
            s, b = shape[0], w.shape[0]
            own = torch.eye(s, dtype=w.dtype, device=w.device).repeat_interleave(b // s, 0)
            w = w * own.view(-1, s, *[1] * (w.dim() - 2))
        return w.reshape(-1, *shape)


@dataclass
class Convolution(Product):
    """Any convolution; `options` are those of aten's convolution."""

    options: dict[str, Any] = field(default_factory=dict)
    out: tuple[int, ...] = ()  # the size of what it gave

    @property
    def is_product(self) -> bool:
        return not self.options["is_transposed"] and self.a.dim() == 4

    def patch(self, shape: torch.Size) -> Patch:
        """How the kernel, of the parameter's shape, meets the image."""
        stride, padding, dilation = (tuple(self.options[k]) for k in HOW)
        return Patch(tuple(shape[2:]), stride, padding, dilation, tuple(self.out[2:]))

    def pairs(self, g: Tensor, layout: Layout, shape: torch.Size) -> tuple[Tensor, Tensor] | None:
        if not self.is_product:
            return None
        a, groups = self._patches(shape), self.options["groups"]
        a, g = layout(a, a.dim() - 1), layout(g, g.dim() - 1)  # [B, P, C·k, T], [B, P, O, …]
        g = g.flatten(3).unflatten(2, (groups, -1))  # [B, P, groups, O/groups, T]
        a = a.unflatten(2, (groups, -1))
        return a.permute(0, 2, 1, 4, 3).flatten(2, 3), g.permute(0, 2, 1, 4, 3).flatten(2, 3)

    def beside(self, g: Tensor) -> Tensor:
        """[K, N, O, …] → [N, groups·K·O/groups, …]: the outputs of a group stay together."""
        g = g.unflatten(2, (self.options["groups"], -1)).movedim(0, 2)
        return g.flatten(1, 3)

    def _patches(self, shape: torch.Size) -> Tensor:
        """The image unfolded [N, C·k, T]; kept from column to column if it is not large."""
        if self.kept.unfolded is not None:
            return self.kept.unfolded
        found = F.unfold(self.a, tuple(shape[2:]), **{k: self.options[k] for k in HOW})
        if found.numel() <= KEPT:
            self.kept.unfolded = found
        return found

    def norm2(self, caught: Caught, layout: Layout, shape: torch.Size) -> Tensor | None:
        if not self.is_product or self.options["groups"] != 1:
            return None
        return self.by_way(caught.g, layout, shape, self.patch(shape))

    def dense(self, g: Tensor, layout: Layout, shape: torch.Size) -> Tensor:
        if self.is_product:
            return super().dense(g, layout, shape)
        w, o, back = self.a.new_zeros(shape), self.options, torch.ops.aten.convolution_backward
        how = [o[k] for k in (*HOW, "is_transposed", "output_padding", "groups")]

        def one(a: Tensor, g: Tensor) -> Tensor:  # [P, C, …] of one sample
            return back(g, a, w, None, *how, [False, True, False])[1]

        a, g = layout(self.a, self.a.dim() - 1), layout(g, g.dim() - 1)
        return torch.func.vmap(one)(a, g)


@dataclass
class Sum(Kind):
    """`channels`: the parameter lies along dimension 1, as a convolution's bias."""

    channels: bool = False

    def weighed(self, g: Tensor) -> Tensor:
        return g

    def dense(self, g: Tensor, layout: Layout, shape: torch.Size) -> Tensor:
        w = self.weighed(g)
        if self.channels:  # [N, C, positions…]
            w = layout(w, w.dim() - 1)
            return w.reshape(*w.shape[:3], -1).sum((1, 3))
        return layout(w, len(shape)).sum(1)

    def norm2(self, caught: Caught, layout: Layout, shape: torch.Size) -> Tensor | None:
        g = caught.g
        if self.channels:
            return rows2(g.flatten(3).sum(3)) if g.dim() > 3 else caught.norm2
        along = tuple(range(2, g.dim() - len(shape)))
        return rows2(g.sum(along)) if along else caught.norm2


@dataclass
class Scale(Sum):
    """A factor along the features, or along the channels."""

    def weighed(self, g: Tensor) -> Tensor:
        return g * self.a

    def norm2(self, caught: Caught, layout: Layout, shape: torch.Size) -> Tensor | None:
        g = caught.g
        if not (self.channels and g.dim() > 3):
            return None
        return rows2(torch.einsum("kncs,ncs->knc", g.flatten(3), self.a.flatten(2)))


@dataclass
class Rows(Kind):
    """Rows of an embedding; `a` holds their numbers."""

    def dense(self, g: Tensor, layout: Layout, shape: torch.Size) -> Tensor:
        idx, g = layout(self.a, 0), layout(g, 1)  # [B, T], [B, T, d]
        out = g.new_zeros(g.shape[0], *shape)
        return out.scatter_add(1, idx.unsqueeze(-1).expand_as(g), g)

    def square(self, g: Tensor, layout: Layout) -> Tensor | None:
        """‖G_i‖² [B] without G."""
        summed = self.at_first(g, layout)
        return None if summed is None else summed.square().sum((1, 2))

    def at_first(self, g: Tensor, layout: Layout) -> Tensor | None:
        """[B, T, d]: positions of one number, added up at the first of them; the others are 0."""
        idx, g = layout(self.a, 0), layout(g, 1)
        if idx.shape[1] > 512:
            return None
        first = (idx.unsqueeze(1) == idx.unsqueeze(2)).byte().argmax(2)  # [B, T]
        first = first.unsqueeze(-1).expand_as(g)
        return torch.zeros_like(g).scatter_add(1, first, g)

    def squares(self, g: Tensor, layout: Layout, shape: torch.Size) -> Tensor | None:
        found = g.new_zeros(shape)
        for column in g:
            summed = self.at_first(column, layout)
            if summed is None:
                return None
            idx = layout(self.a, 0).reshape(-1)
            found.index_add_(0, idx, summed.square().flatten(0, 1))
        return found


@dataclass
class Elementwise(Kind):
    """p + x (`a` None), or p∘a, with p broadcast."""

    def dense(self, g: Tensor, layout: Layout, shape: torch.Size) -> Tensor:
        return layout.unbroadcast(g if self.a is None else g * self.a, shape)


@dataclass
class Einsum(Kind):
    """z = Σ W a over letters: `own` of W, `other` of a, `out` of z."""

    own: str = ""
    other: str = ""
    out: str = ""

    def dense(self, g: Tensor, layout: Layout, shape: torch.Size) -> Tensor:
        letter = self.out[layout.at]
        return torch.einsum(f"{self.out},{self.other}->{letter}{self.own}", g, self.a)
