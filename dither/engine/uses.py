"""Meeting every use of some parameters in one forward.

Every use in a torch function is met by a `TorchFunctionMode`: so tied weights, attention's internal
projections and functional code are seen, whatever the module. A use that has no rule is found in
the graph afterwards.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dither.engine.batch_axis import elementwise_layouts, layouts
from dither.engine.forward_rules import RULES
from dither.engine.functions import is_doubtful
from dither.engine.ghost import Use
from dither.engine.kinds import Einsum, Elementwise, Kind
from dither.precision import wide
from dither.torch_internals import functions_behind, inside_functorch, types_of, unguarded


class Walked(NamedTuple):
    """Of the functions behind an output: a hash of their names in their order, the stray
    parameters, the types of what they gave, and those whose gradients may not be differentiable.
    """

    nodes: int
    stray: set[str]
    types: set[torch.dtype]
    doubtful: list[Any]


class Uses(TorchFunctionMode):
    """Meets the uses of `parameters` {name: tensor}; `tap(out, uses)` is placed behind each.

    met       names of parameters that were used with gradients on
    unseen    names that were used where gradients were off
    foreign   names of real parameters that were used where no rule holds: with complex numbers, or
              inside a transform of torch.func
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], tap: Callable[[Tensor, list[Use]], Tensor]
    ) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in parameters.items()}
        self.tap: Callable[[Tensor, list[Use]], Tensor] | None = tap
        self.uses: list[Use] = []
        self.aliases: set[Any] = set()
        self.met: set[str] = set()
        self.unseen: set[str] = set()
        self.foreign: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        names = {name for a in _flat((*args, *kwargs.values())) if (name := self.name_of(a))}
        if not names:
            return func(*args, **kwargs)
        if func not in _LOOKS:
            (self.met if torch.is_grad_enabled() else self.unseen).update(names)
        if inside_functorch():
            self.foreign |= names if func not in _LOOKS else set()
            return func(*args, **kwargs)
        if func in RULES:
            out = _call(RULES[func], self, func, args, kwargs)
            if out is not NotImplemented:
                return out
        if isinstance(func, _FUNCTION) and func.__module__ == F.__name__:
            with self:
                return unguarded(func)(*args, **kwargs)
        return func(*args, **kwargs)

    def name_of(self, a: Any) -> str | None:
        """The parameter that a tensor is, or is a slice of."""
        if not isinstance(a, Tensor):
            return None
        base = a._base if a._base is not None else a
        return self.names.get(id(a)) or self.names.get(id(base))

    def alias(self, w: Any) -> Any:
        """What stands for a parameter in a function that has a rule: a node known by name."""
        if not self.name_of(w):
            return w
        alias = w.view_as(w)
        self.aliases.add(alias.grad_fn)
        return alias

    def meet(self, out: Tensor, *used: tuple[Any, Kind], features: int = 1) -> Tensor:
        """Tap `out` for those of (parameter, kind) that are asked for; `features` trailing
        dimensions of `out` are no positions.
        """
        uses = []
        for w, kind in used:
            name = self.name_of(w)
            if name and out.is_complex():
                self.foreign.add(name)
            elif name:
                region = (w.storage_offset(), tuple(w.shape), tuple(w.stride()))
                kind.a = wide(kind.a)
                broadcast = isinstance(kind, Elementwise)
                uses.append(
                    Use(
                        name,
                        kind,
                        w.shape,
                        region,
                        out.shape,
                        out.dtype,
                        -1 if broadcast else features,
                        [],
                    )
                )
        self.uses += uses
        return self.tap(out, uses) if uses and self.tap else out

    def settle(self, batch: int) -> None:
        """The layouts that fit each use's shape, once the batch is known."""
        for use in self.uses:
            if use.features < 0:
                use.candidates = elementwise_layouts(use.out, use.shape, batch)
            else:
                use.candidates = layouts(use.out[: len(use.out) - use.features], batch)
                if isinstance(use.kind, Einsum):
                    use.candidates = [
                        c
                        for c in use.candidates
                        if c.way == "dim" and use.kind.out[c.at] not in use.kind.own
                    ]

    def walk(self, z: Tensor) -> Walked:
        """Go through the functions behind z.

        Stray is what also reaches z by a way no rule has met, whose operand is gone, or whose
        slices overlap themselves.
        """
        found = self.foreign | {
            u.name for u in self.uses if u.overwritten or not u.candidates or _overlaps(u.region)
        }
        nodes, types, doubtful = [], {z.dtype}, []
        for node in functions_behind(z, self.aliases):
            nodes.append((node.name(), sum(n is not None for n, _ in node.next_functions)))
            types |= types_of(node)
            if is_doubtful(node):
                doubtful.append(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) in self.names:
                found.add(self.names[id(leaf)])
        return Walked(hash(tuple(nodes)), found, types, doubtful)


_FUNCTION = types.FunctionType
_LOOKS = {  # functions that ask a parameter for something and compute nothing with it
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex,
    Tensor.stride, Tensor.is_contiguous, Tensor.__len__,
}  # fmt: skip
LETTERS = {
    "input": "x", "weight": "w", "bias": "b", "other": "b", "mat2": "w",
    "normalized_shape": "shape",
    "num_groups": "groups", "running_mean": "mean", "running_var": "var",
}  # fmt: skip
_SIGNATURES: dict[Any, inspect.Signature] = {}


def _call(rule: Any, mode: Uses, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The rule, with torch's names for arguments turned into its own; where they don't fit, no
    rule.
    """
    if rule not in _SIGNATURES:
        _SIGNATURES[rule] = inspect.signature(rule)
    signature = _SIGNATURES[rule]
    own = {k if k in signature.parameters else LETTERS.get(k, k): v for k, v in kwargs.items()}
    try:
        bound = signature.bind(mode, func, *args, **own)
    except TypeError:
        return NotImplemented
    return rule(*bound.args, **bound.kwargs)


def _flat(parts: Iterable[Any]) -> Iterable[Any]:
    """The arguments, those in lists too."""
    for part in parts:
        if isinstance(part, list | tuple):
            yield from part
        else:
            yield part


def _overlaps(region: tuple) -> bool:
    """Whether two elements of a slice are one number in memory."""
    _, shape, stride = region
    reach = 0
    for d, n in sorted((d, n) for n, d in zip(shape, stride, strict=True) if n > 1):
        if d <= reach:
            return True
        reach += d * (n - 1)
    return False
