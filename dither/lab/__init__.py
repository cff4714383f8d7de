"""The laboratory: experiments as data, and the names that a figure's module uses.

A name is imported when it is first used, so that a list of figures does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dither.lab.data.sets import FREQUENCIES as FREQUENCIES
    from dither.lab.data.sets import Data as Data
    from dither.lab.data.sets import Tensors as Tensors
    from dither.lab.data.sets import boxed as boxed
    from dither.lab.data.sets import generator as generator
    from dither.lab.figure import Claim as Claim
    from dither.lab.figure import Figure as Figure
    from dither.lab.figure import Progress as Progress
    from dither.lab.figure import Run as Run
    from dither.lab.figure import Task as Task
    from dither.lab.figure import Verdict as Verdict
    from dither.lab.nets.specs import CNN as CNN
    from dither.lab.nets.specs import MLP as MLP
    from dither.lab.nets.specs import Conv as Conv
    from dither.lab.nets.specs import DiagonalNet as DiagonalNet
    from dither.lab.nets.specs import LinearNet as LinearNet
    from dither.lab.nets.specs import channels_last as channels_last
    from dither.lab.nets.specs import initialise as initialise
    from dither.lab.nets.stack import linear as linear
    from dither.lab.table import Array as Array
    from dither.lab.table import Table as Table
    from dither.lab.training.optimiser import SGD as SGD
    from dither.lab.training.optimiser import Adam as Adam
    from dither.lab.training.optimiser import Langevin as Langevin
    from dither.lab.training.optimiser import RMSprop as RMSprop
    from dither.lab.training.watch import Accuracy as Accuracy
    from dither.lab.training.watch import Amplitudes as Amplitudes
    from dither.lab.training.watch import Loss as Loss
    from dither.lab.training.watch import NodeNorms as NodeNorms
    from dither.lab.training.watch import Objective as Objective
    from dither.lab.training.watch import Outputs as Outputs
    from dither.lab.training.watch import State as State
    from dither.lab.training.watch import Watch as Watch
    from dither.lab.training.watch import WeightNorms as WeightNorms
    from dither.lab.training.watch import WithNoise as WithNoise

_NAMES = {
    "data.sets": "FREQUENCIES Data Tensors boxed generator",
    "figure": "Claim Figure Progress Run Task Verdict",
    "nets.specs": "CNN Conv DiagonalNet LinearNet MLP channels_last initialise",
    "nets.stack": "linear",
    "table": "Array Table",
    "training.optimiser": "Adam Langevin RMSprop SGD",
    "training.watch": "Accuracy Amplitudes Loss NodeNorms Objective Outputs State Watch "
    "WeightNorms WithNoise",
}
_HOME = {name: f"dither.lab.{file}" for file, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dither.lab' has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
