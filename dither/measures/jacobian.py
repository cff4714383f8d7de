"""Norms of the layer-to-layer Jacobians, and traces of the weights.

    h_k = φ(W_k h_{k−1} + b_k),     W̃_k = ∂h_k/∂h_{k−1} = diag(φ′(a_k)) W_k

In ReLU networks W̃_k is W_k with 0 in the rows of the inactive units of layer k (columns in Camuto
et al. 2020, §4). For an example i

    frobenius  ‖W̃_k‖_F = √(Σ_u φ′(a_u)² ‖W_u·‖²)     no Jacobian is formed: O(B·out)
    square     ‖W̃_k‖_F²                              R penalises it k times, Camuto §4
    spectral   ‖W̃_k‖₂, the largest singular value      one eigenvalue problem [in, in] per example

In a stacked model (`build_stacked`) weights are [S, out, in] and slopes [S, B, out]. All results
then have a first dimension S.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dither.attach.reading import silenced
from dither.calling import evaluating
from dither.errors import DitherError

ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh,
    nn.Softplus, nn.Hardtanh, nn.Identity,
)  # fmt: skip

FUNCTIONS = {
    "relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "celu", "selu", "gelu", "silu", "mish",
    "sigmoid", "logsigmoid", "hardsigmoid", "tanh", "hardtanh", "tanhshrink", "softplus",
    "softsign", "hardswish", "threshold", "clamp", "clamp_min", "clip", "square", "sin", "cos",
}  # fmt: skip


def frobenius(w: Tensor, slope: Tensor) -> Tensor:
    """‖diag(φ′) W‖_F per example, [*S, B]; w [*S, out, in], slope = φ′(a) [*S, B, out]."""
    return square(w, slope).sqrt()


def square(w: Tensor, slope: Tensor) -> Tensor:
    """‖diag(φ′) W‖_F² = Σ_u φ′_u² ‖W_u·‖² per example, [*S, B]."""
    rows = w.square().sum(-1)  # [*S, out]
    return (slope.square() @ rows.unsqueeze(-1)).squeeze(-1)


def spectral(w: Tensor, slope: Tensor, chunk: int = 64) -> Tensor:
    """‖diag(φ′) W‖₂ per example, [*S, B]: √λ_max of Wᵀ diag(φ′²) W, `chunk` examples at a time."""
    parts = []
    for some in slope.split(chunk, -2):
        scaled = some.unsqueeze(-1) * w.unsqueeze(-3)  # [*S, b, out, in]
        wide = scaled.shape[-1] > scaled.shape[-2]
        gram = scaled @ scaled.mT if wide else scaled.mT @ scaled
        parts.append(torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt())
    return torch.cat(parts, -1)


def trace(w: Tensor) -> Tensor:
    """Tr(W) of square weights [*S, d, d], [*S]. Camuto et al. take it for the number of negative
    entries.

    Unlike the norms it changes with the order of the units of a layer.
    """
    if w.shape[-1] != w.shape[-2]:
        raise DitherError(
            f"trace: W is {list(w.shape[-2:])}, and only square weights have a trace; take a norm"
        )
    return w.diagonal(dim1=-2, dim2=-1).sum(-1)


@dataclass(frozen=True)
class Layer:
    """A fully connected layer at a batch: w [*S, out, in] and slope φ′(a) [*S, B, out]."""

    w: Tensor
    slope: Tensor

    @property
    def is_square(self) -> bool:
        return self.w.shape[-1] == self.w.shape[-2]

    def frobenius(self) -> Tensor:
        """The batch mean of ‖W̃‖_F (not the root of the mean square), [*S]."""
        return frobenius(self.w, self.slope).mean(-1)

    def square(self) -> Tensor:
        """The batch mean of ‖W̃‖_F², [*S]."""
        return square(self.w, self.slope).mean(-1)

    def spectral(self) -> Tensor:
        """The batch mean of ‖W̃‖₂, [*S]."""
        return spectral(self.w, self.slope).mean(-1)

    def trace(self) -> Tensor:
        """Tr(W), [*S]."""
        return trace(self.w)


def layers(model: nn.Module, x: Tensor) -> Mapping[str, Layer]:
    """The model's Linear layers by name, in the order of their calls, with their slopes at x.

    The activation of a layer is the module that is called on its output (one of `ACTIVATIONS`). A
    layer without one, like the last, has φ′ = 1. Costs one forward in eval mode, without noise.
    Raises DitherError if the output of a Linear goes to a module of unknown slope or to an
    activation that is a plain function, and if a Linear is called twice.
    """
    outputs: dict[str, tuple[Any, Tensor]] = {}
    slopes: dict[str, Tensor] = {}

    def linear(name: str):
        def hook(module: nn.Module, args: tuple, z: Tensor) -> None:
            if name in outputs:
                raise DitherError(f"jacobian: {name!r} is called twice: use a module for each call")
            outputs[name] = module, z

        return hook

    def follower(name: str):
        def hook(module: nn.Module, args: tuple) -> None:
            fed = [n for n, (_, z) in outputs.items() if args and args[0] is z]
            if fed and not [*module.children()] and not is_linear(module):
                slopes[fed[0]] = slope_of(module, name, outputs[fed[0]][1])

        return hook

    handles: list[Any] = []
    for name, m in model.named_modules():
        handles.append(m.register_forward_pre_hook(follower(name)))
        if is_linear(m):
            handles.append(m.register_forward_hook(linear(name)))
    try:
        with evaluating(model), silenced(model), torch.no_grad(), _Watch(outputs, slopes):
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: Layer(module.weight.detach(), slopes.get(name, torch.ones_like(z)))
        for name, (module, z) in outputs.items()
    }


class _Watch(TorchFunctionMode):
    """Raises DitherError for an activation function that takes the output of a Linear outside a
    module of `ACTIVATIONS`: its slope would count as 1.
    """

    def __init__(self, outputs: dict[str, tuple[Any, Tensor]], slopes: dict[str, Tensor]) -> None:
        super().__init__()
        self.outputs, self.slopes = outputs, slopes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = getattr(func, "__name__", "").rstrip("_")
        if called in FUNCTIONS and args:
            for name, (_, z) in self.outputs.items():
                if args[0] is z and name not in self.slopes:
                    raise DitherError(
                        f"jacobian: the function {called!r} takes the output of {name!r}, and "
                        "only modules are seen: use a module such as nn.ReLU()"
                    )
        return func(*args, **(kwargs or {}))


def is_linear(module: nn.Module) -> bool:
    """An nn.Linear or a stack of them."""
    return isinstance(module, nn.Linear) or getattr(module, "stacked_linear", False)


def slope_of(activation: nn.Module, name: str, a: Tensor) -> Tensor:
    """φ′ at a, elementwise. At a kink it is autograd's value (ReLU: 0)."""
    if not isinstance(activation, ACTIVATIONS):
        raise DitherError(
            f"jacobian: {name!r} ({type(activation).__name__}) stands between two layers, and its "
            "slope is not known to act element by element"
        )
    with torch.enable_grad():
        a = a.detach().clone().requires_grad_()
        return torch.autograd.grad(activation(a.clone()).sum(), a)[0]
