"""Executing a run or a task with some seeds: {seed: its rows}."""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dither.errors import DitherError
from dither.lab.figure import Progress, Rows, Run, Task

if TYPE_CHECKING:
    from dither.lab.training.checkpoint import Keeper


def execute(
    run: Run | Task, seeds: Sequence[int], progress: Progress, keeper: "Keeper | None" = None
) -> dict[int, Rows]:
    """Train a Run, or call a Task's function, with each seed. keeper: keeps a Run's checkpoints."""
    try:
        if isinstance(run, Run):
            from dither.lab.training.loop import train

            return train(run, seeds, progress, keeper=keeper)
        module, name = run.function.split(":")
        function = getattr(importlib.import_module(module), name, None)
        if function is None:
            raise DitherError(f"task: {module} has no function {name!r}")
        return {seed: list(function(seed, progress, **dict(run.kwargs))) for seed in seeds}
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit, or a panic of polars: it would end all runs
        raise RuntimeError(f"it ended by {type(error).__name__}: {error}") from error
