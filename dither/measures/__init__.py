"""What noise did to a network: curvature, spectra, layer norms, margins, robustness, phases.

`trace`, `diagonal`, `eigenvalues`, `density`, `predictive` and `certificate` are functions, the
other names modules. All are imported when they are first asked for.
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
    from dither.measures.densities import density as density
    from dither.measures.diagonals import diagonal as diagonal
    from dither.measures.eigen import eigenvalues as eigenvalues
    from dither.measures.predictions import predictive as predictive
    from dither.measures.smoothing import certificate as certificate

_MODULES = (
    "calibration", "capacity", "curvature", "explosion", "jacobian", "local", "margins", "phases",
    "robustness", "spectrum",
)  # fmt: skip
_FUNCTIONS = {
    "certificate": "smoothing",
    "density": "densities",
    "diagonal": "diagonals",
    "eigenvalues": "eigen",
    "predictive": "predictions",
    "trace": "curvature",
}

__all__ = [
    *_MODULES, "certificate", "density", "diagonal", "eigenvalues", "predictive", "trace",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"dither.measures.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"dither.measures.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'dither.measures' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
