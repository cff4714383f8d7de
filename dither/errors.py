"""The one exception dither raises for bad input: a sentence saying what, where, got and do."""

from numbers import Integral, Real
from typing import Any, TypeGuard


class DitherError(ValueError):
    """Bad input, in one sentence: what is wrong, where, what was got, what to do."""


class NotFinite(DitherError):
    """A network's outputs are not finite: it diverged, and what is asked of it has no answer."""


def check_whole(what: str, n: Any, least: int = 1, why: str = "") -> None:
    """Raises DitherError unless n is a whole number ≥ `least`; True and False are none."""
    if isinstance(n, bool) or not isinstance(n, Integral) or int(n) < least:
        why = f" ({why})" if why else ""
        raise DitherError(f"{what} is a whole number ≥ {least}{why}: got {n!r}")


def is_number(x: Any) -> TypeGuard[float]:
    """Whether x is a real number, or a tensor of one; True and False are none."""
    if hasattr(x, "is_complex"):  # a tensor; errors are had without torch
        return x.dim() == 0 and not x.is_complex() and str(x.dtype) != "torch.bool"
    return isinstance(x, Real) and not isinstance(x, bool)
