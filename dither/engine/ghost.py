"""Per-sample gradient norms of parameters without per-sample gradients.

Sample i's gradient of a matrix used as z_t = W a_t is Σ_t g_t a_tᵀ, and

    ‖Σ_t g_t a_tᵀ‖² = Σ_{t,t'} (g_t·g_t')(a_t·a_t'),
    (ghost norm)

so T×T matrices will do; where they are larger than the matrix, the sum itself is formed
(`outer_norms` knows the ways). A convolution is such a product over patches; biases, norms and
embeddings have simple sums.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dither.engine.batch_axis import Layout
from dither.engine.conv_norms import Patch
from dither.engine.outer_norms import KEPT, Way, cheapest, rows2

HOW = ("stride", "padding", "dilation")


class Caught:
    """The gradients of K columns [K, …] that came by a tap; what several uses ask, once."""

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
class Use:
    """One use of a parameter (or of a slice of it): how g and the operand a make the per-sample
    gradient.

    kind  "outer" Σ_t g_t a_tᵀ, "batched" the same with a slice of W for each leading index, "sum"
          Σ_t g_t, "scale" Σ_t g_t∘a_t, "rows" (embedding), "conv" (any convolution), "elementwise"
          (broadcast).
    """

    name: str
    kind: str
    a: Any
    shape: torch.Size  # of the parameter or slice
    region: tuple
    out: torch.Size  # of what it gave
    features: int  # trailing dimensions of that which are no positions; −1 for elementwise
    options: dict[str, Any] = field(default_factory=dict)
    candidates: list[Layout] = field(default_factory=list)
    caught: Caught | None = None  # the columns under way, once they have come by
    g: Any = None  # the gradient of one of them
    unfolded: Tensor | None = None
    over: bool = False  # all columns have been pulled back
    norm2: Tensor | None = None  # of the operand, kept from column to column
    columns: int = 1  # how many will come by, in all
    way: Way | None = None  # how their norms are had together, once it is chosen
    small: Tensor | None = None  # what that makes of the operand: kept too

    def __post_init__(self) -> None:
        self.version = self.a._version if isinstance(self.a, Tensor) else 0

    @property
    def overwritten(self) -> bool:
        """Whether the operand was changed in place after its use."""
        return isinstance(self.a, Tensor) and self.a._version != self.version

    def catch(self, caught: Caught) -> None:
        if self.over:
            return
        self.caught = caught if self.caught is None else Caught(self.caught.g + caught.g)
        self.turn(0)

    def turn(self, k: int) -> None:
        """Let column k of those under way be the one that is looked at."""
        self.g = None if self.caught is None else self.caught.g[k]

    def forget(self) -> None:
        """No column is under way."""
        self.caught = self.g = None

    def let_go(self) -> None:
        """No column will come any more: what still comes by is a backward of somebody else's."""
        self.over = True
        self.forget()

    def split(self) -> tuple[Tensor, Tensor]:
        """(a, g) of an outer product as [B, G, T, I] and [B, G, T, O]."""
        layout, g = self.candidates[0], self.g
        if (
            self.kind == "batched" and layout.way == "dim" and layout.at == 1
        ):  # a slice W_e per group
            return layout.first(self.a).unsqueeze(2), layout.first(g).unsqueeze(2)
        if self.kind in ("outer", "batched"):
            return layout(self.a, 1).unsqueeze(1), layout(g, 1).unsqueeze(1)
        a, groups = self.patches(), self.options["groups"]
        a, g = layout(a, a.dim() - 1), layout(g, g.dim() - 1)  # [B, P, C·k, T], [B, P, O, spatial…]
        g = g.flatten(3).unflatten(2, (groups, -1))  # [B, P, G, O/G, T]
        a = a.unflatten(2, (groups, -1))
        return a.permute(0, 2, 1, 4, 3).flatten(2, 3), g.permute(0, 2, 1, 4, 3).flatten(2, 3)

    def together(self) -> Tensor | None:
        """‖G_i‖² of all columns under way [K, B], where samples are in front and it can be had at
        once; else None.
        """
        caught, layout = self.caught, self.candidates[0]
        if caught is None or (layout.way, layout.at) != ("dim", 0):
            return None
        g = caught.g  # [K, B, …]
        if self.kind == "sum":
            if g.dim() == self.features + 2:  # [K, B, *shape], or [K, B, C, positions…]
                channels = self.options.get("channels") and g.dim() > 3
                return rows2(g.flatten(3).sum(3)) if channels else caught.norm2
            along = tuple(range(2, g.dim() - len(self.shape)))
            return None if self.options.get("channels") else rows2(g.sum(along))
        if self.kind == "scale" and self.options.get("channels") and g.dim() > 3:
            return rows2(torch.einsum("kncs,ncs->knc", g.flatten(3), self.a.flatten(2)))
        if self.kind == "outer" and g.dim() == 3:
            if self.norm2 is None:
                self.norm2 = rows2(self.a.unsqueeze(0))
            return caught.norm2 * self.norm2
        if not (self.kind == "outer" or (self.is_outer and self.options["groups"] == 1)):
            return None
        o = g.shape[2] if self.kind == "conv" else g.shape[-1]
        if self.way is None:
            t, i = g[0, 0].numel() // o, self.shape.numel() // o
            self.way = cheapest(self.columns, t, i, o, self.a, g, self.patch)
        if self.way is None:
            return None
        if not self.way.whole:
            g = g.flatten(3).mT if self.kind == "conv" else g.flatten(2, -2)  # [K, B, T, O]
        if self.small is None:
            a = self.a if self.way.whole else self.split()[0].squeeze(1)  # [B, T, I]
            if self.columns == 1 or self.way.numbers * len(a) > KEPT:
                return self.way.once(a, g)
            self.small = self.way.small(a)
        return self.way.norm2(self.small, g)

    @property
    def patch(self) -> Patch | None:
        """Where the operand is an image: how the kernel meets it."""
        if self.kind != "conv":
            return None
        stride, padding, dilation = (tuple(self.options[k]) for k in HOW)
        return Patch(tuple(self.shape[2:]), stride, padding, dilation, tuple(self.out[2:]))

    def patches(self) -> Tensor:
        """A convolution's operand unfolded [N, C·k, T]; kept from column to column if not large."""
        if self.unfolded is not None:
            return self.unfolded
        how = {k: self.options[k] for k in HOW}
        found = F.unfold(self.a, tuple(self.shape[2:]), **how)
        if found.numel() <= KEPT:
            self.unfolded = found
        return found

    def dense(self) -> Tensor:
        """The per-sample gradient itself, [B, *shape]."""
        g, layout = self.g, self.candidates[0]
        if self.is_outer:
            a, g = self.split()
            w = g.mT @ a  # [B, G, O, I]
            w = w.mT if self.options.get("transposed") else w
            return (self.sliced(w) if self.kind == "batched" else w).reshape(-1, *self.shape)
        if self.kind == "elementwise":
            return layout.unbroadcast(g if self.a is None else g * self.a, self.shape)
        if self.kind == "rows":
            idx, g = layout(self.a, 0), layout(g, 1)  # [B, T], [B, T, d]
            out = g.new_zeros(g.shape[0], *self.shape)
            return out.scatter_add(1, idx.unsqueeze(-1).expand_as(g), g)
        if self.kind == "conv":
            return self._convolution(layout(self.a, self.a.dim() - 1), layout(g, g.dim() - 1))
        if self.options.get("channels"):  # [N, C, spatial…]
            w = g if self.kind == "sum" else g * self.a
            w = layout(w, w.dim() - 1)
            return w.reshape(*w.shape[:3], -1).sum((1, 3))
        w = g if self.kind == "sum" else g * self.a
        return layout(w, len(self.shape)).sum(1)

    def sliced(self, w: Tensor) -> Tensor:
        """[B, 1 or S, …] → [B, S, …]: what each sample gives to its own slice of S alone."""
        if w.shape[1] == self.shape[0]:
            return w
        s = self.shape[0]
        return w * torch.eye(s, dtype=w.dtype, device=w.device).repeat_interleave(
            w.shape[0] // s, 0
        ).view(-1, s, *[1] * (w.dim() - 2))

    def _convolution(self, a: Tensor, g: Tensor) -> Tensor:
        w = a.new_zeros(self.shape)
        o = self.options

        def one(a: Tensor, g: Tensor) -> Tensor:  # [P, C, …] of one sample
            args = (
                o["stride"],
                o["padding"],
                o["dilation"],
                o["is_transposed"],
                o["output_padding"],
                o["groups"],
            )
            return torch.ops.aten.convolution_backward(g, a, w, None, *args, [False, True, False])[
                1
            ]

        return torch.func.vmap(one)(a, g)

    @property
    def is_outer(self) -> bool:
        return self.kind in ("outer", "batched") or (
            self.kind == "conv" and not self.options["is_transposed"] and len(self.shape) == 4
        )


@dataclass
class Gradient:
    """The per-sample gradient of one parameter: all its uses together, for the column they look at,
    or for all of the `columns` under way.
    """

    uses: list[Use]
    parameter: Tensor
    columns: int = 0

    def norm2(self) -> Tensor:
        """‖G_i‖² [K, B]: slices apart from each other, uses of one slice summed before."""
        regions: dict[tuple, list[Use]] = {}
        for use in self.uses:
            regions.setdefault(use.region, []).append(use)
        separate = apart(list(regions))
        if not self.columns:
            return self._of_one(regions, separate)
        if separate and len(regions) == len(self.uses):
            found = [use.together() for use in self.uses]
            if all(f is not None for f in found):
                return sum(found[1:], found[0])  # pyright: ignore
        rows = []
        for k in range(self.columns):
            for use in self.uses:
                use.turn(k)
            rows.append(self._of_one(regions, separate))
        return torch.cat(rows)

    def _of_one(self, regions: dict[tuple, list[Use]], separate: bool) -> Tensor:
        """The same for the column the uses look at [1, B]."""
        if not separate:
            return self.dense().reshape(1, -1, self.parameter.numel()).square().sum(2)
        return torch.stack([square(uses) for uses in regions.values()]).sum(0, keepdim=True)

    def __mul__(self, other: Tensor) -> Tensor:
        """G∘other, formed [1, B, *shape]: for noises that weigh the elements."""
        return self.dense() * other

    def dense(self) -> Tensor:
        """G itself [1, B, *shape]: every use put where its slice lies in the parameter's
        storage.
        """
        w = self.parameter
        if all(use.shape == w.shape and use.region[2] == w.stride() for use in self.uses):
            return sum(use.dense() for use in self.uses).unsqueeze(0)  # pyright: ignore
        places = torch.arange(w.numel(), device=w.device)
        total: Any = 0
        for use in self.uses:
            offset, shape, stride = use.region
            at = places.as_strided(shape, stride, offset - w.storage_offset()).reshape(-1)
            g = use.dense().reshape(-1, use.shape.numel())
            total = total + g.new_zeros(g.shape[0], w.numel()).index_add(1, at, g)
        return total[:, places.as_strided(w.shape, w.stride())].unsqueeze(0)


def apart(regions: list[tuple]) -> bool:
    """Whether slices (offset, shape, stride) of one storage surely don't overlap."""
    spans = sorted(
        (o, o + sum((n - 1) * d for n, d in zip(s, t, strict=True))) for o, s, t in regions
    )
    return all(a[1] < b[0] for a, b in pairwise(spans))


def square(uses: list[Use]) -> Tensor:
    """‖Σ_uses G_i‖² [B], by the smaller of two contractions where all uses are products of one
    kind.
    """
    if all(
        u.is_outer and u.options.get("transposed") == uses[0].options.get("transposed")
        for u in uses
    ):
        pairs = [u.split() for u in uses]
        a, g = (torch.cat(ts, 2) if len(uses) > 1 else ts[0] for ts in zip(*pairs, strict=True))
        t, i, o = a.shape[2], a.shape[3], g.shape[3]
        if t == 1:
            return (a.square().sum((2, 3)) * g.square().sum((2, 3))).sum(1)
        way = cheapest(1, t, i, o, a, g)
        if way is None:
            return (g.mT @ a).square().sum((1, 2, 3))
        return way.norm2(way.small(a), g).sum(1)
    if len(uses) == 1 and uses[0].kind == "rows":
        idx, g = uses[0].candidates[0](uses[0].a, 0), uses[0].candidates[0](uses[0].g, 1)
        if idx.shape[1] <= 512:
            first = (idx.unsqueeze(1) == idx.unsqueeze(2)).byte().argmax(2)  # [B, T]: same index
            first = first.unsqueeze(-1).expand_as(g)
            return torch.zeros_like(g).scatter_add(1, first, g).square().sum((1, 2))
    g: Any = sum(u.dense() for u in uses)
    return g.reshape(g.shape[0], -1).square().sum(1)
