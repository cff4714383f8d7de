"""Losses per sample, and the columns of √H of each:  S Sᵀ = H = ∂²ℓ/∂z².

A loss is a name, one of these classes, a module of torch (`nn.CrossEntropyLoss`, `nn.NLLLoss`,
`nn.MSELoss`, `nn.BCEWithLogitsLoss`), or any callable. Outputs are z [B, C], [B, T…, C] or [B].
`per_sample(z, y)` is [B], and its mean is torch's mean reduction. The loss of a sequence is the
mean over its positions; if some are ignored, the mean over the batch's counted positions. Each
position has its own columns. For losses without classes only [B, T, C] is a sequence: an image [B,
C, H, W] is one sample of C·H·W outputs.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dither.errors import DitherError
from dither.loss.anyloss import AnyLoss, Unreduced
from dither.loss.columns import (
    Columns,
    aligned,
    at_position,
    diagonal,
    places,
    positions,
    squeezed,
    steps,
    unaligned,
)


@dataclass(frozen=True)
class CrossEntropy:
    """ℓ = −Σ_c t_c ω_c log p_c, p = softmax(z);  H = (Σ_c t_c ω_c)(diag p − p pᵀ).

    y holds class numbers [B] or [B, T…], or probabilities in the shape of z; t is y, smoothed.
    `weight` ω and `ignore_index` as in torch, whose mean divides by the weights of the targets. H
    has rank C − 1: its columns are S_k = √p ∘ (e_k − v √p_k/(1 + √p_1)), v = √p + e_1, k = 2 … C —
    √p times a Householder basis of what is orthogonal to √p.
    """

    label_smoothing: float = 0.0
    weight: Tensor | None = None
    ignore_index: int = -100

    def per_sample(self, z: Tensor, y: Tensor) -> Tensor:
        z, y = aligned(z, y, self.ignore_index)
        if y.is_floating_point():
            return positions(self._of(z, y)).sum(1) / places(z)
        omega = self._omega(z, y)  # [B, T…]
        losses = F.cross_entropy(
            z.movedim(-1, 1),
            y,
            self.weight if self.weight is None else self.weight.to(z.dtype),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return positions(losses).sum(1) * (z.shape[0] / omega.sum())

    def _of(self, z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(
            z.movedim(-1, 1),
            y.movedim(-1, 1),
            self.weight if self.weight is None else self.weight.to(z.dtype),
            label_smoothing=self.label_smoothing,
            reduction="none",
        )

    def _omega(self, z: Tensor, y: Tensor) -> Tensor:
        """The weight of the target at each counted position; torch's mean divides by their sum."""
        counted = y != self.ignore_index
        if self.weight is None:
            return counted.to(z.dtype)
        return self.weight.to(z)[y * counted] * counted

    def _mass(self, z: Tensor, y: Tensor) -> Tensor:
        """√ of the factor of diag p − p pᵀ in H, [B, T…]."""
        if y.is_floating_point():
            t, share = y, torch.full(z.shape[:-1], 1 / places(z), dtype=z.dtype, device=z.device)
            counted = torch.ones_like(share)
        else:
            counted = (y != self.ignore_index).to(z.dtype)
            t = F.one_hot(y * counted.long(), z.shape[-1]).to(z.dtype)
            share = z.shape[0] / self._omega(z, y).sum()
        t = t * (1 - self.label_smoothing) + self.label_smoothing / z.shape[-1] * t.sum(
            -1, keepdim=True
        )
        mass = t.sum(-1) if self.weight is None else (t * self.weight.to(z)).sum(-1)
        return (mass * share * counted).sqrt()

    def columns(self, z: Tensor, y: Tensor) -> Columns:
        shape, (z, y) = z.shape, aligned(z, y, self.ignore_index)
        root_p = (F.log_softmax(z, -1) / 2).exp()  # [B, T…, C]; finite gradient at p → 0
        scaled = self._mass(z, y).unsqueeze(-1) * root_p
        v = torch.cat([root_p[..., :1] + 1, root_p[..., 1:]], -1)  # √p + e_1: no cancellation
        tilt = root_p / (1 + root_p[..., :1])  # so that S r = √p ∘ (r − v ⟨tilt, r⟩)
        c = z.shape[-1]

        def column(k: int) -> Tensor:
            place, k = divmod(k, c - 1)
            s = scaled * -(v * tilt[..., k + 1 : k + 2])
            s = s + scaled * F.one_hot(torch.tensor(k + 1), c).to(z)
            return unaligned(at_position(s, place), shape)

        def mixed(r: Tensor) -> list[tuple[int, Tensor]]:
            r = r if r.shape == z.shape else r.movedim(1, -1)
            r = torch.cat([torch.zeros_like(r[..., :1]), r[..., 1:]], -1)
            return [(1, unaligned(scaled * (r - v * (tilt * r).sum(-1, keepdim=True)), shape))]

        return Columns(places(z) * (c - 1), column, mixed)


@dataclass(frozen=True)
class LogLikelihood(CrossEntropy):
    """`nn.NLLLoss`: the cross-entropy of a model that ends in log_softmax.

    ℓ is linear in log p, so that its H is 0. But log_softmax(log p) = log p: the same number is the
    cross-entropy of log p, and the H of that gives R of the logits. Raises DitherError if the
    outputs are no log-probabilities.
    """

    def per_sample(self, z: Tensor, y: Tensor) -> Tensor:
        log_p, _ = aligned(z, y, self.ignore_index)
        total = log_p.detach().logsumexp(-1)
        if not bool((total.abs() < 1e-3 + 16 * torch.finfo(z.dtype).eps).all()):
            raise DitherError(
                "nn.NLLLoss needs log-probabilities: got outputs whose exponentials sum to "
                f"{total.exp().flatten()[total.abs().argmax()].item():.4g}; end the model with "
                "log_softmax, or pass nn.CrossEntropyLoss() for logits"
            )
        return super().per_sample(z, y)


@dataclass(frozen=True)
class HalfSquare:
    """ℓ = ½ Σ_c (z_c − y_c)² over all outputs c of a sample;  H = I. The papers' loss.

    A sequence z [B, T, C] is averaged over its T positions. No other shape is averaged: an image
    [B, C, H, W] is summed over C·H·W. With `mean` it is `nn.MSELoss` in any shape: 2/(outputs of a
    sample) times the sum.
    """

    mean: bool = False

    def per_sample(self, z: Tensor, y: Tensor) -> Tensor:
        if squeezed(y) != squeezed(z):
            raise DitherError(
                f"{'MSELoss' if self.mean else 'half_square'} needs y in the output's shape: got y "
                f"{tuple(y.shape)} and z {tuple(z.shape)}"
            )
        return self._scale(z) / 2 * positions((z - y.view_as(z)).square()).sum(1)

    def _scale(self, z: Tensor) -> float:
        return 2 / z[0].numel() if self.mean else 1 / steps(z)

    def columns(self, z: Tensor, y: Tensor) -> Columns:
        return diagonal(torch.full_like(z, self._scale(z) ** 0.5, requires_grad=False))


@dataclass(frozen=True)
class Logistic:
    """ℓ = log(1 + exp(−y z)), y ∈ {−1, +1} or {0, 1};  H = p(1 − p), p = 1/(1 + exp(−z)).

    z is [B] or [B, 1]. Several outputs are independent labels, and their losses are summed. A
    sequence z [B, T, C] is averaged over its T positions. With `mean` all outputs are averaged in
    any shape, as in `nn.BCEWithLogitsLoss`.
    """

    mean: bool = False

    def per_sample(self, z: Tensor, y: Tensor) -> Tensor:
        if squeezed(y) != squeezed(z):
            raise DitherError(
                f"logistic needs one label for each output: got y {tuple(y.shape)} and z "
                f"{tuple(z.shape)}"
            )
        y = y.view_as(z).to(z.dtype)
        if self.mean:
            if not bool(((y >= 0) & (y <= 1)).all()):
                raise DitherError(
                    "nn.BCEWithLogitsLoss needs targets in [0, 1]: got others; for labels in "
                    "{−1, +1} use 'logistic', or (y + 1) / 2"
                )
        else:
            y = torch.where(y == -1, torch.zeros_like(y), y)
        if not bool((self.mean | (y == 0) | (y == 1)).all()):
            raise DitherError(
                "logistic needs labels in {−1, +1} or {0, 1}: got others; for classes use "
                "'cross_entropy'"
            )
        return self._scale(z) * positions(
            F.binary_cross_entropy_with_logits(z, y, reduction="none")
        ).sum(1)

    def _scale(self, z: Tensor) -> float:
        return 1 / (z[0].numel() if self.mean else steps(z))

    def columns(self, z: Tensor, y: Tensor) -> Columns:
        return diagonal(((F.logsigmoid(z) + F.logsigmoid(-z)) / 2).exp() * self._scale(z) ** 0.5)


def _check_takes_two(loss: Any) -> None:
    """Raises DitherError for a function or a loss of torch that can't be called as loss(z, y)."""
    if isinstance(loss, nn.modules.loss._Loss):
        asked = loss.forward
    elif inspect.isfunction(loss) or inspect.ismethod(loss):
        asked = loss
    else:
        return
    takes = inspect.signature(asked, follow_wrapped=False)
    try:
        takes.bind(None, None)
    except TypeError:
        name = getattr(loss, "__name__", type(loss).__name__)
        raise DitherError(
            f"a loss is called as loss(z, y), with the model's output and the targets: {name} "
            f"takes ({', '.join(takes.parameters)}); give a function of these two"
        ) from None


def get(loss: Any) -> Any:
    """The loss object of a name, an object with `per_sample` and `columns`, a torch loss module,
    or a callable.
    """
    if isinstance(loss, str):
        if loss not in NAMES:
            raise DitherError(
                f"no loss named {loss!r}: it is one of {', '.join(map(repr, NAMES))}, a callable, "
                "or a loss module of torch such as nn.MSELoss()"
            )
        return NAMES[loss]()
    if hasattr(loss, "per_sample") and hasattr(loss, "columns"):
        return loss
    if isinstance(loss, nn.CrossEntropyLoss) and loss.reduction == "mean":
        return CrossEntropy(loss.label_smoothing, loss.weight, loss.ignore_index)
    if isinstance(loss, nn.NLLLoss) and loss.reduction == "mean":
        return LogLikelihood(weight=loss.weight, ignore_index=loss.ignore_index)
    if isinstance(loss, nn.MSELoss) and loss.reduction == "mean":
        return HalfSquare(mean=True)
    if (
        isinstance(loss, nn.BCEWithLogitsLoss)
        and loss.reduction == "mean"
        and loss.weight is loss.pos_weight is None
    ):
        return Logistic(mean=True)
    if isinstance(loss, nn.Module) and getattr(loss, "reduction", None) in ("mean", "none"):
        _check_takes_two(loss)
        return AnyLoss(Unreduced(loss))
    if callable(loss) and not isinstance(loss, type):
        _check_takes_two(loss)
        return AnyLoss(loss)  # pyright: ignore[reportArgumentType]
    if isinstance(loss, Tensor | np.ndarray | tuple | list | DataLoader):
        got = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise DitherError(
            f"a loss is a name, a loss module or a callable: got {got}; measures of a data set "
            "take (model, loss, data), the others (…, x, y, loss)"
        )
    raise DitherError(
        f"a loss is a name ({', '.join(map(repr, NAMES))}), a loss module or a callable: got "
        + (f"the class {loss.__name__}; call it" if isinstance(loss, type) else repr(loss))
    )


NAMES = {"cross_entropy": CrossEntropy, "half_square": HalfSquare, "logistic": Logistic}
