"""Whether a network is linear in each parameter tensor, away from kinks.

Then D²z[E] = 0 for every direction E within one tensor, and tr ∇²_W L is its Gauss–Newton part. It
holds if only piecewise linear functions act on tensors that depend on a parameter, if no product
has one parameter on both sides, and if nothing is divided by a parameter. One forward is recorded,
with the parameters on which each tensor depends. A function that is not known to be piecewise
linear makes the answer no. The model must be in eval mode.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dither.attach.reading import silenced
from dither.calling import eager, output, tensors
from dither.torch_internals import inside_functorch

# fmt: off
PIECEWISE_LINEAR = frozenset([
    "relu", "relu_", "leaky_relu", "leaky_relu_", "relu6", "hardtanh",
    "hardtanh_", "threshold", "max_pool1d", "max_pool2d", "max_pool3d", "_max_pool1d",
    "_max_pool2d", "_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "dropout", "dropout1d",
    "dropout2d", "dropout3d", "flatten", "reshape", "view", "unflatten", "permute", "transpose",
    "movedim", "contiguous", "pad", "unsqueeze", "squeeze", "expand", "chunk", "split",
    "narrow", "__getitem__", "cat", "stack", "mean", "sum", "add", "add_", "__add__",
    "__radd__", "__iadd__", "sub", "__sub__", "neg", "__neg__", "clone", "detach", "to",
    "type_as", "size", "dim", "numel", "is_floating_point", "requires_grad_", "__get__",
])
PRODUCTS = frozenset([
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "mul", "mul_", "__mul__", "__rmul__", "__imul__", "matmul", "__matmul__",
    "mm", "addmm", "bmm", "baddbmm",
])
QUOTIENTS = frozenset(["div", "div_", "__truediv__", "__itruediv__"])
# fmt: on


def multilinear(model: nn.Module, x: Any) -> bool:
    """Whether one forward of two samples, without noise, calls only functions that are piecewise
    linear in each parameter.
    """
    few = x[:2] if isinstance(x, Tensor) and x.dim() and len(x) > 2 else x
    with torch.no_grad(), alone(model):
        try:
            return _linear_at(model, few)
        except (RuntimeError, ValueError, IndexError):  # some models need the whole batch
            if few is x:
                raise
            return _linear_at(model, x)


def _linear_at(model: nn.Module, x: Any) -> bool:
    met = _Met(model, x)
    with met:
        z = output(model, x)
    return met.linear and met.known(z)


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """No injection on the model adds noise or moves its clock. Compiled submodules run eagerly."""
    with silenced(model), eager():
        yield


class _Met(TorchFunctionMode):
    """Records the parameters on which each tensor depends, by its storage, which views share."""

    def __init__(self, model: nn.Module, x: Any) -> None:
        super().__init__()
        self.linear = True
        self.own = {id(p): frozenset([id(p)]) for p in model.parameters()}
        self.carried: dict[int, frozenset[int]] = {}
        self.alive: list[Tensor] = []  # kept, so that no address is used twice
        for t in (*tensors(x), *model.buffers()):
            self._note(t, frozenset())
        for p in model.parameters():
            self._note(p, self.own[id(p)])

    def known(self, t: Tensor) -> bool:
        """Whether t is a parameter, a buffer, the input, or the result of a recorded function."""
        return _place(t) in self.carried

    def _note(self, t: Tensor, carries: frozenset[int]) -> None:
        self.alive.append(t)
        self.carried[_place(t)] = self.carried.get(_place(t), frozenset()) | carries

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if inside_functorch():  # its tensors have no storage to be known by
            self.linear = False
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in ("fn", "boolean_dispatch"):  # torch chooses between two forms of pooling
            with self:
                return func(*args, **kwargs)
        taken = [self._carries(a) for a in (*args, *kwargs.values())]
        self.linear &= self._linear(name, taken, args, kwargs)
        out = func(*args, **kwargs)
        for t in _flat(out):
            self._note(t, frozenset().union(*taken))
        return out

    def _carries(self, a: Any) -> frozenset[int]:
        """The parameters an argument depends on."""
        carried = [self.own.get(id(t)) or self.carried.get(_place(t)) for t in _flat(a)]
        self.linear &= None not in carried  # its origin was not recorded
        return frozenset().union(*(c for c in carried if c))

    def _linear(self, name: str, taken: list[frozenset[int]], args: tuple, kwargs: dict) -> bool:
        """Whether a function is linear in each parameter, if its arguments are."""
        apart = sum(map(len, taken)) == len(frozenset().union(*taken))
        if not any(taken) or name in PIECEWISE_LINEAR:
            return True
        if name in QUOTIENTS:
            return not self._carries((*args[1:], *kwargs.values()))
        if name == "batch_norm":  # args: x, mean, variance, γ, β, whether by the batch's own
            running = args[1:3], kwargs.get("running_mean"), kwargs.get("running_var")
            own = args[5] if len(args) > 5 else kwargs.get("training", False)
            return apart and not own and not self._carries(running)
        return apart and name in PRODUCTS


def _flat(a: Any) -> list[Tensor]:
    """The tensors in an argument or result."""
    if isinstance(a, Tensor):
        return [a]
    if isinstance(a, Mapping):
        a = list(a.values())
    return [t for part in a for t in _flat(part)] if isinstance(a, list | tuple) else []


def _place(t: Tensor) -> int:
    return t.untyped_storage()._cdata if t.layout == torch.strided else id(t)
