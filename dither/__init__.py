"""dither: noise in neural networks, and the regulariser that each noise is equal to.

Names are imported when they are first asked for, so that `dither list` and `dither report` do not
wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dither import measures as measures
    from dither import nn as nn
    from dither import schedule as schedule
    from dither.attach.after import anti_pgd as anti_pgd
    from dither.attach.after import langevin as langevin
    from dither.attach.inject import Injection as Injection
    from dither.attach.inject import inject as inject
    from dither.errors import DitherError as DitherError
    from dither.estimate import Estimate as Estimate
    from dither.lab.compare import compare as compare
    from dither.lab.reproduce import reproduce as reproduce
    from dither.lab.sweep import sweep as sweep
    from dither.noise.laws import dropout as dropout
    from dither.noise.laws import gaussian as gaussian
    from dither.noise.laws import two_gaussian as two_gaussian
    from dither.noise.laws import two_point as two_point
    from dither.noise.laws import uniform as uniform
    from dither.noise.masked import Masked as Masked
    from dither.noise.noises import Additive as Additive
    from dither.noise.noises import DropConnect as DropConnect
    from dither.noise.noises import Multiplicative as Multiplicative
    from dither.noise.noises import Neftune as Neftune
    from dither.noise.noises import Node as Node
    from dither.noise.noises import Relative as Relative
    from dither.noise.noises import Weight as Weight
    from dither.noise.shared import DropPath as DropPath
    from dither.noise.shared import Locked as Locked
    from dither.regulariser.balance import balance as balance
    from dither.regulariser.expected import expected as expected
    from dither.regulariser.expected import remainder as remainder
    from dither.regulariser.explicit import Explicit as Explicit
    from dither.regulariser.explicit import explicit as explicit
    from dither.regulariser.rebalance import rebalance as rebalance

__version__ = "0.1.0"

_NOISES = (
    *("Additive", "DropConnect", "DropPath", "Locked", "Masked", "Multiplicative"),
    *("Neftune", "Node", "Relative", "Weight"),
)
_LAWS = ("dropout", "gaussian", "two_gaussian", "two_point", "uniform")
_HOME = {
    **dict.fromkeys((*_NOISES, *_LAWS), "dither.noise"),
    **dict.fromkeys(("Injection", "inject"), "dither.attach.inject"),
    **dict.fromkeys(("Explicit", "explicit"), "dither.regulariser.explicit"),
    "balance": "dither.regulariser.balance",
    "rebalance": "dither.regulariser.rebalance",
    **dict.fromkeys(("expected", "remainder"), "dither.regulariser.expected"),
    **dict.fromkeys(("anti_pgd", "langevin"), "dither.attach.after"),
    "Estimate": "dither.estimate",
    "DitherError": "dither.errors",
    "compare": "dither.lab.compare",
    "reproduce": "dither.lab.reproduce",
    "sweep": "dither.lab.sweep",
}
_MODULES = ("loss", "measures", "nn", "noise", "schedule")

_LAB = ("compare", "reproduce", "sweep")  # what the packages of dither[lab] are for

# A star import gives all but dither.nn, which would stand in the place of torch's nn.
__all__ = [*_HOME, *(name for name in _MODULES if name != "nn")]


def _without_lab(name: str, package: str | None) -> Any:
    """What stands for `compare`, `reproduce` and `sweep` where only the library is installed."""

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
    return sorted({*globals(), *__all__, *_MODULES})
