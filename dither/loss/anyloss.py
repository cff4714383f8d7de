"""A loss of a user's own: autograd gives its Hessian."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from dither.errors import DitherError
from dither.halves import random_half, silence
from dither.loss.columns import Columns, eigen, of_type, polarised, squeezed
from dither.loss.kinks import check_kinks
from dither.torch_internals import inside_vmap


@dataclass(frozen=True)
class AnyLoss:
    """A user's loss f(z, y): [B] per sample, or its mean over the batch. Autograd computes H, which
    may be indefinite. Raises DitherError if H is 0 everywhere (f is linear in z), as R would be 0.

    For a value, H = Σ_k ± S_k S_kᵀ by eigenvalues. For a gradient eigenvectors can't be used: they
    are not smooth at equal eigenvalues. Then H = Σ_k ¼(s e_k + H e_k/s)(…)ᵀ − ¼(s e_k − H
    e_k/s)(…)ᵀ, which holds for any symmetric H and is differentiable. Costs D backward passes of
    the loss alone and a [B, D, D] array, where D counts the outputs of one sample.
    """

    function: Callable[[Tensor, Tensor], Tensor]

    def per_sample(self, z: Tensor, y: Tensor) -> Tensor:
        value = self._value(z, y)
        if value.shape == z.shape[:1]:
            return value
        if value.numel() == z.shape[0] == value.shape[0]:
            return value.reshape(-1)  # [B, 1]
        if value.dim() == 0:
            each = self._one_by_one(z, y)
            if not torch.allclose(each.mean(), value, rtol=1e-4, atol=1e-8):
                raise DitherError(
                    "a loss that gives one number must be the mean over its samples: got "
                    f"{value.item():.4g} where the samples' mean is {each.mean().item():.4g}; give "
                    "one number per sample [B]"
                )
            return each
        raise DitherError(
            f"a loss must give one number per sample [B] or their mean: got "
            f"{tuple(value.shape)} for B = {z.shape[0]}; take the mean or the sum of what belongs "
            "to a sample"
        )

    def _one_by_one(self, z: Tensor, y: Any) -> Tensor:
        """[B] of a loss that gives the mean: all samples at once where torch can, else a loop."""
        b = z.shape[0]
        batched = isinstance(y, Tensor) and y.dim() > 0 and len(y) == b
        if batched and not inside_vmap():
            with suppress(Exception):  # what vmap can't do, the loop can
                each = vmap(lambda zi, yi: self.function(zi.unsqueeze(0), yi.unsqueeze(0)))(z, y)
                if each.shape == (b,):
                    return each
        alone = [self._value(z[i : i + 1], sample(y, i, b)) for i in range(b)]
        return torch.stack([v.reshape(()) for v in alone])

    def _value(self, z: Tensor, y: Any) -> Tensor:
        value = self.function(z, y)
        if not isinstance(value, Tensor):
            raise DitherError(
                "a loss must give a tensor, one number per sample [B] or their mean: got "
                f"{type(value).__name__}"
            )
        return value

    def columns(self, z: Tensor, y: Tensor) -> Columns:
        self.check_apart(z, y)
        self.check_kinks(z, y)
        h = self._curvature(z, y)
        if h.numel() and not h.any() and self._linear(z, y):
            raise DitherError(
                "the loss is linear in the outputs, so that its Hessian is 0: make the model give "
                "the logits, and pass a loss of logits"
            )
        found = polarised(h, z.shape) if h.requires_grad else eigen(h, z.shape)
        return of_type(found, z.dtype)

    def check_apart(self, z: Tensor, y: Tensor) -> None:
        """Raises DitherError if a sample's loss depends on the output of another one. A random half
        of the losses is differentiated. Its gradient must be 0 at the outputs of the other half,
        and that of all losses at its own. A dependent pair is missed with probability ½.
        """
        if len(z) < 2:
            return
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            each = self.per_sample(at, y)
            if not each.requires_grad:
                return
            half = random_half(len(z)).to(each)
            (part,) = torch.autograd.grad((each * half).sum(), at, retain_graph=True)
            (whole,) = torch.autograd.grad(each.sum(), at)
        rest = part - silence(whole, half)
        if rest.norm() > torch.finfo(z.dtype).eps ** 0.5 * whole.norm():
            raise DitherError(
                "the loss of one sample depends on the output of another: R needs a loss of each "
                "sample by itself, f(z, y)[i] of z[i] and y[i]; a contrastive loss has no R"
            )

    def check_kinks(self, z: Tensor, y: Any) -> None:
        """Raises DitherError if the slope of the loss changes by kinks, or if torch has no second
        derivative of it.
        """
        try:
            check_kinks(self.per_sample, z, y)
        except RuntimeError as error:
            if "not implemented" not in str(error):
                return  # what it is, is said where the derivative is needed
            raise DitherError(
                f"the loss has no second derivative in torch ({str(error).splitlines()[0]}): write "
                "it in other functions, or ask dither.expected, which needs none"
            ) from error

    def _linear(self, z: Tensor, y: Tensor) -> bool:
        """Whether H is 0 at 0, −z and y too. A loss that is linear in parts, as Huber's, is curved
        at one of them.
        """
        z = z.detach()
        others = [torch.zeros_like(z), -z] + (
            [y.view_as(z).to(z.dtype)] if squeezed(y) == squeezed(z) else []
        )
        return not any(self._hessian(at, y).any() for at in others)

    def _curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """H in double precision: the differences it is made of (p − p² of a sure softmax) lose
        their digits in single. A loss that cannot take it, as weights of its own are in single,
        is differentiated as it is.
        """
        if z.dtype != torch.float64 and not z.is_mps:
            try:
                return self._hessian(z.double(), y)
            except (RuntimeError, TypeError):
                pass
        return self._hessian(z, y)

    def _hessian(self, z: Tensor, y: Tensor) -> Tensor:
        keep = torch.is_grad_enabled() and z.requires_grad
        with torch.enable_grad():
            at = z if keep else z.detach().requires_grad_()
            total = self.per_sample(at, y).sum()
            if not total.requires_grad:
                raise DitherError(
                    "the loss has no gradient by the model's outputs: it must be computed from "
                    "them with torch, without detach(), no_grad() or numpy"
                )
            (slope,) = torch.autograd.grad(total, at, create_graph=True)
            rows = [
                torch.autograd.grad(
                    entry.sum(), at, create_graph=keep, retain_graph=True, allow_unused=True
                )[0]
                if entry.requires_grad
                else None
                for entry in slope.reshape(z.shape[0], -1).unbind(1)
            ]
        h = torch.stack(
            [(torch.zeros_like(z) if r is None else r).reshape(z.shape[0], -1) for r in rows], 1
        )
        return (h + h.mT) / 2  # [B, D, D]


@dataclass(frozen=True)
class Unreduced:
    """A loss module of torch, [B] per sample: its values without reduction, averaged over what
    belongs to a sample. Where their mean is not the module's own (it has weights, or ignores
    targets) it gives that, a number.
    """

    module: nn.Module

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        without: Any = copy(self.module)
        without.reduction = "none"
        values = without(z, y)
        if values.shape[:1] != z.shape[:1]:
            return self.module(z, y)
        each = values.flatten(1).mean(1) if values.dim() > 1 else values
        whole = each.mean() if self.module.reduction == "none" else self.module(z, y)
        return each if torch.allclose(each.mean(), whole, rtol=1e-5, atol=1e-8) else whole


def sample(y: Any, i: int, batch: int) -> Any:
    """The targets of sample i: one row of each tensor of `batch` rows, also inside tuples, lists
    and mappings. Anything else is returned as it is.
    """
    if isinstance(y, Tensor):
        return y[i : i + 1] if y.dim() and len(y) == batch else y
    if isinstance(y, Mapping):
        return {name: sample(part, i, batch) for name, part in y.items()}
    if isinstance(y, tuple | list):
        return type(y)(sample(part, i, batch) for part in y)
    return y
