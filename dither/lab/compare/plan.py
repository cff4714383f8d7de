"""The runs of a comparison: checked, tried on two samples, trained by the laboratory's workers."""

import operator
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from dither import loss as losses
from dither.calling import output
from dither.errors import DitherError, check_whole, is_number
from dither.lab.compare import method as methods_
from dither.lab.compare.digest import digest
from dither.lab.compare.method import Made, Method
from dither.lab.compare.problem import Problem, each, problem, said
from dither.lab.compare.quantities import Share, Watch, quantities
from dither.lab.compare.result import Comparison
from dither.lab.compare.trial import Given, Trial, TrialTraining, chunk, save
from dither.lab.figure import Silent
from dither.lab.runs.jobs import Job, Outcome
from dither.lab.runs.screen import Quiet, Screen
from dither.lab.runs.store import Store
from dither.lab.runs.workers import InProcess, Processes
from dither.lab.training.optimiser import SCHEDULES

TRIED = 32  # examples on which the measures are tried before anything is trained
EVERY = 50  # steps between two measures of R where methods are matched


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `compare`, checked one by one."""

    seeds: Any
    epochs: Any
    batch: Any
    optimiser: Any
    schedule: Any
    loss: Any
    measures: Any
    match: Any
    step: Any
    validation: Any
    patience: Any
    device: Any

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The seeds."""
        try:
            many = range(self.seeds) if isinstance(self.seeds, Integral) else self.seeds
            numbers = tuple(map(operator.index, many))
        except TypeError:
            raise DitherError(
                f"compare: seeds is a whole number or a sequence of them: got {self.seeds!r}"
            ) from None
        if not numbers:
            raise DitherError(f"compare needs at least one seed: got {self.seeds!r}")
        if len(set(numbers)) < len(numbers):
            raise DitherError(f"compare: a seed occurs twice in {self.seeds!r}: give each once")
        return numbers

    def described(self, held: Problem) -> str:
        """How it is trained, in one line, without what is a method's own."""
        batches = "all samples at once" if self.batch is None else f"batches of {self.batch}"
        if isinstance(held.stream, DataLoader) and held.batch is None:
            batches = "batches of the loader"
        # a function of a user's may bring a scheduler
        own = self.schedule == "constant" and not hasattr(self.optimiser, "lr")
        said = [
            f"{self.epochs} epoch{'s' * (self.epochs != 1)}",
            batches,
            f"optimiser {methods_.called(self.optimiser)}",
            *([] if own else [f"{methods_.called(self.schedule)} rate"]),
            f"loss {methods_.called(self.loss)}",
        ]
        if self.step is not None:
            said.append(f"step {methods_.called(self.step)}")
        if self.match is not None:
            said.append(f"R held at {self.match:g} of the loss")
        if self.patience is not None:
            said.append(f"patience {self.patience}")
        return ", ".join(said)

    def check(self) -> None:
        """Raises DitherError for settings that no data and no model fit."""
        _ = self.numbers
        for name in ("epochs", "batch", "patience"):
            value = getattr(self, name)
            if value is None and name != "epochs":
                continue
            check_whole(f"compare: {name}", value)
        if not is_number(self.validation) or not 0 <= self.validation < 1:
            raise DitherError(
                f"compare: validation is a share of the training part, ≥ 0 and below 1: got "
                f"{self.validation!r}"
            )
        if self.patience is not None and not self.validation:
            raise DitherError(
                "compare: patience needs a validation part, validation=0.2: the test part decides "
                "nothing"
            )
        if self.match is not None and not (is_number(self.match) and 0 < self.match <= 1):
            raise DitherError(
                "compare: match is R as a share of the loss, a number > 0 and ≤ 1, such as 0.1: "
                f"got {self.match!r}"
            )
        _check_schedule(self.schedule)
        if self.step is not None and not callable(self.step):
            raise DitherError(
                f"compare: step is a function (model, x, y, optimiser) → loss: got {self.step!r}"
            )


def _check_schedule(schedule: Any) -> None:
    if callable(schedule) and not isinstance(schedule, type):
        return
    if schedule not in SCHEDULES:
        raise DitherError(
            f"compare: schedule is {', '.join(map(repr, SCHEDULES))} or a function (step, steps) "
            f"→ the factor on the rate: got {schedule!r}; a scheduler of torch goes with its "
            "optimiser, optimiser=lambda p: (optimizer, scheduler)"
        )


@dataclass
class Plan:
    """What a comparison trains: {method: trial}, each with every seed."""

    trials: dict[str, Trial]
    problem: Problem
    seeds: tuple[int, ...]
    setup: str = ""
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, make_model: Any, data: Any, given: Any, settings: Settings) -> "Plan":
        """The runs of a comparison. Nothing is trained yet, and all methods were tried."""
        settings.check()
        _maker(make_model)
        chosen = methods_.methods(given, settings.match, EVERY)
        held = problem(data, settings.validation)
        if held.batch is not None:
            settings = replace(settings, batch=held.batch)
        measured = quantities(settings.measures, held)
        if settings.match is not None and not any(isinstance(m, Share) for m in measured):
            measured = [*measured, Share()]  # what was matched is told
        losses.get(settings.loss)
        trials = {
            name: _trial(name, method, make_model, held, measured, settings)
            for name, method in chosen.items()
        }
        for name, trial in trials.items():
            with _of(name):
                _try(trial, settings.numbers[0])
        return cls(trials, held, settings.numbers, settings.described(held))

    def run(
        self,
        jobs: int = 1,
        out: str | Path | None = None,
        again: bool = False,
        screen: Screen | None = None,
    ) -> Comparison:
        """Train what is missing, seed after seed, and collect the last values.

        Raises KeyboardInterrupt when it is stopped. What has finished stays in `out`.
        """
        screen = screen or Quiet()
        store = Store(tempfile.mkdtemp(prefix="dither-") if out is None else out)
        store.prepare()
        trials = self._placed(store)
        missing = [
            Job(trial, (seed,), name, str(store.checkpoints(trial)))
            for seed in self.seeds
            for name, trial in trials.items()
            if again or not (store.has(trial, seed) and trial.weights(seed).is_file())
        ]
        if missing and self.problem.stream is None:
            save(self.problem, Path(trials[missing[0].label].data.path))
        width = min(jobs, len(missing))
        workers = Processes(width) if width > 1 else InProcess()
        try:
            if missing:
                screen.begin(len(missing))
                with closing(workers.outcomes(missing, screen)) as outcomes:
                    for job, outcome in outcomes:
                        self._take(store, job, outcome, again, screen)
        except KeyboardInterrupt:
            said = _stopped(store, missing, out)
            if out is None:
                shutil.rmtree(store.root, ignore_errors=True)
            raise KeyboardInterrupt(said) from None
        finally:
            screen.close()
        found = self._collected(store, trials)
        if out is None:  # the trained weights stay as long as the result
            weakref.finalize(found, shutil.rmtree, store.root, ignore_errors=True)
        return found

    def _placed(self, store: Store) -> dict[str, Trial]:
        """The trials with the folders of this store."""
        root = store.root.resolve()
        path = root / f"data-{self.problem.digest[:16]}.pt"
        stream = self.problem.stream is not None
        given = Given(self.problem, "" if stream else str(path))
        return {
            name: replace(trial, data=given, folder=str(root / "models"))
            for name, trial in self.trials.items()
        }

    def _take(self, store: Store, job: Job, outcome: Outcome, again: bool, screen: Screen) -> None:
        from dither.lab.training import checkpoint

        for seed, rows in (outcome.rows or {}).items():
            if again:
                store.discard(job.run, seed)
            store.seal(job.run, seed, rows, outcome.env or {})
            checkpoint.remove(store.checkpoints(job.run), job.seeds)
        if outcome.sentence:
            self.failures[str(job)] = outcome.sentence
        screen.finish(job, outcome.sentence)

    def _collected(self, store: Store, trials: dict[str, Trial]) -> Comparison:
        rows: dict[str, dict[int, dict[str, float]]] = {}
        for name, trial in trials.items():
            rows[name] = {}
            for seed in self.seeds:
                if store.has(trial, seed) and str(Job(trial, (seed,), name)) not in self.failures:
                    last = store.rows(trial, seed).select("quantity", "value").iter_rows()
                    rows[name][seed] = dict(last)
        said = f"{self.problem}\n{self.setup}"
        return Comparison.of(rows, self.seeds, said, self.failures, trials)


def _stopped(store: Store, jobs: list[Job], out: str | Path | None) -> str:
    done = sum(store.has(job.run, job.seeds[0]) for job in jobs)
    said = f"stopped: {done} of {len(jobs)} run{'s' * (len(jobs) != 1)} finished"
    if out is None:
        return f"{said}, and nothing is kept: pass out= a folder"
    return f"{said} and kept in {out}; the same call goes on with the rest"


def _trial(
    name: str,
    method: Method,
    make_model: Any,
    held: Problem,
    measured: list[Any],
    settings: Settings,
) -> Trial:
    own_schedule = settings.schedule if method.schedule is None else method.schedule
    own_optimiser = settings.optimiser if method.optimiser is None else method.optimiser
    with _of(name):
        _check_schedule(own_schedule)
        optimiser = methods_.optimiser(own_optimiser, method.weight_decay)
        made = Made(_maker(make_model if method.model is None else method.model), method.dropout)
        loss = settings.loss if method.loss is None else method.loss
        losses.get(loss)
    given = Given(held)
    trial = Trial(
        method=name,
        digest="",
        data=given,
        model=made,
        optimiser=optimiser,
        noise=method.noise,
        draw=method.draw,
        by=method.by,
        objective=method.objective,
        loss=loss,
        batch=settings.batch,
        epochs=settings.epochs,
        schedule=own_schedule,
        penalty=method.penalty,
        step=settings.step if method.step is None else method.step,
        sam=method.sam,
        drops=held.drops,
        patience=settings.patience,
        device=settings.device,
    )
    own = digest(held, trial, method, measured, [settings.loss, settings.validation])
    chunked = chunk(trial)
    watch = tuple(Watch(one, settings.loss, chunked) for one in measured)
    return replace(trial, digest=own, watch=watch)


def _maker(make_model: Any) -> Any:
    if isinstance(make_model, nn.Module) or not callable(make_model):
        what = type(make_model).__name__ if isinstance(make_model, nn.Module) else repr(make_model)
        raise DitherError(f"make_model is a function that gives a new nn.Module: got {what}")
    return make_model


@contextmanager
def _of(name: str) -> Iterator[None]:
    """Errors inside name the method."""
    try:
        yield
    except DitherError as error:
        what = str(error).removeprefix("compare: ")
        raise DitherError(f"compare: method {name!r}: {what}") from error.__cause__


# ------------------------------------------------------------------------ what is tried beforehand


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of a user's code inside say what failed, and where."""
    try:
        yield
    except DitherError:
        raise
    except Exception as error:
        raise DitherError(f"{what} fails with {said(error)}") from error


def _try(trial: Trial, seed: int) -> None:
    """One step on two samples, and all measures on a few. Raises DitherError where one fails."""
    held = trial.data.held()
    with _told("make_model"):
        model = trial.model.build(seed)
        _check_repeats(trial, model, seed)
    few = replace(
        trial,
        data=Given(held.few(2)),
        watch=(),
        batch=2,
        drops=False,
        epochs=1,
        patience=None,
        folder="",
    )
    with _told("a step on two samples"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _check_classes(few, held)
        training = TrialTraining(few, (seed,))
        training(_Silent())
        if any(quantity == "diverged" for _, quantity, _ in training.rows[seed]):
            raise DitherError("the loss of the untrained model is not finite")
        some = replace(trial, data=Given(held.few(TRIED)), folder="")
        training.run = some
        training.steps, training.data = training.step, some.data.load().to(trial.device)
        training.problem = some.data.held()
        training.look(turn=False)


class _Silent(Silent):
    def finish(self, steps: int) -> None:
        pass


def _check_repeats(trial: Trial, model: nn.Module, seed: int) -> None:
    """Raises DitherError unless make_model gives the same weights for the same seed."""
    again = trial.model.build(seed)
    one, two = ({**dict(m.named_parameters())} for m in (model, again))
    if one.keys() != two.keys():
        raise DitherError("make_model gives other parameters at each call; one model is compared")
    if shared := [name for name, p in one.items() if p is two[name]]:
        raise DitherError(
            f"make_model gives the same module twice ({shared[0]!r} is shared): make a new one"
        )
    if moved := [name for name, p in one.items() if not torch.equal(p, two[name])]:
        raise DitherError(
            f"make_model gives other weights at each call ({moved[0]!r}): it is called under "
            "torch.manual_seed(seed), so draw with torch's default generator"
        )


def _check_classes(trial: Trial, held: Problem) -> None:
    """Raises DitherError if there are classes for which the model has no output."""
    if held.classes is not None and isinstance(losses.get(trial.loss), losses.CrossEntropy):
        model = trial.model.build(0).to(trial.device).eval()
        x = trial.data.held().parts["x_test"][:2]
        with torch.no_grad():
            z = output(model, each(x, lambda t: t.to(trial.device)))
        y = held.parts["y_test"]
        width = z.shape[-1] if z.shape[:-1] == (2, *y.shape[1:]) else z.shape[1]
        if held.classes > width:
            raise DitherError(
                f"the targets have classes up to {held.classes - 1}, and the model has {width} "
                f"outputs: give it {held.classes}, or classes from 0"
            )
