"""How K columns go back through a node of the recorded graph: the table that `replay` uses.

A rule is made once for a node and then called for every chunk of columns: with the gradients of the
node's outputs [K, *shape] and whether nobody else holds them, it gives those of the wanted inputs,
and whether nobody else holds these. To make another node fast, add its rule to `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dither.engine.outer_norms import factor, gram, rows2

Rule = Callable[[Sequence[Any], bool], tuple[Sequence[Any], bool]]
FACTOR, TWICE = 3, 2  # what W's factor, and double precision, cost: times a product
FEW = 4  # channels, of which a convolution's gradient is made as a product and a fold


class Edge(NamedTuple):
    """Input number `at` of a node is output number `nr` of `step`."""

    at: int
    step: Any
    nr: int


def asked(step: Any) -> Rule:
    """Any node: its own backward, column by column."""
    node, wanted = step.node, [edge.at for edge in step.next]

    def rule(g: Sequence[Any], own: bool) -> tuple[list[Any], bool]:
        k = max(len(part) for part in g if part is not None)
        rows = [node(*(None if part is None else part[i] for part in g)) for i in range(k)]
        rows = [row if isinstance(row, tuple) else (row,) for row in rows]
        outs = [[row[at] for row in rows] for at in wanted]
        return [_stacked(parts) for parts in outs], k > 1

    step.alone = True
    return rule


def _stacked(parts: list[Any]) -> Tensor | None:
    if parts[0] is None:
        return None
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)


def _only(step: Any, at: int) -> bool:
    """Whether input `at` is the only wanted one."""
    return len(step.next) == 1 and step.next[0].at == at


def _shape(edge: Edge) -> tuple[int, ...]:
    return edge.step.shapes[edge.nr]


def same(step: Any, total: int) -> Rule | None:
    """What goes in comes out, perhaps in another shape."""
    shape = _shape(step.next[0])
    if len(step.next) != 1 or torch.Size(shape).numel() != torch.Size(step.shapes[0]).numel():
        return None
    return lambda g, own: ([g[0].reshape(len(g[0]), *shape)], own)


def plus(step: Any, total: int) -> Rule | None:
    """The sum a + b, nothing broadcast."""
    if step.node._saved_alpha != 1 or any(_shape(edge) != step.shapes[0] for edge in step.next):
        return None
    n = len(step.next)
    return lambda g, own: ([g[0]] * n, own)


def permuted(step: Any, total: int) -> Rule:
    """Dimensions in another order."""
    node, n = step.node, len(step.shapes[0])
    if hasattr(node, "_saved_dims"):
        order = [_signed(d) % n for d in node._saved_dims]
    else:
        order = list(range(n))
        i, j = (_signed(node._saved_dim0), _signed(node._saved_dim1)) if n != 2 else (0, 1)
        order[i], order[j] = order[j], order[i]
    back = [0, *(order.index(d) + 1 for d in range(n))]
    return lambda g, own: ([g[0].permute(back)], own)


def _signed(n: int) -> int:
    return n - 2**64 if n >= 2**63 else n


def slopes(step: Any, total: int) -> Rule | None:
    """A function z = f(a, …), element by element: times ∂z/∂a, which is worked out once."""
    if total == 1 or any(_shape(edge) != step.shapes[0] for edge in step.next):
        return None
    found = step.node(next(_ones(step)))
    found = found if isinstance(found, tuple) else (found,)
    slope = [found[edge.at] for edge in step.next]
    if any(s is None or s.dtype != step.types[0] for s in slope):
        return None

    def rule(g: Sequence[Any], own: bool) -> tuple[list[Any], bool]:
        if own and len(slope) == 1:
            return [g[0].mul_(slope[0])], True
        return [g[0] * s for s in slope], True

    return rule


def _ones(step: Any):
    for shape, dtype, meta in zip(step.shapes, step.types, step.node._input_metadata, strict=True):
        yield torch.ones(shape, dtype=dtype, device=meta.device)


def relu(step: Any, total: int) -> Rule:
    """Zero where z is; in place if it may be."""
    if step.skipped:
        return lambda g, own: (g, own)
    z, threshold = step.node._saved_result, torch.ops.aten.threshold_backward

    def rule(g: Sequence[Any], own: bool) -> tuple[list[Any], bool]:
        if own:
            return [threshold.grad_input(g[0], z, 0, grad_input=g[0])], True
        return [threshold(g[0], z, 0)], True

    return rule


class Product:
    """g W for one whose norm alone is asked:  ‖g W‖ = ‖g Rᵀ‖ where Wᵀ = Q R, R [out, out].

    Not g (W Wᵀ) gᵀ: what g's elements cancel, such as a direction that all rows of W share under
    the columns of a softmax, would be squared before it is cancelled.
    """

    def __init__(self, g: Tensor, r: Tensor) -> None:
        self.g, self.r, self.dtype = g, r, g.dtype

    def __getitem__(self, at: slice) -> Product:
        """Some of the columns."""
        return type(self)(self.g[at], self.r)

    def norm2(self) -> Tensor:
        """[K, B]."""
        return rows2(self.g @ self.r.mT)


class Recorded(Product):
    """The same where it is differentiated, as R has no slope where W's rank is not full: by
    g (W Wᵀ) gᵀ after all, in double precision.
    """

    def norm2(self) -> Tensor:
        """[K, B]."""
        g = self.g.double()
        return (g * (g @ self.r)).sum(-1).to(self.dtype)


def _normed(w: Tensor, rows: int, recorded: bool) -> Callable[[Tensor], Product] | None:
    """From g to the norm of g W [rows, in], by a matrix smaller than W [out, in] if it pays."""
    o, i = w.shape
    if w.is_mps:  # has neither of the two
        return None
    if recorded:
        if rows * (i - TWICE * o) <= TWICE * o * i:
            return None
        square = gram(w)
        return lambda g: Recorded(g, square)
    if rows * (i - o) <= FACTOR * o * i:
        return None
    r = factor(w)
    return lambda g: Product(g, r)


def unbound(step: Any, total: int) -> Rule | None:
    """The parts of one tensor: laid side by side in the order in which it was permuted, so that
    what follows need not copy.
    """
    at, edge = _signed(step.node._saved_dim) + 1, step.next[0]
    to = edge.step
    if step.recorded or at < 1 or to.node.name() != "PermuteBackward0" or to.sources != 1:
        return None
    order = [_signed(d) % len(_shape(edge)) + 1 for d in to.node._saved_dims]
    inner = [0] * len(order)
    for place, d in enumerate(order):
        inner[d - 1] = _shape(edge)[place]

    def rule(g: Sequence[Any], own: bool) -> tuple[list[Any], bool]:
        like = next(part for part in g if part is not None)
        out = like.new_empty(len(like), *inner).permute(0, *order)
        for i, part in enumerate(g):
            row = out.select(at, i)
            row.zero_() if part is None else row.copy_(part)
        return [out], True

    return rule


def product(step: Any, total: int) -> Rule | None:
    """A product z = a W (+ b): g Wᵀ with K·B rows."""
    addmm = step.node.name() == "AddmmBackward0"
    if not _only(step, int(addmm)) or (addmm and step.node._saved_alpha != 1):
        return None
    w = step.node._saved_mat2.mT  # [out, in]
    edge, rows = step.next[0], total * step.shapes[0][0]
    (o, i), to = w.shape, edge.step
    if to.tap and to.node.normed and not to.next and to.sources == 1:
        normed = _normed(w, rows, step.recorded)
        if normed is not None:
            return lambda g, own: ([normed(g[0])], True)
    return lambda g, own: ([(g[0].reshape(-1, o) @ w).view(*g[0].shape[:-1], i)], True)


def convolution(step: Any, total: int) -> Rule | None:
    """The gradient of a convolution's input only, K·B samples at once."""
    if not _only(step, 0):
        return None
    node, shape = step.node, _shape(step.next[0])
    w, a = node._saved_weight, node._saved_input
    how = [node._saved_stride, node._saved_padding, node._saved_dilation]
    how = [list(map(_signed, h)) for h in how]
    if (
        a.shape[1] <= FEW
        and w.dim() == 4
        and node._saved_groups == 1
        and not node._saved_transposed
    ):
        return _folded(w, shape, *how)
    last = w.dim() == 4 and not a.is_contiguous() and _channels_last(a)
    kind = torch.channels_last if last else torch.contiguous_format
    args = (*how, node._saved_transposed, list(node._saved_output_padding), node._saved_groups)

    def rule(g: Sequence[Any], own: bool) -> tuple[list[Any], bool]:
        k = len(g[0])
        like = a if k == 1 else a.new_empty((k * shape[0], *shape[1:])).to(memory_format=kind)
        back = torch.ops.aten.convolution_backward
        out = back(g[0].flatten(0, 1), like, w, None, *args, [True, False, False])[0]
        return [out.view(k, *shape) if k == 1 else out.unflatten(0, (k, shape[0]))], True

    return rule


def _channels_last(a: Tensor) -> bool:
    return a.is_contiguous(memory_format=torch.channels_last)


def _folded(w: Tensor, shape: Sequence[int], stride: Any, padding: Any, dilation: Any) -> Rule:
    """Σ_o g_o w_o at each position, added up where the patches overlap: for few channels cheaper
    than torch's, which works on sixteen.
    """
    rows, size = w.flatten(1).mT.contiguous(), tuple(w.shape[2:])

    def rule(g: Sequence[Any], own: bool) -> tuple[list[Any], bool]:
        part = g[0].flatten(0, 1).flatten(2)
        patches = rows.expand(len(part), -1, -1).bmm(part)  # [K·B, C·k, T]
        out = F.fold(patches, tuple(shape[2:]), size, dilation, padding, stride)
        return [out.view(len(g[0]), *shape)], True

    return rule


def max_pool(step: Any, total: int) -> Rule | None:
    """Windows that don't overlap: to the same places for every column, into zeros kept for it.

    A ReLU before it is taken along: it is 0 at a maximum of 0, and nothing else comes by.
    """
    if step.recorded:
        return None
    node, edge = step.node, step.next[0]
    at, kernel = node._saved_result1, node._saved_kernel_size
    apart = all(s >= k for s, k in zip(node._saved_stride or kernel, kernel, strict=True))
    if not (apart and all(d == 1 for d in node._saved_dilation) and at.is_contiguous()):
        return None
    shape, at = _shape(edge), at.flatten(-2)  # [B, C, T]
    mask: Tensor | None = None
    if edge.step.node.name() == "ReluBackward0" and edge.step.sources == 1:
        edge.step.skipped = True
        most = edge.step.node._saved_result.reshape(*shape[:-2], -1).gather(-1, at)
        mask = (most > 0).to(step.types[0])
    zeros: list[Tensor] = []

    def rule(g: Sequence[Any], own: bool) -> tuple[list[Any], bool]:
        part = g[0].flatten(-2)  # [K, B, C, T]
        if mask is not None:
            part = part.mul_(mask) if own else part * mask
        k = len(part)
        if not zeros or len(zeros[0]) < k:
            zeros[:] = [part.new_zeros(k, *shape)]
        out = zeros[0][:k]
        out.flatten(-2).scatter_(-1, at.expand(k, *at.shape), part)
        return [out], False

    return rule


def batch_norm(step: Any, total: int) -> Rule | None:
    """With the running statistics: a factor for each channel."""
    node = step.node
    if node._saved_training or not _only(step, 0):
        return None
    factor = (node._saved_running_var + node._saved_eps).rsqrt()
    if node._saved_weight is not None:
        factor = factor * node._saved_weight
    factor = factor.view(-1, *[1] * (len(step.shapes[0]) - 2)).to(step.types[0])
    return lambda g, own: ([g[0].mul_(factor) if own else g[0] * factor], True)


def layer_norm(step: Any, total: int) -> Rule | None:
    """The gradient of the input only."""
    if not _only(step, 0):
        return None
    node, back = step.node, torch.ops.aten.native_layer_norm_backward
    saved = [node._saved_input, list(node._saved_normalized_shape), node._saved_result1]
    saved += [node._saved_result2, node._saved_weight, node._saved_bias, [True, False, False]]

    def rule(g: Sequence[Any], own: bool) -> tuple[list[Any], bool]:
        return [_stacked([back(part.contiguous(), *saved)[0] for part in g[0]])], True

    step.alone = True
    return rule


ELEMENTWISE = (
    "Celu", "Clamp", "Cos", "Div", "Elu", "Erf", "Exp", "Gelu", "Hardsigmoid", "Hardswish",
    "Hardtanh", "LeakyRelu", "Log", "Log1P", "LogSigmoid", "MaskedFill", "Mish", "Mul",
    "NativeDropout", "Neg", "Pow", "Reciprocal", "Rsqrt", "Sigmoid", "Silu", "Sin", "Softplus",
    "Sqrt", "Sub", "Tanh", "Threshold", "Where",
)  # fmt: skip
RULES: dict[str, Callable[[Any, int], Rule | None]] = {
    **{f"{name}Backward{n}": slopes for name in ELEMENTWISE for n in (0, 1)},
    **{f"{name}Backward0": same for name in (
        "View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Clone", "Alias", "Expand",
    )},
    "SqueezeBackward1": same,
    "SqueezeBackward2": same,
    "AddBackward0": plus,
    "TBackward0": permuted,
    "TransposeBackward0": permuted,
    "PermuteBackward0": permuted,
    "UnbindBackward0": unbound,
    "ReluBackward0": relu,
    "AddmmBackward0": product,
    "MmBackward0": product,
    "ConvolutionBackward0": convolution,
    "MaxPool2DWithIndicesBackward0": max_pool,
    "NativeBatchNormBackward0": batch_norm,
    "NativeLayerNormBackward0": layer_norm,
}  # fmt: skip
