"""How each torch function uses its parameters: the table that `dither.engine.ghost` meets them by.

A rule calls the function with aliases of the noisy parameters and says, for each, what kind of
sum its per-sample gradient is. To cover another function, add a rule and its line in `RULES`;
what has none goes to the per-sample fallback.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dither.engine.bags import bag
from dither.engine.kinds import (
    Batched,
    Convolution,
    Einsum,
    Elementwise,
    Outer,
    Rows,
    Scale,
    Sum,
)
from dither.engine.recurrent import gru_step, lstm_step, plain_step, unrolled


def linear(mode: Any, func: Any, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Z = x Wᵀ + b."""
    out = func(x, mode.alias(w), mode.alias(b))
    return mode.meet(out, (w, Outer(x)), (b, Sum()))


def matmul(mode: Any, func: Any, x: Tensor, w: Tensor, **kwargs: Any) -> Any:
    """Z = x W, W [in, out]."""
    if kwargs or mode.name_of(x) or w.dim() != 2 or x.dim() < 2:
        return NotImplemented
    return mode.meet(func(x, mode.alias(w)), (w, Outer(x, transposed=True)))


def addmm(mode: Any, func: Any, b: Tensor, x: Tensor, w: Tensor, **kwargs: Any) -> Any:
    """Z = b + x W."""
    if kwargs or mode.name_of(x) or b.dim() != 1:
        return NotImplemented
    out = func(mode.alias(b), x, mode.alias(w))
    return mode.meet(out, (w, Outer(x, transposed=True)), (b, Sum()))


def bmm(mode: Any, func: Any, x: Tensor, w: Tensor) -> Any:
    """z_s = x_s W_s for every s of a stack."""
    if mode.name_of(x):
        return NotImplemented
    return mode.meet(func(x, mode.alias(w)), (w, Batched(x, transposed=True)))


def baddbmm(mode: Any, func: Any, b: Tensor, x: Tensor, w: Tensor) -> Any:
    """z_s = b_s + x_s W_s."""
    if mode.name_of(x):
        return NotImplemented
    out = func(mode.alias(b), x, mode.alias(w))
    uses = (w, Batched(x, transposed=True)), (b, Elementwise())
    return mode.meet(out, *uses)


def convolution(
    mode: Any,
    func: Any,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Convolutions of 1, 2 and 3 dimensions; 'same' and 'valid' paddings too."""
    n = w.dim() - 2
    if x.dim() != n + 2:
        return NotImplemented
    if isinstance(padding, str):
        total = [
            d * (k - 1) if padding == "same" else 0
            for d, k in zip(_many(dilation, n), w.shape[2:], strict=True)
        ]
        x = F.pad(x, [p for t in reversed(total) for p in (t // 2, t - t // 2)])
        padding = 0
    options = _options(n, stride, padding, dilation, groups)
    how = (options[k] for k in ("stride", "padding", "dilation", "groups"))
    return _convolved(mode, func, x, w, b, options, how)


def transposed(
    mode: Any,
    func: Any,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Transposed convolutions."""
    n = w.dim() - 2
    if x.dim() != n + 2:
        return NotImplemented
    options = _options(n, stride, padding, dilation, groups, output_padding)
    how = (options[k] for k in ("stride", "padding", "output_padding", "groups", "dilation"))
    return _convolved(mode, func, x, w, b, options, how)


def _options(
    n: int, stride: Any, padding: Any, dilation: Any, groups: int, output_padding: Any = None
) -> dict[str, Any]:
    """The arguments of a convolution of n dimensions, by name; only a transposed one has an output
    padding.
    """
    return dict(
        stride=_many(stride, n),
        padding=_many(padding, n),
        dilation=_many(dilation, n),
        groups=groups,
        is_transposed=output_padding is not None,
        output_padding=_many(output_padding or 0, n),
    )


def _convolved(
    mode: Any, func: Any, x: Tensor, w: Tensor, b: Any, options: dict[str, Any], how: Any
) -> Tensor:
    out = func(x, mode.alias(w), mode.alias(b), *how)
    uses = (w, Convolution(x, options=options, out=tuple(out.shape))), (b, Sum(channels=True))
    return mode.meet(out, *uses, features=w.dim() - 1)


def embedding(
    mode: Any,
    func: Any,
    x: Tensor,
    w: Tensor,
    padding_idx: int | None = None,
    max_norm: Any = None,
    norm_type: Any = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Rows of W by number."""
    if max_norm is not None:
        return NotImplemented
    return mode.meet(func(x, mode.alias(w)), (w, Rows(x)))  # noise reaches padding's row too


def layer_norm(
    mode: Any,
    func: Any,
    x: Tensor,
    shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Tensor:
    """γ x̂ + β over the last dimensions."""
    out = func(x, shape, mode.alias(weight), mode.alias(bias), eps)
    normal = func(x, shape, None, None, eps) if mode.name_of(weight) else None
    return mode.meet(out, (weight, Scale(normal)), (bias, Sum()), features=len(shape))


def rms_norm(
    mode: Any, func: Any, x: Tensor, shape: Any, weight: Any = None, eps: Any = None
) -> Tensor:
    """γ x/rms(x)."""
    out = func(x, shape, mode.alias(weight), eps)
    return mode.meet(out, (weight, Scale(func(x, shape, None, eps))), features=len(shape))


def batch_norm(
    mode: Any,
    func: Any,
    x: Tensor,
    mean: Any,
    var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """γ x̂ + β over channels, with the running statistics."""
    if training:
        return NotImplemented
    out = func(x, mean, var, mode.alias(weight), mode.alias(bias), False, momentum, eps)
    normal = func(x, mean, var, None, None, False, momentum, eps) if mode.name_of(weight) else None
    return _by_channel(mode, out, normal, weight, bias)


def group_norm(
    mode: Any,
    func: Any,
    x: Tensor,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Tensor:
    """γ x̂ + β over channels, normalised in groups."""
    out = func(x, groups, mode.alias(weight), mode.alias(bias), eps)
    return _by_channel(mode, out, func(x, groups, None, None, eps), weight, bias)


def instance_norm(
    mode: Any,
    func: Any,
    x: Tensor,
    mean: Any = None,
    var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """γ x̂ + β over channels, normalised per sample."""
    if mean is not None:  # would move the running statistics twice
        return NotImplemented
    out = func(x, None, None, mode.alias(weight), mode.alias(bias), use_input_stats, momentum, eps)
    return _by_channel(
        mode, out, func(x, None, None, None, None, use_input_stats, momentum, eps), weight, bias
    )


def _by_channel(mode: Any, out: Tensor, normal: Tensor | None, weight: Any, bias: Any) -> Tensor:
    uses = (weight, Scale(normal, channels=True)), (bias, Sum(channels=True))
    return mode.meet(out, *uses, features=out.dim() - 1)


def add(mode: Any, func: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    """X + p and p + x, broadcast."""
    if (
        kwargs
        or not (isinstance(a, Tensor) and isinstance(b, Tensor))
        or (mode.name_of(a) and mode.name_of(b))
    ):
        return NotImplemented
    out = func(mode.alias(a), mode.alias(b))
    p = a if mode.name_of(a) else b
    return mode.meet(out, (p, Elementwise()))


def multiply(mode: Any, func: Any, a: Any, b: Any) -> Any:
    """X ∘ p and p ∘ x, broadcast."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or (
        mode.name_of(a) and mode.name_of(b)
    ):
        return NotImplemented
    out = func(mode.alias(a), mode.alias(b))
    p, x = (a, b) if mode.name_of(a) else (b, a)
    return mode.meet(out, (p, Elementwise(x)))


def expand(mode: Any, func: Any, p: Tensor, *sizes: Any) -> Any:
    """A parameter repeated over the batch, as class tokens are."""
    return mode.meet(func(mode.alias(p), *sizes), (p, Elementwise()))


def subtract(mode: Any, func: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    """X − p and p − x, broadcast."""
    if kwargs or not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return NotImplemented
    if mode.name_of(a) and mode.name_of(b):
        return NotImplemented
    out = func(mode.alias(a), mode.alias(b))
    minus = bool(mode.name_of(a)) is (func is Tensor.__rsub__)  # b.__rsub__ is the other way
    sign = out.new_tensor(-1.0) if minus else None
    return mode.meet(out, (a if mode.name_of(a) else b, Elementwise(sign)))


def prelu(mode: Any, func: Any, x: Tensor, w: Tensor) -> Any:
    """max(x, 0) + w min(x, 0), w one number or one for each channel."""
    if mode.name_of(x):
        return NotImplemented
    out, below = func(x, mode.alias(w)), x.clamp(max=0)
    if w.numel() == 1:
        return mode.meet(out, (w, Elementwise(below)))
    return mode.meet(out, (w, Scale(below, channels=True)), features=out.dim() - 1)


def einsum(mode: Any, func: Any, equation: Any, *operands: Any) -> Any:
    """Two tensors, of which one is a parameter, letters without repetition."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    known = isinstance(equation, str) and "->" in equation and "." not in equation
    if not known or len(operands) != 2 or sum(bool(mode.name_of(t)) for t in operands) != 1:
        return NotImplemented
    terms, _, out_letters = equation.replace(" ", "").partition("->")
    letters = terms.split(",")
    at = 0 if mode.name_of(operands[0]) else 1
    w, x, own, other = operands[at], operands[1 - at], letters[at], letters[1 - at]
    if len(set(own)) < len(own) or not set(own) <= set(out_letters) | set(other):
        return NotImplemented
    aliased = [mode.alias(t) for t in operands]
    return mode.meet(
        func(equation, *aliased), (w, Einsum(x, own=own, other=other, out=out_letters)), features=0
    )


def embedding_bag(met: Any, func: Any, /, x: Tensor, w: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Rows of W by number, summed, averaged or the largest taken."""
    max_norm = kwargs.get("max_norm", args[1] if len(args) > 1 else None)
    if max_norm is not None:
        return NotImplemented
    with met:
        return bag(x, w, *args, **kwargs)


def rnn_cell(activation: Any) -> Any:
    """nn.RNNCell as the two products it is."""

    def rule(
        mode: Any,
        func: Any,
        x: Tensor,
        h: Tensor,
        w: Tensor,
        u: Tensor,
        b: Any = None,
        c: Any = None,
    ) -> Tensor:
        with mode:
            return plain_step(activation)(F.linear(x, w, b), h, u, c)[0]

    return rule


def lstm_cell(
    mode: Any, func: Any, x: Tensor, hx: Any, w: Tensor, u: Tensor, b: Any = None, c: Any = None
) -> Any:
    """nn.LSTMCell."""
    with mode:
        return lstm_step(F.linear(x, w, b), hx[0], hx[1], u, c)


def gru_cell(
    mode: Any, func: Any, x: Tensor, h: Tensor, w: Tensor, u: Tensor, b: Any = None, c: Any = None
) -> Tensor:
    """nn.GRUCell."""
    with mode:
        return gru_step(F.linear(x, w, b), h, u, c)[0]


def _many(v: Any, n: int) -> list[int]:
    return [v] * n if isinstance(v, int) else list(v) * (n if len(v) == 1 else 1)


RULES: dict[Any, Any] = {
    F.linear: linear,
    torch.matmul: matmul, Tensor.matmul: matmul, Tensor.__matmul__: matmul,
    torch.mm: matmul, Tensor.mm: matmul,
    torch.addmm: addmm, torch.bmm: bmm, Tensor.bmm: bmm, torch.baddbmm: baddbmm,
    F.conv1d: convolution, F.conv2d: convolution, F.conv3d: convolution,
    F.conv_transpose1d: transposed, F.conv_transpose2d: transposed, F.conv_transpose3d: transposed,
    F.embedding: embedding,
    F.layer_norm: layer_norm, F.batch_norm: batch_norm,
    F.group_norm: group_norm, F.instance_norm: instance_norm,
    torch.add: add, Tensor.add: add, Tensor.__add__: add, Tensor.__radd__: add,
    torch.mul: multiply, Tensor.mul: multiply, Tensor.__mul__: multiply, Tensor.__rmul__: multiply,
    torch.sub: subtract, Tensor.sub: subtract, Tensor.__sub__: subtract,
    Tensor.__rsub__: subtract,
    Tensor.expand: expand,
    torch.prelu: prelu, F.prelu: prelu, Tensor.prelu: prelu, torch.einsum: einsum,
    F.embedding_bag: embedding_bag,
    torch.lstm: unrolled(lstm_step, 2), torch.gru: unrolled(gru_step, 1),
    torch.rnn_tanh: unrolled(plain_step(torch.tanh), 1),
    torch.rnn_relu: unrolled(plain_step(torch.relu), 1),
    torch.rnn_tanh_cell: rnn_cell(torch.tanh), torch.rnn_relu_cell: rnn_cell(torch.relu),
    torch.lstm_cell: lstm_cell, torch.gru_cell: gru_cell,
}  # fmt: skip
if hasattr(F, "rms_norm"):
    RULES[F.rms_norm] = rms_norm
