"""Private parts of torch that dither leans on, each with the versions it was seen in and a test of
its name.

Seen in torch 2.4 to 2.13, unless a function says otherwise. A new torch that renames one of them
fails `tests/test_torch_internals.py` with that name.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint

_GUARDS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
_unguarded: dict[Any, Any] = {}


def unguarded(func: Callable) -> Callable:
    """A Python function of torch.nn.functional whose own check for overrides is switched off.

    Under a TorchFunctionMode such a function is met once, as a whole; its body is met only if it
    does not ask for overrides again. The names of the check are looked up in the function's
    globals, so a copy of the function with other globals does not ask.
    """
    if func not in _unguarded:
        names = {**func.__globals__, **dict.fromkeys(_GUARDS, _never)}
        copy = types.FunctionType(
            func.__code__, names, func.__name__, func.__defaults__, func.__closure__
        )
        copy.__kwdefaults__ = func.__kwdefaults__
        _unguarded[func] = copy
    return _unguarded[func]


def _never(*_: Any) -> bool:
    return False


def inside_functorch() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp …) is under way."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore


class _Plain:
    """In place of `CheckpointFunction`: calls the function."""

    @staticmethod
    def apply(function: Callable, preserve: bool, *args: Any) -> Any:
        return function(*args)


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Activation checkpoints call their function and keep what it saves; nothing is computed again.

    A recomputed forward would be met by no mode of ours, and its gradients are not differentiable
    twice. `torch.utils.checkpoint.checkpoint` looks both names up at each call.
    """
    module: Any = torch.utils.checkpoint
    names = ("CheckpointFunction", "_checkpoint_without_reentrant_generator")
    before = [getattr(module, name) for name in names]
    module.CheckpointFunction = _Plain
    module._checkpoint_without_reentrant_generator = lambda *args, **kwargs: iter((None,))
    try:
        yield
    finally:
        for name, was in zip(names, before, strict=True):
            setattr(module, name, was)
