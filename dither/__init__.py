"""dither: noise in neural networks, and the regulariser that each noise is equal to.

Names are imported when they are first asked for, so that `dither list` and `dither report` do not
wait for torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dither import measures as measures
    from dither import schedule as schedule
    from dither.after import anti_pgd as anti_pgd
    from dither.after import langevin as langevin
    from dither.compare import compare as compare
    from dither.errors import DitherError as DitherError
    from dither.estimate import Estimate as Estimate
    from dither.expected import expected as expected
    from dither.expected import remainder as remainder
    from dither.explicit import Explicit as Explicit
    from dither.explicit import balance as balance
    from dither.explicit import explicit as explicit
    from dither.inject import Injection as Injection
    from dither.inject import inject as inject
    from dither.noise import Additive as Additive
    from dither.noise import Multiplicative as Multiplicative
    from dither.noise import Node as Node
    from dither.noise import Weight as Weight
    from dither.noise import dropout as dropout
    from dither.noise import gaussian as gaussian
    from dither.noise import two_gaussian as two_gaussian
    from dither.noise import two_point as two_point
    from dither.noise import uniform as uniform
    from dither.runner import reproduce as reproduce

__version__ = "0.1.0"

_NOISES = ("Additive", "Multiplicative", "Node", "Weight")
_LAWS = ("dropout", "gaussian", "two_gaussian", "two_point", "uniform")
_HOME = {
    **dict.fromkeys((*_NOISES, *_LAWS), "dither.noise"),
    **dict.fromkeys(("Injection", "inject"), "dither.inject"),
    **dict.fromkeys(("Explicit", "balance", "explicit"), "dither.explicit"),
    **dict.fromkeys(("expected", "remainder"), "dither.expected"),
    **dict.fromkeys(("anti_pgd", "langevin"), "dither.after"),
    "Estimate": "dither.estimate",
    "DitherError": "dither.errors",
    "compare": "dither.compare",
    "reproduce": "dither.runner",
}
_MODULES = ("loss", "measures", "noise", "schedule")

_LAB = ("compare", "reproduce")  # what the packages of dither[lab] are for

__all__ = [*_HOME, *_MODULES]


def _without_lab(name: str, package: str | None) -> Any:
    """What stands for `compare` and `reproduce` where only the library is installed."""

    def absent(*_: Any, **__: Any) -> Any:
        from dither.errors import DitherError

        what = f"the package {package}" if package else "packages of the laboratory"
        raise DitherError(f"dither.{name} needs {what}: pip install 'dither[lab]'")

    return absent


def __getattr__(name: str) -> Any:
    if name in _HOME:
        try:
            value = getattr(importlib.import_module(_HOME[name]), name)
        except ModuleNotFoundError as e:
            if name not in _LAB or (e.name or "").partition(".")[0] in ("dither", "torch", "numpy"):
                raise
            return _without_lab(name, e.name)
    elif name in _MODULES:
        value = importlib.import_module(f"dither.{name}")
    else:
        raise AttributeError(f"module 'dither' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`dither.inject` is the function, whoever imports the module of that name first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
