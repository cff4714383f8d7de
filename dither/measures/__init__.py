"""What noise did to a network: curvature, spectra, layer norms, margins, robustness, phases.

`measures.trace` is `measures.curvature.trace`. Modules are imported when they are first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dither.measures import calibration as calibration
    from dither.measures import capacity as capacity
    from dither.measures import curvature as curvature
    from dither.measures import explosion as explosion
    from dither.measures import jacobian as jacobian
    from dither.measures import local as local
    from dither.measures import margins as margins
    from dither.measures import phases as phases
    from dither.measures import robustness as robustness
    from dither.measures import spectrum as spectrum
    from dither.measures.curvature import trace as trace

_MODULES = (
    "calibration", "capacity", "curvature", "explosion", "jacobian", "local", "margins", "phases",
    "robustness", "spectrum",
)  # fmt: skip

__all__ = [*_MODULES, "trace"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"dither.measures.{name}")
    if name == "trace":
        return importlib.import_module("dither.measures.curvature").trace
    raise AttributeError(f"module 'dither.measures' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
