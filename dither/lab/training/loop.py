"""The one training loop: train(run, seeds, progress) → {seed: [(step, quantity, value), …]}.

Parameters, order of the data, noise and phases are functions of the seed alone. Many seeds of a
narrow network run as one program (`Run.stacked`). Its results are those of serial runs, up to
rounding.

    objective "noise"     ℓ(f(x; δ))         the noise on
              "explicit"  ℓ(f(x)) + R(x)     R exact, the noise off
              "sampled"   ℓ(f(x)) + R̂(x)     R from one random column: unbiased and cheaper

A run with a loss that is not finite ends with a row (step, "diverged", step). A run that reaches
its training accuracy ends with (step, "stopped", epoch). Other replicas continue.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dither import loss as losses
from dither.calling import output
from dither.errors import DitherError
from dither.lab.data.sets import Tensors, generator
from dither.lab.training.checkpoint import Keeper
from dither.lab.training.optimiser import SCHEDULES, Langevin
from dither.lab.training.watch import (
    Accuracy,
    Objective,
    State,
    Watch,
    injected,
)
from dither.noise import draw
from dither.noise.noises import Weight
from dither.regulariser.explicit import explicit
from dither.regulariser.rebalance import rebalance
from dither.schedule import Balanced

if TYPE_CHECKING:
    from dither.lab.figure import Progress, Rows, Run

UNSEEN = 1000  # steps between two checks of the losses for one that is not finite
BEAT = 0.2  # seconds between two reports of the progress


def train(
    run: "Run",
    seeds: Sequence[int],
    progress: "Progress",
    device: str = "cpu",
    keeper: Keeper | None = None,
) -> "dict[int, Rows]":
    """Train a run with each seed, from its last checkpoint if the keeper has one."""
    if not callable(run.schedule) and run.schedule not in SCHEDULES:
        raise DitherError(f"run: schedule {run.schedule!r} is none of {', '.join(SCHEDULES)}")
    seeds = tuple(dict.fromkeys(seeds))
    stacked = run.stacked and len(seeds) > 1 and _stackable(run)
    groups = [seeds] if stacked else [(seed,) for seed in seeds]
    rows: dict[int, Rows] = {}
    for i, group in enumerate(groups):
        with torch.random.fork_rng():  # dropout layers draw from torch's default generator
            torch.manual_seed(draw.key("dropout", *group))
            own = getattr(run, "program", None)  # a user's
            training = own(group) if own is not None else Training(run, group, stacked, device)
            if keeper is not None and (state := keeper.load(group)) is not None:
                training.restore(state)
                keeper.say(f"goes on from step {training.step} of {training.steps}")
            rows |= training(_Part(progress, i, len(groups)), keeper)
            if keeper is not None and len(groups) > 1:  # the next one may be killed
                keeper.save(group, training.state())
    return rows


class Training:
    """One program: a seed, or a stack of seeds."""

    def __init__(self, run: "Run", seeds: tuple[int, ...], stacked: bool, device: str) -> None:
        self.run, self.seeds, self.stacked = run, seeds, stacked
        self.device = torch.device(device)
        self.data = _tensors(run, seeds, stacked).to(device)
        spec = run.model
        self.model = spec.build_stacked(seeds) if stacked else spec.build(seeds[0])
        self.model = self.model.to(device).train()
        if run.precision == "double":
            self.data, self.model = self.data.double(), self.model.double()
        mine = list(seeds) if stacked else seeds[0]
        self.noise = injected(run, self.model, mine, self.data.x_train)
        if self.noise is not None and run.objective != "noise":
            self.noise.pause()
        sites = () if self.noise is None else self.noise.ordered
        self.balanced = any(isinstance(site.noise.sigma, Balanced) for site in sites)
        nodes = list(self.noise.parameters()) if self.noise is not None else []
        self.optimiser = self.built(self.model.parameters(), nodes)
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        langevin = isinstance(run.optimiser, Langevin)
        self.after = run.optimiser.after(self.optimiser, mine) if langevin else None
        self.loss = _Loss(losses.get(run.loss), seeds)
        self.orders = [generator(seed, "order") for seed in seeds]
        self.n = self.data.y_train.shape[int(stacked and run.data.per_seed)]
        self.batch = min(run.batch or self.n, self.n)
        self.per_epoch = math.ceil(self.n / self.batch)  # the last batch may be smaller
        self.steps = run.steps or (run.epochs or 0) * self.per_epoch
        self.rows: dict[int, Rows] = {seed: [] for seed in seeds}
        self.alive = list(range(len(seeds)))
        self.unseen: list[Tensor] = []  # losses [S] of the last steps
        self.step = self.epoch = 0
        self.seen = 0  # batches of this epoch
        self.shuffled: list[Tensor] = []  # the states of `orders` before this epoch was drawn
        self.looked = False

    def built(self, parameters: Iterable[nn.Parameter], nodes: list[nn.Parameter]) -> Optimizer:
        """The optimiser of a new model and the vectors of its noise."""
        return self.run.optimiser.build(parameters, nodes)

    def __call__(self, progress: "_Part", keeper: Keeper | None = None) -> "dict[int, Rows]":
        if not self.looked:
            self.look(turn=True)
            self.looked = True
        while self.step < self.steps and self.alive:
            for x, y in self.batches(self.seen):
                self.unseen.append(self.descend(x, y))
                self.step += 1
                self.seen = (self.seen + 1) % self.per_epoch
                turn = self.seen == 0
                self.epoch += turn
                self.look(turn=turn)
                progress.update(self.step, self.steps)
                if keeper is not None:
                    keeper.tick(self.seeds, self.state)
                if self.step == self.steps or not self.alive:
                    break
        progress.finish(self.steps)
        return self.rows

    # -------------------------------------------------------------------------------- checkpoints

    def state(self) -> dict[str, Any]:
        """The state of the run between two steps."""
        orders = self.shuffled if self.seen else [g.get_state() for g in self.orders]
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "noise": None if self.noise is None else self.noise.state_dict(),
            "after": None if self.after is None else self.after.state_dict(),
            "orders": orders,
            "random": torch.get_rng_state(),
            "rows": self.rows,
            "alive": self.alive,
            "unseen": self.unseen,
            "position": (self.step, self.epoch, self.seen),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, for a training that has not begun."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.noise is not None:
            self.noise.load_state_dict(state["noise"])
        if self.after is not None:
            self.after.load_state_dict(state["after"])
        for order, held in zip(self.orders, state["orders"], strict=True):
            order.set_state(held)
        torch.set_rng_state(state["random"])
        self.rows, self.alive, self.unseen = state["rows"], state["alive"], state["unseen"]
        self.step, self.epoch, self.seen = state["position"]
        self.looked = True

    # -------------------------------------------------------------------------------- one step

    def batches(self, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch in the order of each seed, without the first `skip`. For a stack,
        x [S, B, …] and y [S, B, …].
        """
        x, y = self.data.x_train, self.data.y_train
        own = self.run.data.per_seed
        if self.stacked and not own:
            x, y = (t.expand(len(self.seeds), *t.shape) for t in (x, y))
        if self.batch == self.n:
            yield x, y
            return
        self.shuffled = [g.get_state() for g in self.orders]
        order = torch.stack([torch.randperm(self.n, generator=g) for g in self.orders])
        for chosen in order.to(x.device).split(self.batch, 1)[skip:]:  # [S, B]
            if not self.stacked:
                yield x[chosen[0]], y[chosen[0]]
            elif own:
                replica = torch.arange(len(self.seeds), device=x.device).unsqueeze(1)
                yield x[replica, chosen], y[replica, chosen]
            else:
                yield self.data.x_train[chosen], self.data.y_train[chosen]

    def descend(self, x: Tensor, y: Tensor) -> Tensor:
        """One optimiser step on one batch. Returns the objective, per replica [S]."""
        factor = self.factor()
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.rebalance(x, y)
        each = self.slopes(x, y)
        if getattr(self.run.optimiser, "again", False):  # it evaluates the gradient twice or more
            self.optimiser.step(lambda: float(self.slopes(x, y).sum()))
        else:
            self.optimiser.step()
        return each

    def rebalance(self, x: Tensor, y: Tensor) -> None:
        """Set the σ that are kept at a share of the loss, if it is time to."""
        if not self.balanced or self.noise is None:
            return
        paused, self.noise.paused = self.noise.paused, False  # R in the loss is kept, too
        try:
            rebalance(self.noise, x, y, self.loss.loss)
        finally:
            self.noise.paused = paused

    def factor(self) -> float:
        """The factor on the learning rate at this step."""
        return SCHEDULES[self.run.schedule](self.step, self.steps)

    def slopes(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the gradient of the objective to the parameters'. Returns it per replica [S]."""
        y = y.flatten(0, 1) if self.stacked else y
        narrow = self.run.precision == "bf16"
        if narrow and x.ndim == 4:  # faster for bf16 convolutions
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=narrow):
            total, each = self.objective(x, y)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        return each.detach()

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over replicas of the loss with noise, or of loss + R; and the loss of each [S].

        In a stack the second is without R, since `explicit` gives R for all replicas together.
        """
        if self.run.objective == "noise" or self.noise is None:
            each = self.loss.means(self.loss.per_sample(output(self.model, x), y))
            return each.sum(), each
        self.noise.step = self.step + 1  # it is paused, so its clock stops; its schedules must not
        self.loss.step = self.step
        samples = 1 if self.run.objective == "sampled" else None
        penalised = explicit(self.noise, x, y, loss=self.loss, samples=samples)
        mean = penalised.loss + penalised.R  # over replicas and samples
        total = len(self.seeds) * mean
        return total, self.loss.seen if self.stacked else total[None]

    # -------------------------------------------------------------------------------- looking

    def look(self, *, turn: bool) -> None:
        """Call the watches that are due now. turn: at the start, or at the end of an epoch."""
        end = self.step == self.steps
        due = [w for w in self.run.watch if end or _due(w.every, self.step, turn=turn)]
        stop = self.run.stop is not None and turn and self.step > 0
        if not (due or stop or end or len(self.unseen) >= UNSEEN):
            return
        loss = self.unseen[-1] if self.unseen else None
        self.mark_diverged()
        if not self.alive or not (due or stop):
            return
        self.model.eval()
        state = State(
            run=self.run,
            seeds=self.seeds,
            step=self.step,
            epoch=self.epoch,
            model=self.model,
            noise=self.noise,
            data=self.data,
            loss=loss,
            stacked=self.stacked,
        )
        self.record(state, due, self.alive)
        if stop:
            self.mark_stopped(state, [w for w in self.run.watch if w not in due])
        self.model.train()

    def record(self, state: State, watches: Sequence[Watch], wanted: Sequence[int]) -> None:
        """The state of some replicas, for the watches."""
        for watch in watches if wanted else ():
            if self.stacked and not getattr(watch, "stacked", False):
                seen = {s: watch(one) for s, one in enumerate(state.each()) if s in wanted}
                columns = {q: {s: seen[s][q] for s in seen} for q in seen[wanted[0]]}
            else:
                looks = {q: torch.as_tensor(v).flatten().tolist() for q, v in watch(state).items()}
                columns = {q: {s: v[s] for s in wanted} for q, v in looks.items()}
            for quantity, values in columns.items():
                for s, value in values.items():
                    row = (self.step, quantity, torch.as_tensor(value).item())
                    self.rows[self.seeds[s]].append(row)

    def mark_diverged(self) -> None:
        """Drop the replicas with a loss that is not finite, and record the first such step."""
        if not self.unseen:
            return
        bad = ~torch.stack(self.unseen).isfinite()  # [T, S]
        first = (self.step - len(bad) + 1 + bad.int().argmax(0)).tolist()
        for s in torch.nonzero(bad.any(0)).flatten().tolist():
            if s in self.alive:
                self.rows[self.seeds[s]].append((first[s], "diverged", first[s]))
                self.alive.remove(s)
        self.unseen.clear()

    def mark_stopped(self, state: State, others: Sequence[Watch]) -> None:
        """Drop the replicas that reach the training accuracy, after a last call of every watch."""
        accuracy = Accuracy("train")(state)["accuracy/train"].tolist()
        stopped = [s for s in self.alive if accuracy[s] >= (self.run.stop or 0)]
        self.record(state, others, stopped)
        for s in stopped:
            self.rows[self.seeds[s]].append((self.step, "stopped", self.epoch))
            self.alive.remove(s)


class _Loss:
    """The loss of a stack. It keeps each replica's mean, and draws column signs by each seed."""

    def __init__(self, loss: Any, seeds: tuple[int, ...]) -> None:
        self.loss, self.seeds, self.step, self.seen = loss, seeds, 0, torch.empty(0)

    def means(self, per_sample: Tensor) -> Tensor:
        return per_sample.unflatten(0, (len(self.seeds), -1)).mean(1)  # [S]

    def per_sample(self, z: Tensor, y: Tensor) -> Tensor:
        per_sample = self.loss.per_sample(z, y)
        self.seen = self.means(per_sample.detach())
        return per_sample

    def columns(self, z: Tensor, y: Tensor) -> Any:
        columns = self.loss.columns(z, y)
        lot = draw.Source([draw.key(seed, "signs", self.step) for seed in self.seeds])
        signs = lot.sign(z.detach().unflatten(0, (len(self.seeds), -1))).flatten(0, 1)
        kind = type(columns)
        return kind(columns.count, columns.column, lambda _: columns.mixed(signs), columns.sign)


def _stackable(run: "Run") -> bool:
    """Whether a stack can run it. A stack can't draw a tensor at random, penalise R of parameters,
    record R of each replica, balance σ of each, or use an optimiser that needs the gradient of all
    parameters together.
    """
    if getattr(run.optimiser, "again", False):
        return False
    noises = [n for _, n in run.noise] if isinstance(run.noise, tuple) else [run.noise]
    if any(isinstance(getattr(n, "sigma", None), Balanced) for n in noises):
        return False
    if run.objective == "noise":
        return run.draw != "random"
    return not any(isinstance(n, Weight) for n in noises) and not any(
        isinstance(w, Objective) for w in run.watch
    )


def _due(every: int | None, step: int, *, turn: bool) -> bool:
    return turn if every == 0 else every is not None and step % every == 0


def _tensors(run: "Run", seeds: tuple[int, ...], stacked: bool) -> Tensors:
    """The data of one seed, of all seeds, or [S, …] if each seed has its own."""
    if not (stacked and run.data.per_seed):
        return run.data.load(seeds[0])
    loaded = [run.data.load(seed) for seed in seeds]
    names = ("x_train", "y_train", "x_test", "y_test")
    return replace(loaded[0], **{n: torch.stack([getattr(t, n) for t in loaded]) for n in names})


class _Part:
    """The progress of one of several programs, reported a few times a second."""

    def __init__(self, progress: "Progress", part: int, parts: int) -> None:
        self.progress, self.part, self.parts, self.next = progress, part, parts, 0.0

    def update(self, step: int, steps: int) -> None:
        if (now := monotonic()) >= self.next:
            self.next = now + BEAT
            self.progress.update(self.part * steps + step, self.parts * steps)

    def finish(self, steps: int) -> None:
        self.progress.update((self.part + 1) * steps, self.parts * steps)
