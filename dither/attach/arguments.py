"""One of a model's arguments, by its name or number: "input:name", "input[1]"."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from dither.errors import DitherError


class Argument(NamedTuple):
    """An argument of a call, and the call without and with another value of it."""

    value: Tensor
    place: int | str  # in args or in kwargs
    args: tuple
    kwargs: Mapping[str, Any]

    def replaced(self, t: Tensor) -> tuple[tuple, dict[str, Any]]:
        """(args, kwargs) with t in its place."""
        if isinstance(self.place, int):
            return (*self.args[: self.place], t, *self.args[self.place + 1 :]), dict(self.kwargs)
        return self.args, {**self.kwargs, self.place: t}


def located(
    module: nn.Module, which: str | int, args: tuple, kwargs: Mapping[str, Any]
) -> Argument:
    """The argument of a call. Raises DitherError if it is not there, or is no tensor."""
    names = _names(module)
    place: int | str | None = which
    if isinstance(which, str):
        number = names.index(which) if which in names else len(args)
        place = which if which in kwargs else number if number < len(args) else None
    elif which >= len(args):
        rest = [name for name in names[len(args) :] if name in kwargs] or list(kwargs)
        place = rest[which - len(args)] if which - len(args) < len(rest) else None
    value = None if place is None else args[place] if isinstance(place, int) else kwargs[place]
    if place is None or not isinstance(value, Tensor):
        got = f"{len(args)} by position" + (f" and {', '.join(kwargs)}" if kwargs else "")
        if place is not None:
            got = f"a {type(value).__name__} there"
        raise DitherError(
            f"noise at {spelt(which)!r} needs that argument of {type(module).__name__} as a "
            f"tensor: got {got}"
        )
    return Argument(value, place, args, kwargs)


def check_argument(model: nn.Module, which: str | int) -> None:
    """Raises DitherError if the model's forward can't have such an argument."""
    names = _names(model)
    kinds = {p.kind for p in inspect.signature(model.forward).parameters.values()}
    free = (
        inspect.Parameter.VAR_KEYWORD
        if isinstance(which, str)
        else inspect.Parameter.VAR_POSITIONAL
    )
    known = which in names if isinstance(which, str) else which < len(names)
    if not known and free not in kinds:
        raise DitherError(
            f"pattern {spelt(which)!r}: the forward of {type(model).__name__} has the arguments "
            f"{', '.join(names)}"
        )


def spelt(which: str | int) -> str:
    """As a pattern."""
    return f"input:{which}" if isinstance(which, str) else f"input[{which}]"


def _names(module: nn.Module) -> list[str]:
    """The arguments of the forward that have a name and a place."""
    parameters = inspect.signature(module.forward).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.kind not in variable]
