"""One method's training run on a user's problem.

A `Trial` is a Run of the laboratory: workers, store and checkpoints take it as they take the runs
of figures. What a user gave (model, data, functions) is no part of its JSON; `digest` stands for
it.
"""

import copy
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from numbers import Real
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from dither import loss as losses
from dither.calling import output
from dither.errors import DitherError
from dither.lab.compare.method import Own
from dither.lab.compare.pickled import generators
from dither.lab.compare.problem import Problem, Stack, each, stacked
from dither.lab.compare.streams import Draws
from dither.lab.compare.values import LAST
from dither.lab.data.sets import Tensors
from dither.lab.figure import Rows, Run
from dither.lab.training.loop import Training
from dither.lab.training.optimiser import SCHEDULES
from dither.noise import draw
from dither.regulariser.explicit import explicit


@dataclass(frozen=True, eq=False)
class Given:
    """A user's data, in place of a data set's name. path: where a worker reads them."""

    problem: Problem | None
    path: str = ""
    per_seed: bool = False

    def held(self) -> Problem:
        return self.problem if self.problem is not None else _read(self.path)

    def load(self, seed: int = 0) -> Tensors:
        return self.held().tensors()

    def __reduce__(self) -> Any:
        return _given, (None if self.path else cloudpickle.dumps(self.problem), self.path)


def _given(problem: bytes | None, path: str) -> Given:
    return Given(None if problem is None else cloudpickle.loads(problem), path)


@cache
def _read(path: str) -> Problem:
    """A problem from its file; once per process, and its memory is shared between processes."""
    try:
        held = torch.load(path, mmap=True, weights_only=True)
    except Exception as error:
        raise DitherError(f"{path} can't be read ({error}): run the comparison again") from error
    parts = {n: None if p is None else stacked(p) for n, p in held["parts"].items()}
    return Problem(parts, held["classes"], None, held["digest"])


def save(problem: Problem, path: Path) -> None:
    """Write a problem for workers."""
    parts = {n: p.tree if isinstance(p, Stack) else p for n, p in problem.parts.items()}
    temp = path.with_suffix(".tmp")
    torch.save({"parts": parts, "classes": problem.classes, "digest": problem.digest}, temp)
    temp.replace(path)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial(Run):
    """A Run of a user's model. digest: a checksum of all that it depends on, except the seed.

    penalty, step, sam   as in `Method`
    drops     a last batch that is smaller is left out
    patience  epochs without a better loss on the validation part after which it stops; its best
              weights are kept. None: it does not stop
    folder    where the trained weights are written; "": nowhere
    """

    method: str
    digest: str
    data: Any = field(compare=False)
    model: Any = field(compare=False)
    optimiser: Any = field(compare=False)
    noise: Any = field(default=None, compare=False)
    loss: Any = field(default="cross_entropy", compare=False)
    schedule: Any = field(default="constant", compare=False)
    watch: tuple[Any, ...] = field(default=(), compare=False)
    penalty: Any = field(default=None, compare=False)
    step: Any = field(default=None, compare=False)
    sam: float = field(default=0.0, compare=False)
    drops: bool = field(default=False, compare=False)
    patience: int | None = field(default=None, compare=False)
    folder: str = field(default="", compare=False)
    device: str = field(default="cpu", compare=False)

    def program(self, seeds: tuple[int, ...]) -> "TrialTraining":
        return TrialTraining(self, seeds)

    @property
    def stacked(self) -> bool:
        return False

    @property
    def validates(self) -> bool:
        """Whether a validation part chooses the epoch."""
        return self.data.held().parts["x_valid"] is not None

    def weights(self, seed: int) -> Path:
        """The file of a seed's trained weights."""
        return Path(self.folder) / self.digest / f"{seed}.pt"

    def __reduce__(self) -> Any:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data = fields.pop("data")  # its tensors stay in their file
        return _revived, (cloudpickle.dumps(fields), data)


def _revived(fields: bytes, data: Given) -> Trial:
    return Trial(**cloudpickle.loads(fields), data=data)


class TrialTraining(Training):
    """The training loop with what a user may bring: optimiser, schedule, step, data set."""

    def __init__(self, run: Trial, seeds: tuple[int, ...]) -> None:
        self.scheduler: Any = None
        self.problem = run.data.held()
        super().__init__(run, seeds, stacked=False, device=run.device)
        self.trial = run
        if self.problem.stream is not None:
            self.loader = _loader(self.problem.stream, run.batch, self.orders[0])
            self.own = generators(self.loader)
            self.per_epoch = len(self.loader)
        elif run.drops:
            self.per_epoch = self.n // self.batch
        self.steps = (run.epochs or 0) * self.per_epoch
        self.penalty = None if run.penalty is None else losses.get(run.penalty)
        self.seconds = 0.0
        self.best: tuple[float, int, dict, dict] | None = None  # loss, epoch, weights, σ

    def built(self, parameters: Any, nodes: list[Any]) -> Optimizer:
        spec = self.run.optimiser
        if not isinstance(spec, Own):
            return super().built(parameters, nodes)
        optimiser, self.scheduler = spec.both([*parameters, *nodes])
        return optimiser

    def __call__(self, progress: Any, keeper: Any = None) -> dict[int, Rows]:
        rows = super().__call__(progress, keeper)
        rows[self.seeds[0]] += [
            (self.step, "ms/step", 1000 * self.seconds / max(self.step, 1)),
            (self.step, LAST, self.best[1] if self.best is not None else self.epoch),
        ]
        if self.trial.folder:
            path = self.trial.weights(self.seeds[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            temp = path.with_suffix(".tmp")
            torch.save(self.model.state_dict(), temp)
            temp.replace(path)
        return rows

    # -------------------------------------------------------------------------------- checkpoints

    def state(self) -> dict[str, Any]:
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        own = {"scheduler": scheduler, "seconds": self.seconds, "best": self.best}
        return {**super().state(), "trial": own, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.seconds, self.best = state["trial"]["seconds"], state["trial"]["best"]
        self.steps = state["steps"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["trial"]["scheduler"])

    # -------------------------------------------------------------------------------- one step

    def batches(self, skip: int = 0) -> Iterator[tuple[Any, Any]]:
        if self.problem.stream is None:
            for x, y in itertools.islice(super().batches(skip), self.per_epoch - skip):
                yield _tree(x), _tree(y)
            return
        self.shuffled = [g.get_state() for g in self.orders]
        device = self.trial.device
        seed = draw.key("stream", self.seeds[0], self.epoch)
        draws = Draws(seed, self.own)  # what the data draw is the epoch's alone
        with draws():
            batches = iter(self.loader)
        for number in range(self.per_epoch):
            with draws():
                batch = next(batches)
            if number >= skip:
                x, y = (stacked(part).to(device) for part in batch)
                yield _tree(x), _tree(y)

    def descend(self, x: Any, y: Any) -> Tensor:
        start = time.perf_counter()
        if self.trial.step is not None:
            self.rebalance(x, y)
            value = self.trial.step(self.model, x, y, self.optimiser)
            if not isinstance(value, Real | Tensor):
                raise DitherError(
                    "step gives the loss of its batch, a number or a tensor of one: got "
                    f"{type(value).__name__}"
                )
            reached = torch.as_tensor(value, dtype=torch.float32).detach().reshape(1)
        elif self.scheduler is not None:
            self.rebalance(x, y)
            reached = self.slopes(x, y)
            self.optimiser.step()
        else:
            reached = super().descend(x, y)
        if self.scheduler is not None:
            self.scheduler.step()
        if reached.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        return reached

    def factor(self) -> float:
        if callable(self.run.schedule):
            return float(self.run.schedule(self.step, self.steps))
        return SCHEDULES[self.run.schedule](self.step, self.steps)

    def slopes(self, x: Any, y: Any) -> Tensor:
        if not self.trial.sam:
            return super().slopes(x, y)
        once = partial(super().slopes, x, y)
        return _sharpened(self.optimiser, self.trial.sam, once, self.noise)

    def objective(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        if self.penalty is None or self.noise is None:
            return super().objective(x, y)
        self.noise.step = self.step + 1
        self.loss.step = self.step
        samples = 1 if self.run.objective == "sampled" else None
        R = explicit(self.noise, x, y, loss=self.penalty, samples=samples).R
        total = self.loss.per_sample(output(self.model, x), y).mean() + R
        return total, total[None]

    # -------------------------------------------------------------------------------- stopping

    def look(self, *, turn: bool) -> None:
        if self.problem.parts["x_valid"] is not None and turn and self.step:
            self.validate()
        super().look(turn=turn)

    @torch.no_grad()
    def validate(self) -> None:
        """Keep the weights with the smallest loss on the validation part. At the end of the run, or
        after `patience` epochs without a smaller loss, they become the model's.
        """
        x, y = (self.problem.parts[f"{name}_valid"] for name in "xy")
        loss, total = losses.get(self.run.loss), 0.0
        self.model.eval()
        for start in range(0, len(x), chunk(self.run)):
            part = slice(start, start + chunk(self.run))
            a, b = (each(t[part], lambda t: t.to(self.trial.device)) for t in (x, y))
            total += float(loss.per_sample(output(self.model, a), b).sum())
        self.model.train()
        mean = total / len(x)
        if self.best is None or mean < self.best[0]:
            kept = {} if self.noise is None else copy.deepcopy(self.noise.kept)
            self.best = (mean, self.epoch, copy.deepcopy(self.model.state_dict()), kept)
        patience = self.trial.patience
        if self.step == self.steps or (patience and self.epoch - self.best[1] >= patience):
            self.model.load_state_dict(self.best[2])
            if self.noise is not None:
                self.noise.kept = self.best[3]  # σ is that of the epoch whose weights are kept
            self.steps = self.step  # what is measured now is the end


def chunk(run: Run) -> int:
    """Samples evaluated at once."""
    return max(run.batch or 0, 256)


def _tree(x: Any) -> Any:
    """What the model takes."""
    return x.tree if isinstance(x, Stack) else x


def _loader(stream: Any, batch: int | None, order: torch.Generator) -> DataLoader:
    if isinstance(stream, DataLoader):
        return stream
    return DataLoader(stream, batch_size=batch or len(stream), shuffle=True, generator=order)


def _sharpened(
    optimiser: Optimizer, rho: float, slopes: Callable[[], Tensor], noise: Any
) -> Tensor:
    """Set the gradient at w + ρ g/‖g‖ and give the loss at w, with the same noise at both."""
    with noise.hold() if noise is not None else nullcontext():
        each = slopes()
        moved = [p for group in optimiser.param_groups for p in group["params"]]
        moved = [p for p in moved if p.grad is not None]
        slope = [p.grad for p in moved]
        norm = torch.stack([g.norm() for g in slope]).norm()
        before = [p.detach().clone() for p in moved]
        with torch.no_grad():
            for p, g in zip(moved, slope, strict=True):
                p.add_(g * (rho / (norm + 1e-12)))
        slopes()
        with torch.no_grad():
            for p, w in zip(moved, before, strict=True):
                p.copy_(w)
    return each
