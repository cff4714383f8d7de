"""Compare noises on one's own problem: every method with the same seeds, one table.

    dither.compare(make_model, data, {"none": None, "gni": Additive(0.1), …}, seeds=5)

With seed s every method starts from the same weights and sees the data in the same order. So
differences from the first method are taken seed by seed. Training loop, workers, store and the rule
of verdicts are those of the figures.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from dither.errors import check_whole
from dither.lab.compare.method import Distance as Distance
from dither.lab.compare.method import (
    Method,
    dropout,
    jacobian,
    label_smoothing,
    sam,
    weight_decay,
)
from dither.lab.compare.plan import Plan, Settings
from dither.lab.compare.quantities import Attack, Corruption
from dither.lab.compare.result import Comparison
from dither.lab.compare.values import Difference
from dither.lab.runs.interrupts import heard
from dither.lab.runs.jobs import Job
from dither.lab.runs.screen import Bars, Lines, Quiet, Screen
from dither.lab.training.optimiser import SGD

__all__ = [
    "Attack", "Comparison", "Corruption", "Difference", "Method", "Plan", "compare", "dropout",
    "jacobian", "label_smoothing", "sam", "weight_decay",
]  # fmt: skip


def compare(
    make_model: Callable[[], nn.Module],
    data: Any,
    methods: Mapping[str, Any],
    *,
    seeds: int | Sequence[int] = 5,
    epochs: int = 10,
    batch: int | None = 128,
    optimiser: Any = SGD(0.05),  # noqa: B008
    schedule: Any = "constant",
    loss: Any = "cross_entropy",
    measures: Any = None,
    match: float | None = None,
    step: Any = None,
    validation: float = 0.0,
    patience: int | None = None,
    jobs: int = 1,
    out: str | Path | None = None,
    again: bool = False,
    progress: Any = None,
    device: str = "cpu",
) -> Comparison:
    """Train every method on every seed and measure all of them in the same way.

    make_model  () → a new nn.Module; torch's generator is seeded for it. Its output is found as in
                `explicit`.
    data        (x_train, y_train, x_test, y_test) of arrays, tensors or frames; or (train, test) of
                data sets or loaders of torch that give (x, y), or mappings with "labels". x may be
                a mapping of the model's arguments. A training set that gives other values when it
                is read again (augmentation) is read anew in each epoch.
    methods     {name: None, a noise, a mapping from patterns to noises, or a `Method`}. All are
                compared with the first one. Baselines: `weight_decay(λ)`, `label_smoothing(ε)`,
                `dropout(p)`, `sam(ρ)`, `jacobian(λ)` of this module.
    batch       samples in a batch; None: all. A loader for training keeps its own.
    optimiser   parameters → an Optimizer of torch, or (Optimizer, scheduler), whose scheduler steps
                after each batch; or SGD, Adam, RMSprop of `dither.lab`. It trains Nodes' vectors
                too.
    schedule    "constant", "cosine", or (step, steps) → the factor on the rate.
    loss        as in `explicit`. It is measured for all methods, also for those with a loss of
                their own.
    measures    names (loss, accuracy, calibration, R, corruption, attack, margin, trace; r2 and mae
                of real targets), functions f(model, x, y) → number or {name: number}, or {name:
                function}. None: the first four. Measured at the end on the test part, in eval
                mode, with the noise off.
    match       R as a share of the loss: σ of every noise is chosen so, and kept so during training
                (`schedule.Balanced`). So noises are compared at equal R.
    step        a training step of one's own: (model, x, y, optimiser) → the loss.
    validation  a share of the training part that is held out: the weights of the epoch with the
                smallest loss on it are the ones that are measured.
    patience    epochs without a smaller loss on it after which a run stops.
    jobs        processes, one thread each.
    out         a folder: finished runs are kept there, and the next call goes on from them.
    again       train finished runs once more.
    progress    None: bars on a terminal, else a line after each run, on stderr; False: nothing; or
                a function (method, seed, done, total), called after each run.

    Nothing is trained before every method has made a step on two samples. A run that fails is named
    with its reason, and the others continue. Raises DitherError for arguments that can't be used.
    """
    settings = Settings(
        seeds=seeds,
        epochs=epochs,
        batch=batch,
        optimiser=optimiser,
        schedule=schedule,
        loss=loss,
        measures=measures,
        match=match,
        step=step,
        validation=validation,
        patience=patience,
        device=device,
    )
    check_whole("compare: jobs", jobs, why="processes")
    plan = Plan.of(make_model, data, methods, settings)
    with heard() if out is not None else nullcontext():
        return plan.run(jobs, out, again, _screen(progress))


def _screen(progress: Any) -> Screen:
    if hasattr(progress, "begin"):
        return progress
    if callable(progress):
        return _Calls(progress)
    if progress is False:
        return Quiet()
    from rich.console import Console

    console = Console(stderr=True)
    return Bars(console) if console.is_terminal else Lines(console)


class _Calls(Quiet):
    """Reports finished runs to a user's function."""

    def __init__(self, progress: Callable[..., object]) -> None:
        self.progress, self.done, self.total = progress, 0, 0

    def begin(self, total: int) -> None:
        self.total = total

    def finish(self, job: Job, failure: str) -> None:
        self.done += 1
        self.progress(job.label, job.seeds[0], self.done, self.total)
