"""Meeting every use of a noisy parameter in one forward.

Every use of a noisy parameter in a torch function is met by a `TorchFunctionMode`: so tied
weights, attention's internal projections and functional code are seen, whatever the module. A use
that has no rule here is found in the graph afterwards, and its parameter is left to the
per-sample fallback.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dither.engine.batch_axis import elementwise_layouts, layouts
from dither.engine.ghost import Caught, Use
from dither.engine.tap import Tap
from dither.precision import wide


class Uses(TorchFunctionMode):
    """Meets every use of the parameters in `names` (id → site name) in one forward, and taps what
    comes out.
    """

    def __init__(self, names: dict[int, str], anchor: Tensor, differentiable: bool) -> None:
        super().__init__()
        self.names, self.anchor, self.differentiable = names, anchor, differentiable
        self.uses: list[Use] = []
        self.aliases: set[Any] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(self.name_of(a) for a in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        from dither.engine.forward_rules import RULES

        if func in RULES:
            out = _call(RULES[func], self, func, args, kwargs)
            if out is not NotImplemented:
                return out
        if isinstance(func, types_of_function) and func.__module__ == F.__name__:
            with self:
                return unguarded(func)(*args, **kwargs)
        return func(*args, **kwargs)

    def name_of(self, a: Any) -> str | None:
        """The site a tensor belongs to: the parameter itself, or a slice of it."""
        if not isinstance(a, Tensor):
            return None
        base = a._base if a._base is not None else a
        return self.names.get(id(a)) or self.names.get(id(base))

    def alias(self, w: Any) -> Any:
        """What stands for a noisy parameter in a function that has a rule: outside the graph, or
        a node known by name.
        """
        if not self.name_of(w):
            return w
        if not self.differentiable:
            return w.detach()
        alias = w.view_as(w)
        self.aliases.add(alias.grad_fn)
        return alias

    def meet(
        self, out: Tensor, *uses: tuple[Any, str, Any, dict[str, Any]], features: int = 1
    ) -> Tensor:
        """Tap `out` for those parameters of (parameter, kind, a, options) that are noisy."""
        noisy = []
        for w, kind, a, options in uses:
            name = self.name_of(w)
            if name:
                region = (w.storage_offset(), tuple(w.shape), tuple(w.stride()))
                a = a if self.differentiable or not isinstance(a, Tensor) else a.detach()
                a = wide(a)
                places = -1 if kind == "elementwise" else features
                noisy.append(Use(name, kind, a, w.shape, region, out.shape, places, options))
        if not noisy:
            return out
        self.uses += noisy

        def catch(g: Tensor) -> None:
            caught = Caught(wide(g))
            for use in noisy:
                use.catch(caught)

        return Tap.apply(out, self.anchor, catch, True, False)  # pyright: ignore

    def settle(self, batch: int) -> None:
        """The layouts that fit each use, once the batch is known."""
        for use in self.uses:
            if use.features < 0:
                use.candidates = elementwise_layouts(use.out, use.shape, batch)
            else:
                use.candidates = layouts(use.out[: len(use.out) - use.features], batch)

    def stray(self, z: Tensor) -> set[str]:
        """Names of parameters that also reach z by a way no rule has met, or in a layout that is
        not known.
        """
        found = {use.name for use in self.uses if not use.candidates or use.overwritten}
        seen, stack = set(), [z.grad_fn]
        while stack:
            node = stack.pop()
            if node is None or node in seen or node in self.aliases:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) in self.names:
                found.add(self.names[id(leaf)])
            stack.extend(n for n, _ in node.next_functions)
        return found


LETTERS = {
    "input": "x", "weight": "w", "bias": "b", "other": "b", "mat2": "w",
    "normalized_shape": "shape",
    "num_groups": "groups", "running_mean": "mean", "running_var": "var",
}  # fmt: skip


def _call(rule: Any, mode: Uses, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The rule, with torch's names for arguments turned into its own; where they don't fit, no
    rule.
    """
    signature = inspect.signature(rule)
    own = {k if k in signature.parameters else LETTERS.get(k, k): v for k, v in kwargs.items()}
    try:
        bound = signature.bind(mode, func, *args, **own)
    except TypeError:
        return NotImplemented
    return rule(*bound.args, **bound.kwargs)


types_of_function = types.FunctionType
_UNGUARDED: dict[Any, Any] = {}


def unguarded(func: Any) -> Any:
    """A Python function of torch with its own check for overrides switched off: its body meets
    the mode, not its head.
    """
    if func not in _UNGUARDED:
        silent = dict.fromkeys(
            ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"),
            _never,
        )
        copy = types.FunctionType(
            func.__code__,
            {**func.__globals__, **silent},
            func.__name__,
            func.__defaults__,
            func.__closure__,
        )
        copy.__kwdefaults__ = func.__kwdefaults__
        _UNGUARDED[func] = copy
    return _UNGUARDED[func]


def _never(*_: Any) -> bool:
    return False
