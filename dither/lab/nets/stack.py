"""Replicas: S small networks as one module, parameters [S, …], hidden tensors [S, B, d].

In narrow networks a step costs Python's overhead, not arithmetic. A stack pays it once for S seeds.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from dither.errors import DitherError


class Stack(nn.Sequential):
    """S replicas of a Sequential: x [S, B, d], or [B, d] for all of them, → [S·B, C]."""

    def __init__(self, layers: "OrderedDict[str, nn.Module]", replicas: int, features: int) -> None:
        super().__init__(layers)
        self.replicas, self.features = replicas, features

    def forward(self, x: Tensor) -> Tensor:
        lead, features = x.shape[:-2], x.shape[-1]
        if x.ndim < 2 or features != self.features or lead not in ((), (self.replicas,)):
            raise DitherError(
                f"a stack of {self.replicas} replicas takes x [B, {self.features}] or "
                f"[{self.replicas}, B, {self.features}], not {list(x.shape)}"
            )
        if x.ndim == 2:  # each replica draws its own noise for the same examples
            x = x.expand(self.replicas, -1, -1)
        return super().forward(x).flatten(0, 1)

    def unstack(self, s: int) -> nn.Sequential:
        """Replica s as a plain module with copies of its parameters."""
        return nn.Sequential(
            OrderedDict((name, _unstacked(layer, s)) for name, layer in self.named_children())
        )


class StackedLinear(nn.Module):
    """h_s ↦ h_s W_sᵀ + b_s for S replicas at once: [S, B, in] → [S, B, out]."""

    bias: nn.Parameter | None
    stacked_linear = True  # noises recognise a Linear by it

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.in_features, self.out_features = layers[0].in_features, layers[0].out_features
        self.weight = nn.Parameter(
            torch.stack([layer.weight.detach() for layer in layers])
        )  # [S, out, in]
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.bias = nn.Parameter(torch.stack(biases)) if biases else None  # [S, out]

    def forward(self, h: Tensor) -> Tensor:
        if self.bias is None:
            return torch.bmm(h, self.weight.mT)
        return torch.baddbmm(self.bias.unsqueeze(1), h, self.weight.mT)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"{len(self.weight)} × ({self.in_features} → {self.out_features}), bias={bias}"

    def unstack(self, s: int) -> nn.Linear:
        weight, bias = self.weight[s], None if self.bias is None else self.bias[s]
        layer = linear(self.in_features, self.out_features, bias is not None, like=weight)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
        return layer


class Diagonal(nn.Module):
    """x ↦ ⟨x, w1∘w1 − w2∘w2⟩, [B, d] → [B, 1]."""

    def __init__(self, w1: Tensor, w2: Tensor) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(w1), nn.Parameter(w2)  # [d]

    @property
    def beta(self) -> Tensor:
        return self.w1**2 - self.w2**2

    def forward(self, x: Tensor) -> Tensor:
        # products, whose uses `explicit` recognises; for x @ beta it would go sample by sample
        return (x * self.w1 * self.w1 - x * self.w2 * self.w2).sum(-1, keepdim=True)


class StackedDiagonal(nn.Module):
    """S diagonal networks: [B, d] or [S, B, d] → [S·B, 1]."""

    def __init__(self, nets: Sequence[Diagonal]) -> None:
        super().__init__()
        self.replicas = len(nets)
        self.w1 = nn.Parameter(torch.stack([net.w1.detach() for net in nets]))  # [S, d]
        self.w2 = nn.Parameter(torch.stack([net.w2.detach() for net in nets]))

    def forward(self, x: Tensor) -> Tensor:
        w1, w2 = self.w1.unsqueeze(1), self.w2.unsqueeze(1)  # [S, 1, d]
        x = x if x.dim() == 3 else x.expand(self.replicas, *x.shape)
        return (x * w1 * w1 - x * w2 * w2).sum(-1, keepdim=True).flatten(0, 1)  # [S·B, 1]

    def unstack(self, s: int) -> Diagonal:
        return Diagonal(self.w1[s].detach().clone(), self.w2[s].detach().clone())


def linear(fan_in: int, fan_out: int, bias: bool, like: Tensor | None = None) -> nn.Linear:
    """An nn.Linear without initial values. torch's default generator does not change."""
    kind = {} if like is None else {"device": like.device, "dtype": like.dtype}
    return skip_init(nn.Linear, fan_in, fan_out, bias=bias, **kind)  # type: ignore[return-value]


def _unstacked(layer: nn.Module, s: int) -> nn.Module:
    """A copy of a module for a replica: noise on it must not stay on the stack's module."""
    return layer.unstack(s) if isinstance(layer, StackedLinear) else type(layer)()
