"""Functions in plain forms, where torch's higher derivatives of its own are absent or wrong.

In torch 2.13: fused attention has no second derivative, that of `_weight_norm` is wrong, and so are
the third ones of layer norm, of instance norm and batch norm with the batch's own statistics, and
of `logcumsumexp`. tests/test_plain.py asks many functions for all three.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from dither.precision import wide
from dither.torch_internals import weight_norm


def twice(on: bool) -> Any:
    """Where first derivatives are differentiated again."""
    return _plain({weight_norm: _weight_norm}) if on else nullcontext()


def thrice(on: bool) -> Any:
    """Where second derivatives are differentiated again."""
    return _plain({weight_norm: _weight_norm, **_NORMS}) if on else nullcontext()


@contextmanager
def _plain(forms: dict[Any, Callable]) -> Iterator[None]:
    with sdpa_kernel(SDPBackend.MATH), _Plain(forms):
        yield


class _Plain(TorchFunctionMode):
    """Calls the plain forms: {torch's function: ours, with its arguments}."""

    def __init__(self, forms: dict[Any, Callable]) -> None:
        super().__init__()
        self.forms = forms

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        form: Any = self.forms.get(func, func)
        return form(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """W = g v/‖v‖."""
    rest = [d for d in range(v.dim()) if d != dim % v.dim()] if dim != -1 else None
    return v * (g / torch.linalg.vector_norm(v, dim=rest, keepdim=True))


def _standardised(x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    """(x − mean)/√(variance + eps) over these dimensions, in single precision or wider."""
    x = wide(x)
    x = x - x.mean(tuple(dims), keepdim=True)
    return x * (x.square().mean(tuple(dims), keepdim=True) + eps).rsqrt()


def _scaled(h: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    h = h if weight is None else h * weight
    return (h if bias is None else h + bias).to(dtype)


def _by_channel(p: Tensor | None, h: Tensor) -> Tensor | None:
    """A parameter [C] as [C, 1, …], beside h [B, C, …]."""
    return None if p is None else p.reshape(-1, *(1,) * (h.dim() - 2))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    h = _standardised(input, range(-len(normalized_shape), 0), eps)
    return _scaled(h, weight, bias, input.dtype)


def _channelwise(norm: Callable, over_batch: bool) -> Callable:
    """The plain form of F.batch_norm (each channel over the batch too) or F.instance_norm."""
    signature = inspect.signature(norm)

    def form(*args: Any, **kwargs: Any) -> Tensor:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        x, mean, variance, weight, bias, own, momentum, eps = bound.args
        if not own:
            return norm(*bound.args)
        if mean is not None:
            with torch.no_grad():  # which writes the running statistics
                norm(x, mean, variance, None, None, True, momentum, eps)
        dims = [d for d in range(x.dim()) if d > 1 or (d == 0 and over_batch)]
        h = _standardised(x, dims, eps)
        return _scaled(h, _by_channel(weight, h), _by_channel(bias, h), x.dtype)

    return form


def _logcumsumexp(input: Tensor, dim: int) -> Tensor:
    most = input.detach().cummax(dim).values  # each sum is scaled by its own largest term
    most = most.masked_fill(most.isneginf(), 0.0)
    n = input.shape[dim]
    x, most = input.movedim(dim, -1), most.movedim(dim, -1)
    reached = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
    terms = (x.unsqueeze(-2) - most.unsqueeze(-1)).masked_fill(~reached, -torch.inf).exp()
    return (terms.sum(-1).log() + most).movedim(-1, dim)


_batch_norm = _channelwise(F.batch_norm, over_batch=True)
_instance_norm = _channelwise(F.instance_norm, over_batch=False)
_NORMS: dict[Any, Callable] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    torch.batch_norm: lambda x, w, b, mean, var, *how: _batch_norm(x, mean, var, w, b, *how[:3]),
    F.instance_norm: _instance_norm,
    torch.instance_norm: lambda x, w, b, mean, var, *how: _instance_norm(
        x, mean, var, w, b, *how[:3]
    ),
    torch.logcumsumexp: _logcumsumexp,
    Tensor.logcumsumexp: _logcumsumexp,
}
