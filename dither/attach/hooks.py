"""The hooks that `inject` hangs on a model.

They are classes at module level. A copy of the model gets `Nothing` in their place. A pickle gets a
function of the standard library that takes anything and does nothing. So a copy is a clean model,
and a pickle can be opened where dither is not installed.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dither.attach.arguments import located
from dither.attach.shadow import check_held
from dither.attach.site import Site
from dither.attach.threads import OneAtATime
from dither.errors import DitherError
from dither.torch_internals import asked_by_torchscript, in_backward


class Reader(Protocol):
    """Gets the tensor of every activation site in a forward. It may return another one, which takes
    its place.
    """

    def activation(self, site: Site, h: Tensor) -> Tensor | None: ...


class Hooked(Protocol):
    """What the hooks know of an injection."""

    model: nn.Module
    reader: Reader | None
    turn_of: OneAtATime
    owned: dict[int, list[tuple[Site, str]]]

    def on(self, module: nn.Module) -> bool: ...
    def read_masks(self, args: tuple, kwargs: dict) -> None: ...
    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None: ...
    def leave(self, module: nn.Module, out: Any) -> None: ...
    def shadow_traced(self) -> None: ...
    def unshadow(self) -> None: ...
    def activation(self, site: Site, h: Tensor, module: nn.Module) -> Tensor | None: ...


def _name(hook: object) -> str:
    """TorchScript asks a hook that it compiles for its name. Raises DitherError there."""
    if asked_by_torchscript():
        raise DitherError(
            "TorchScript can't compile a model with noise on it, nor a copy taken with noise on "
            "it: call noise.remove() first, then script or copy the model"
        )
    raise AttributeError(f"{type(hook).__name__!r} object has no attribute '__name__'")


class Nothing:
    """A hook in a deep copy of the model: it does nothing."""

    @property
    def __name__(self) -> str:
        return _name(self)

    def __call__(self, *_: Any) -> None:
        return None

    def __reduce__(self) -> tuple:
        return getattr, (contextlib.nullcontext(), "__exit__")


class Hook:
    """A hook of an injection. Its copies and pickles do nothing."""

    def __init__(self, noise: Hooked) -> None:
        self.noise = noise

    @property
    def __name__(self) -> str:
        return _name(self)

    def __deepcopy__(self, memo: dict) -> Callable:
        return Nothing()

    def __reduce__(self) -> tuple:
        return getattr, (contextlib.nullcontext(), "__exit__")


class Enter(Hook):
    """Before a module's forward. The outermost forward begins a step, and parameters read W + δ."""

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        noise = self.noise
        if torch.compiler.is_compiling():
            if module is noise.model and noise.reader is None:
                noise.shadow_traced()
            return
        if module is noise.model and not in_backward():
            noise.turn_of.enter()
            noise.read_masks(args, kwargs)
        if noise.reader is None:
            noise.enter(module, args, kwargs)
        for site, name in noise.owned.get(id(module), ()):
            check_held(site, module, name)


class Leave(Hook):
    """After a module's forward, also after an exception. After the outermost forward parameters
    read W again.
    """

    def __call__(self, module: nn.Module, args: tuple, out: Any) -> None:
        noise = self.noise
        if torch.compiler.is_compiling():
            if module is noise.model and noise.reader is None:
                noise.unshadow()
            return
        try:
            if noise.reader is None:
                noise.leave(module, out)
        finally:
            if module is noise.model and not in_backward():
                noise.turn_of.leave()


class DisplaceInput(Hook):
    """Displaces the first real tensor among a module's arguments."""

    def __init__(self, noise: Hooked, site: Site) -> None:
        super().__init__(noise)
        self.site = site

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        parts = (*args, *kwargs.values())
        if self.site.which is not None:
            at = located(module, self.site.which, args, kwargs)
            t = self.displaced(module, at.value)
            return None if t is None else at.replaced(t)
        place = first(enumerate(args))
        if any(isinstance(part, PackedSequence) for part in parts):
            return refuse(self.noise, self.site, module, parts)
        if place is not None:
            t = self.displaced(module, args[place])
            return None if t is None else ((*args[:place], t, *args[place + 1 :]), kwargs)
        name = first(kwargs.items())
        if name is None:
            return refuse(self.noise, self.site, module, parts)
        t = self.displaced(module, kwargs[name])
        return None if t is None else (args, {**kwargs, name: t})

    def displaced(self, module: nn.Module, h: Tensor) -> Tensor | None:
        """What the module gets for h. One that works in place leaves its result in h, which others
        may read: so h itself becomes h + δ.
        """
        t = self.noise.activation(self.site, h, module)
        return t if t is None or not writes_to_input(module) else h.copy_(t)


def writes_to_input(module: nn.Module) -> bool:
    """Whether a module of torch works in place. Others may hold such a flag for a part of them."""
    if not getattr(module, "inplace", False):
        return False
    kind = type(module).__module__
    dropout = kind == "torch.nn.modules.dropout" and module.training
    return kind == "torch.nn.modules.activation" or dropout


class DisplaceOutput(Hook):
    """Displaces a module's output: the tensor, or the first real tensor of a tuple, list, mapping
    or dataclass.
    """

    def __init__(self, noise: Hooked, site: Site) -> None:
        super().__init__(noise)
        self.site = site

    def __call__(self, module: nn.Module, args: tuple, out: Any) -> Any:
        if not isinstance(out, Tensor):
            parts = {0: out} if isinstance(out, PackedSequence) else _parts(out)
            packed = any(isinstance(part, PackedSequence) for part in parts.values())
            if packed or first(parts.items()) is None:
                return refuse(self.noise, self.site, module, tuple(parts.values()) or (out,))
        return within(out, lambda h: self.noise.activation(self.site, h, module))


def refuse(noise: Hooked, site: Site, module: nn.Module, parts: tuple) -> None:
    """Raises DitherError where there is no tensor to displace, unless the noise is off."""
    is_read = noise.reader is not None and not getattr(noise.reader, "idle", False)
    if is_read or (noise.reader is None and noise.on(module)):
        kinds = ", ".join(type(part).__name__ for part in parts) or "nothing"
        instead = "name a module inside it"
        if "PackedSequence" in kinds:
            instead = "name a module that takes or gives the padded tensor"
        raise DitherError(
            f"no tensor at {site.name!r}: {type(module).__name__} "
            f"{'takes' if site.side == 'in' else 'gives'} {kinds}; {instead}"
        )


def real(site: Site, h: Tensor) -> None:
    """Raises DitherError unless a site's tensor has real numbers."""
    if not h.is_floating_point():
        raise DitherError(
            f"noise at {site.name!r} needs real numbers: got {h.dtype}; name a later module, or "
            "the ':out' of this one"
        )


def first(items: Any) -> Any:
    """The key of the first real tensor among (key, value) pairs. If none is real: of the first
    tensor.
    """
    tensors = [(k, v) for k, v in items if isinstance(v, Tensor)]
    real = [k for k, v in tensors if v.is_floating_point()]
    return next(iter(real or [k for k, _ in tensors]), None)


def within(out: Any, displaced: Callable[[Tensor], Tensor | None]) -> Any:
    """`out` with its first real tensor displaced, or None where nothing changes."""
    if isinstance(out, Tensor):
        return displaced(out)
    parts = _parts(out)
    place = first(parts.items())
    t = None if place is None else displaced(parts[place])
    if place is None or t is None:
        return None
    if isinstance(out, tuple):
        changed = (*out[:place], t, *out[place + 1 :])
        return type(out)(*changed) if hasattr(out, "_fields") else changed
    new = copy.copy(out)
    if isinstance(out, Mapping | Sequence):
        new[place] = t  # pyright: ignore[reportIndexIssue]
    else:
        object.__setattr__(new, place, t)  # also where the dataclass is frozen
    return new


def _parts(out: Any) -> dict[Any, Any]:
    if isinstance(out, Mapping):
        return dict(out)
    if isinstance(out, tuple | list):
        return dict(enumerate(out))
    if dataclasses.is_dataclass(out):
        return {field.name: getattr(out, field.name) for field in dataclasses.fields(out)}
    return {}


class ShapeReader:
    """A reader that records the shapes of the sites."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def activation(self, site: Site, h: Tensor) -> None:
        self.shapes[site.name] = tuple(h.shape)
