"""The columns of √H, made one at a time, and the shapes of outputs and targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dither.errors import DitherError


class Columns(NamedTuple):
    """`count` columns of S, made one at a time: `column(k)` is [*z.shape]; `sign(k)` is +1 or −1
    where H = Σ ± S_k S_kᵀ.

    `mixed(r)` is Σ_k r_k S_k for signs r [*z.shape]: one column with the right mean (and
    gradient) of any quadratic form.
    """

    count: int
    column: Callable[[int], Tensor]
    mixed: Callable[[Tensor], list[tuple[int, Tensor]]]
    sign: Callable[[int], int] = lambda _: 1

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ((self.sign(k), self.column(k)) for k in range(self.count))


def of_type(columns: Columns, dtype: torch.dtype) -> Columns:
    """The same columns in the precision of the outputs, from which they are pulled back."""
    made, mixed = columns.column, columns.mixed
    return Columns(
        columns.count,
        lambda k: made(k).to(dtype),
        lambda r: [(sign, column.to(dtype)) for sign, column in mixed(r)],
        columns.sign,
    )


def diagonal(root: Tensor) -> Columns:
    """Columns of a diagonal H = diag(root²), root [B, …]: one per output of a sample."""
    d = root[0].numel()

    def column(k: int) -> Tensor:
        e = torch.zeros(d, dtype=root.dtype, device=root.device)
        e[k] = 1
        return root * e.view(root.shape[1:])

    return Columns(d, column, lambda r: [(1, root * r)])


def eigen(h: Tensor, shape: torch.Size) -> Columns:
    """Columns √|λ_k| v_k of H [B, D, D], with the sign of λ_k. There are D of them, and D more if
    an eigenvalue is negative.
    """
    value, vector = torch.linalg.eigh(h)
    d = value.shape[1]
    sizes = [(1, value.clamp(min=0).sqrt())]
    if bool((value < -1e-12 * value.abs().amax()).any()):
        sizes.append((-1, (-value).clamp(min=0).sqrt()))

    def column(k: int) -> Tensor:
        return (vector[..., k % d] * sizes[k // d][1][:, k % d, None]).view(shape)

    def mixed(r: Tensor) -> list[tuple[int, Tensor]]:
        return [
            (sign, (vector @ (size * r.reshape(r.shape[0], -1)).unsqueeze(-1)).view(shape))
            for sign, size in sizes
        ]

    return Columns(d * len(sizes), column, mixed, lambda k: sizes[k // d][0])


def polarised(h: Tensor, shape: torch.Size) -> Columns:
    """Columns ½(s r ± H r/s) of H [B, D, D], with signs ±. s² is the largest |H|, so that both
    terms have the same size.
    """
    d = h.shape[1]
    s = h.detach().abs().amax().clamp(min=torch.finfo(h.dtype).tiny).sqrt()

    def pair(r: Tensor) -> list[tuple[int, Tensor]]:  # r [B, D]
        hr = (h @ r.to(h.dtype).unsqueeze(-1)).squeeze(-1) / s
        return [(1, ((s * r + hr) / 2).view(shape)), (-1, ((s * r - hr) / 2).view(shape))]

    def column(k: int) -> Tensor:
        e = torch.zeros_like(h[:, 0])
        e[:, k // 2] = 1
        return pair(e)[k % 2][1]

    return Columns(
        2 * d, column, lambda r: pair(r.reshape(r.shape[0], -1)), lambda k: 1 - 2 * (k % 2)
    )


def squeezed(t: Tensor) -> list[int]:
    """The shape without its dimensions of size 1."""
    return [n for n in t.shape if n != 1]


def positions(losses: Tensor) -> Tensor:
    """[B, T…] → [B, P]."""
    return losses.flatten(1) if losses.dim() > 1 else losses.unsqueeze(1)


def places(z: Tensor) -> int:
    """Positions of a sample: the product of the dimensions between batch and classes."""
    return math.prod(z.shape[1:-1])


def steps(z: Tensor) -> int:
    """T of a sequence z [B, T, C]; any other shape is one position."""
    return z.shape[1] if z.dim() == 3 else 1


def at_position(s: Tensor, place: int) -> Tensor:
    """S [B, T…, C] with 0 at all positions but one."""
    if places(s) == 1:
        return s
    flat = s.flatten(1, -2)
    kept = F.one_hot(torch.tensor(place), flat.shape[1]).to(flat).unsqueeze(-1)
    return (flat * kept).view_as(s)


def aligned(z: Tensor, y: Tensor, ignored: int = -100) -> tuple[Tensor, Tensor]:
    """Outputs and targets with the classes last: z [B, T…, C], and y [B, T…] of class numbers or
    [B, T…, C] of probabilities. z may be [B, C, T…] too, as in torch.

    Raises DitherError if the shapes do not fit, if they fit both ways, or if a target is out of
    range.
    """
    check_outputs(z)
    z, y = classes_last(z, checked_targets(z, y))
    if not y.is_floating_point():
        check_range(y, z.shape[-1], ignored)
    return z, y


def check_outputs(z: Tensor) -> None:
    """Raises DitherError unless z has a dimension of classes, two or more if z is [B, C]."""
    if z.dim() < 2:
        raise DitherError(
            f"cross_entropy needs outputs [B, C] or [B, T…, C]: got {tuple(z.shape)}; for one "
            "output use 'logistic'"
        )
    if z.shape[-1] == 1 and z.dim() == 2:
        raise DitherError(
            f"cross_entropy needs two outputs or more: got {tuple(z.shape)}, where it is always 0; "
            "use 'logistic' for two classes, 'half_square' or nn.MSELoss() for numbers"
        )


def checked_targets(z: Tensor, y: Tensor) -> Tensor:
    """Class numbers as int64, which torch asks for; probabilities as they are. Raises DitherError
    if probabilities do not have the shape of z.
    """
    if y.is_complex():
        raise DitherError(
            f"cross_entropy needs class numbers or probabilities as targets: got {y.dtype}"
        )
    if not y.is_floating_point():
        return y.long()
    if y.shape != z.shape:
        raise DitherError(
            "targets are class numbers, whole numbers such as y.long(), or probabilities of the "
            f"outputs' shape: got y {tuple(y.shape)} of {y.dtype} and z {tuple(z.shape)}"
        )
    return y


def classes_last(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [B, T…, C] as they are, and [B, C, T…] with dimension 1 moved to the end; y too.

    Raises DitherError if the targets fit neither order, or both.
    """
    last, second = _is_class_dim(z, y, -1), z.dim() > 2 and _is_class_dim(z, y, 1)
    if last and second:
        raise DitherError(
            f"outputs {tuple(z.shape)} with targets {tuple(y.shape)} can be read with the classes "
            "last or second: flatten the positions into the batch, or give a callable loss"
        )
    if not (last or second):
        raise DitherError(
            f"targets {tuple(y.shape)} don't fit outputs {tuple(z.shape)}: cross_entropy needs y "
            "[B] or [B, T…], or probabilities ≥ 0 that sum to 1 over the classes; for numbers "
            "use 'half_square' or nn.MSELoss()"
        )
    if last:
        return z, y
    return z.movedim(1, -1), y.movedim(1, -1) if y.is_floating_point() else y


def _is_class_dim(z: Tensor, y: Tensor, dim: int) -> bool:
    """Whether `dim` of z may count the classes: y is z's shape without it, or sums to 1 over it.
    Rows of probabilities [B, C] may have any sum: torch takes weighted ones too.
    """
    if y.is_floating_point():
        return _sums_to_one(y, dim) if y.dim() > 2 else bool((y >= -1e-3).all())
    rest = list(z.shape)
    del rest[dim]
    return rest == list(y.shape)


def check_range(y: Tensor, classes: int, ignored: int) -> None:
    """Raises DitherError unless each class number is in 0 … classes − 1 or `ignored`."""
    counted = y[y != ignored]
    if not counted.numel():
        return
    low, high = int(counted.min()), int(counted.max())
    if low < 0 or high >= classes:
        raise DitherError(
            f"targets must lie in 0 … {classes - 1}, or be ignore_index = {ignored}: got "
            f"{low if low < 0 else high}; the model has {classes} outputs"
        )


def _sums_to_one(y: Tensor, dim: int) -> bool:
    return bool((y.sum(dim) - 1).abs().max() < 1e-3)


def unaligned(s: Tensor, shape: torch.Size) -> Tensor:
    """Back to the order of dimensions of the model."""
    return s if s.shape == shape else s.movedim(-1, 1)
