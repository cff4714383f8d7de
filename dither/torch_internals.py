"""What dither asks of torch that torch does not promise: each private name stands here once.

Seen in torch 2.13, and written for 2.4 and later. tests/test_torch_internals.py asks for each by
name, so that a torch that has changed says which one.
"""

from __future__ import annotations

import sys
import threading
import types
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.utils import parametrize

_functorch: Any = torch._C._functorch  # pyright: ignore
_autograd: Any = torch._C._autograd  # pyright: ignore
weight_norm: Any = torch._weight_norm  # pyright: ignore
ONCE = {"CdistBackward0": "torch.cdist", "PdistBackward0": "torch.pdist"}  # no second derivative
_CHECKPOINTS = torch.utils.checkpoint.__file__


def backward_task() -> int:
    """The number of the backward pass that this thread is in; −1 outside of any."""
    return torch._C._current_graph_task_id()


def in_backward() -> bool:
    """A forward inside a backward pass is a recomputation (activation checkpointing)."""
    return backward_task() != -1


def saves_elsewhere() -> bool:
    """Whether hooks for saved tensors are on, by which a checkpoint keeps autograd from saving.
    Those of `attach.sharded` are none.
    """
    top = saving_hooks()
    return top is None or not (top == () or hasattr(getattr(top[0], "__self__", None), "redrawn"))


def saving_hooks() -> tuple | None:
    """The hooks for saved tensors that are on top, () for none, None if torch does not tell."""
    top = getattr(_autograd, "_top_saved_tensors_default_hooks", None)
    return None if top is None else tuple(top(False) or ())


def pop_saving_hooks() -> None:
    """Take the top hooks for saved tensors off."""
    _autograd._pop_saved_tensors_default_hooks()


def saving() -> torch.autograd.graph.saved_tensors_hooks:
    """Autograd saves as usual inside, whatever hooks for saved tensors are on."""
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)


def stretches() -> tuple[list[Any], list[Any]]:
    """The records of the checkpoints around here, the innermost first: (run for the first time,
    recomputed).

    torch keeps one record per checkpointed stretch of a network: a `_CheckpointFrame`, or where
    the checkpoint is reentrant the node of `CheckpointFunction`. It names them in local variables
    of its own frames, which are read off the stack.
    """
    fresh, again = [], []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _CHECKPOINTS:
            name, has = frame.f_code.co_name, frame.f_locals
            if name == "checkpoint" and "gen" in has and has["gen"].gi_frame is not None:
                fresh.append(has["gen"].gi_frame.f_locals["new_frame"])
            elif name in ("forward", "backward") and "ctx" in has:
                (fresh if name == "forward" else again).append(has["ctx"])
            elif name == "unpack_hook" and "frame" in has:
                again.append(has["frame"])
        frame = frame.f_back
    return fresh, again


def calls(module: nn.Module, frame: FrameType | None = None) -> int:
    """How many calls of a module are on a stack, by default on that of this thread."""
    running, frame = 0, frame or sys._getframe(1)
    while frame is not None:
        if frame.f_code is nn.Module._call_impl.__code__ and frame.f_locals.get("self") is module:
            running += 1
        frame = frame.f_back
    return running


def inside_vmap() -> bool:
    """Whether torch.func.vmap is among the transforms around here."""
    if _functorch.maybe_current_level() is None:
        return False
    kinds = (interpreter.key() for interpreter in _functorch.get_interpreter_stack() or ())
    return any(kind == _functorch.TransformType.Vmap for kind in kinds)


def functional(t: torch.Tensor) -> bool:
    """Whether a tensor is a wrapper of a torch.func transform."""
    return _functorch.is_functorch_wrapped_tensor(t)


def forget_parametrised() -> None:
    """Inside `torch.nn.utils.parametrize.cached()`: compute parametrised tensors anew, because
    what they are made from has changed.
    """
    if parametrize._cache_enabled:
        parametrize._cache.clear()


def traced() -> bool:
    """Whether torch.jit.trace runs this code. Not to be asked where torch.compile traces it."""
    return torch._C._get_tracing_state() is not None


def asked_by_torchscript() -> bool:
    """Whether torch.jit, which looks at hooks to compile them, is three calls up: it asked for an
    attribute, whose property asked a function, which asks here.
    """
    caller = sys._getframe(3)
    return str(caller.f_globals.get("__name__")).startswith("torch.jit")


def forget_compiled() -> None:
    """Compiled code does not look at hooks again: make it trace anew."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


# What makes a subclass of Tensor a plain tensor to all functions, as nn.Parameter is.
as_plain: Any = torch._C._disabled_torch_function_impl  # pyright: ignore
data_of: Any = torch._C.TensorBase.data  # the property `Tensor.data`

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


def functions_behind(z: torch.Tensor, until: Collection[Any] = ()) -> Iterator[Any]:
    """The functions of the graph that z depends on, each once, those behind `until` left out."""
    seen, stack = set(until), [z.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack.extend(n for n, _ in node.next_functions)


def types_of(node: Any) -> set[torch.dtype]:
    """The types of what a function of the graph gave."""
    return {meta.dtype for meta in getattr(node, "_input_metadata", ())}


def outside_functorch() -> Any:
    """Inside the block torch computes plainly, also under a transform of torch.func. A table that
    is computed once must not belong to the transform that needs it first.
    """
    return torch._C._DisableFuncTorch()  # pyright: ignore


def inside_functorch() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp …) is under way."""
    return _functorch.maybe_current_level() is not None


_plain = threading.local()  # .depth: how many `without_checkpoints` this thread is in
_around = threading.local()  # .by: the injections whose forwards run, weakly
_checkpoint_function: Any = torch.utils.checkpoint.CheckpointFunction
_generator: Any = torch.utils.checkpoint._checkpoint_without_reentrant_generator


def version(t: torch.Tensor) -> int:
    """How often a tensor was written to; 0 for inference tensors, which do not count."""
    return 0 if t.is_inference() else t._version


class _CheckpointFunction:
    """`CheckpointFunction`, or the function itself in a thread that asks for it."""

    @staticmethod
    def apply(function: Callable, preserve: bool, *args: Any) -> Any:
        if getattr(_plain, "depth", 0):
            return function(*args)
        return _checkpoint_function.apply(_recomputed(function, True), preserve, *args)


def _without_reentrant(function: Callable, *args: Any, **kwargs: Any) -> Any:
    if getattr(_plain, "depth", 0):
        return iter((None,))
    return _generator(_recomputed(function, False), *args, **kwargs)


def _recomputed(function: Callable, reentrant: bool) -> Callable:
    for who in reversed(list(getattr(_around, "by", {}).values())):  # the first is outermost
        if (noise := who()) is not None:
            function = noise.recomputed(function, reentrant)
    return function


def _replace_checkpoints() -> None:
    """`torch.utils.checkpoint.checkpoint` looks both names up at each call. What stands there from
    the first call on is torch's own, but where a thread asks for something else.
    """
    module: Any = torch.utils.checkpoint
    module.CheckpointFunction = _CheckpointFunction
    module._checkpoint_without_reentrant_generator = _without_reentrant


def around_checkpoints(noise: Any, begins: bool) -> None:
    """While a forward of a noisy model runs, the checkpoints that this thread makes recompute
    `noise.recomputed(function, reentrant)` in the place of their function.
    """
    if begins and not hasattr(_around, "by"):
        _replace_checkpoints()
        _around.by = {}
    if begins:
        _around.by[noise.handle] = weakref.ref(noise)
    elif hasattr(_around, "by"):
        _around.by.pop(noise.handle, None)


def gradients_in_shards(unit: Any) -> str:
    """Why a backward pass does not leave the ranks' mean gradient in the shards of a module under
    fully_shard; "" if it does.
    """
    groups = unit._get_fsdp_state()._fsdp_param_groups
    if not all(group.reduce_grads and group.all_reduce_grads for group in groups):
        return "needs gradients that are reduced: call set_requires_gradient_sync(True) first"
    if any(group.gradient_divide_factor is not None for group in groups):
        return "needs the mean of the ranks' gradients, and set_gradient_divide_factor was called"
    kept = [p for group in groups for p in group.fsdp_params]
    whole = [getattr(p, "_unsharded_param", None) for p in kept]
    waits = any(p.unsharded_accumulated_grad is not None for p in kept)
    if waits or any(p is not None and p.grad is not None for p in whole):
        return "can't be taken while gradients wait to be reduced: take it after the last backward"
    return ""


def after_backward(call: Callable[[], None]) -> None:
    """Call this at the end of the backward pass that this thread is in."""
    torch.autograd.Variable._execution_engine.queue_callback(call)  # pyright: ignore


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Activation checkpoints of this thread call their function and keep what it saves.

    A recomputed forward would be met by no mode of ours, and its gradients are not differentiable
    twice.
    """
    _replace_checkpoints()
    _plain.depth = getattr(_plain, "depth", 0) + 1
    try:
        yield
    finally:
        _plain.depth -= 1


def untyped(storage: Any) -> torch.UntypedStorage:
    """The bytes of a storage; `TypedStorage.untyped` warns that it will go."""
    return getattr(storage, "_untyped_storage", storage)
