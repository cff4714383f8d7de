"""Calls of a user's model: its arguments, and its output tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dither.errors import DitherError


def call(model: nn.Module, x: Any) -> Any:
    """model(x), model(*x) for a tuple or list, model(**x) for a mapping."""
    if isinstance(x, Tensor | PackedSequence):
        return model(x)
    if isinstance(x, Mapping):
        return model(**x)
    if isinstance(x, tuple | list):
        return model(*x)
    raise DitherError(
        "x must be a tensor, a tuple of arguments or a mapping of keyword arguments: got "
        f"{type(x).__name__}"
    )


def output(model: nn.Module, x: Any) -> Tensor:
    """The model's output z [B, …]: the tensor itself, its `logits`, or the one tensor of real
    numbers, no scalar, of a tuple, list or mapping. What is nested in it, as the state of an LSTM,
    is left out.

    Raises DitherError if there is no such tensor, or more than one.
    """
    z = call(model, x)
    if isinstance(z, Tensor):
        return _checked(z)
    logits = z.get("logits") if isinstance(z, Mapping) else getattr(z, "logits", None)
    if logits is not None:
        return _checked(logits)
    parts = z if isinstance(z, Mapping) else dict(enumerate(z)) if isinstance(z, Sequence) else {}
    given = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    real = [name for name, part in given.items() if part.is_floating_point() and part.dim()]
    if len(real) > 1:
        raise DitherError(
            f"the model gives {len(real)} tensors of real numbers ({', '.join(map(repr, real))}), "
            "and there is no telling which one the loss is of: give one (torch.cat, if the loss is "
            "of all), or call it 'logits' in a mapping"
        )
    if not given:
        raise DitherError(
            "the model must give a tensor, something with .logits, or a tuple, list or mapping "
            f"with one tensor of real numbers: got {type(z).__name__}"
        )
    return _checked(given[next(iter(real or given))])


def _checked(z: Tensor) -> Tensor:
    """The outputs. Raises DitherError unless they are real numbers, one or more per sample."""
    if not z.dim():
        raise DitherError(
            "the model must give an output for each sample, [B, …]: got one number for the batch; "
            "take the mean or the loss outside the model"
        )
    if not z.is_floating_point():
        raise DitherError(
            f"the model must give real numbers: got {z.dtype}; give logits in place of classes, "
            "and for complex numbers their real and imaginary parts (torch.view_as_real)"
        )
    return z


def tensors(x: Any) -> list[Tensor]:
    """The tensors among the model's arguments."""
    parts = x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple | list) else [x]
    return [t for t in parts if isinstance(t, Tensor)]


def ordinary(x: Any) -> Any:
    """The same arguments without inference tensors, which can't be differentiated by."""
    if isinstance(x, Tensor):
        return x.clone() if x.is_inference() else x
    if isinstance(x, Mapping):
        return {name: ordinary(part) for name, part in x.items()}
    if isinstance(x, PackedSequence):
        return PackedSequence(*map(ordinary, x))
    return tuple(map(ordinary, x)) if isinstance(x, tuple | list) else x


def check_floats(what: str, x: Any) -> None:
    """Raises DitherError unless x is a tensor of floats [B, …] with an example or more."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.dim() or not len(x):
        got = f"{list(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise DitherError(
            f"{what}: x must be a tensor of floats [B, …], one example or more: got {got}"
        )


def check_classes(what: str, x: Tensor, y: Any) -> None:
    """Raises DitherError unless y is a tensor [B], one class for each example of x."""
    if not isinstance(y, Tensor) or y.shape != x.shape[:1]:
        got = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise DitherError(
            f"{what}: y must be a tensor of the classes of the {len(x)} examples, [{len(x)}]: "
            f"got {got}"
        )


def check_class_numbers(what: str, y: Tensor, classes: int) -> None:
    """Raises DitherError unless y holds whole numbers 0 … classes − 1."""
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    low, high = (int(y.min()), int(y.max())) if whole and y.numel() else (0, 0)
    if not whole or low < 0 or high >= classes:
        span = f" of {low} … {high}" if whole else ""
        raise DitherError(
            f"{what}: y must hold class numbers, whole numbers from 0 to {classes - 1}: got "
            f"{y.dtype}{span}"
        )


def check_devices(model: nn.Module, *parts: Any) -> None:
    """Raises DitherError unless the model, x and y are on one device."""
    parameter = next(model.parameters(), None)
    devices = {} if parameter is None else {"the model": {parameter.device}}
    for name, part in zip(("x", "y"), parts, strict=False):
        devices[name] = {t.device for t in tensors(part)}
    if len(set().union(*devices.values())) > 1:
        where = ", ".join(f"{name} on {device}" for name, on in devices.items() for device in on)
        raise DitherError(
            f"model and batch must be on one device: got {where}; move them with .to(device)"
        )


def mixing(model: nn.Module) -> tuple[str, str] | None:
    """(name, type) of a BatchNorm that would use the batch's own statistics, if there is one."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        ):
            return name, type(module).__name__
    return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside. Afterwards each module has the mode it had before."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            own = type(module).train is not nn.Module.train  # as of adapters that merge in eval
            if own and module.training != mode:
                module.train(mode)
            module.training = mode


@contextmanager
def eager() -> Iterator[None]:
    """Inside, modules run as they are written: also compiled ones, and the fused transformer layers
    of eval mode, which call none of their parts.
    """
    stance = getattr(torch.compiler, "set_stance", None)  # torch ≥ 2.6
    with nullcontext() if stance is None else stance("force_eager"), unfused():
        yield


@contextmanager
def unfused() -> Iterator[None]:
    """Inside, transformer layers call their parts and give no nested tensors for padded batches."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def thawed(frozen: Sequence[Tensor]) -> Iterator[None]:
    """Frozen parameters take gradients inside. Afterwards they are frozen again."""
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
