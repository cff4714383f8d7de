"""Measurements during training. A watch is a frozen dataclass with a rhythm and a call:

    every           n: at step 0, n, 2n, … · 0: at step 0 and at the end of each epoch · None: at
                    the end only; always at the last step too
    watch(state)    → {quantity: number}, for one replica, with a plain model
    stacked = True  (a class attribute) the watch takes a stack of S replicas at once: {quantity:
    [S]}

A watch changes nothing: the model is in eval mode, and noise that a watch draws does not change the
draws of the run.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from dither import loss as losses
from dither.attach.inject import Injection, inject
from dither.calling import output
from dither.errors import DitherError
from dither.lab.data.sets import FREQUENCIES, Tensors

if TYPE_CHECKING:
    from dither.lab.figure import Run

Split = Literal["train", "test"]
Seen = Mapping[str, Any]  # quantity → a float, or [S] for a stacked watch
CHUNK = 10_000  # examples × replicas evaluated at once
IMAGES = 256  # of images, whose feature maps leave the cache in larger chunks: three times slower


class Watch(Protocol):
    """A measurement during training; the docstring of the module says when and how."""

    @property
    def every(self) -> int | None: ...
    def __call__(self, state: "State", /) -> Seen: ...


def injected(run: "Run", model: nn.Module, seed: int | list[int], x: Tensor) -> Injection | None:
    """Inject the run's noise into a model with inputs like x; for a list of seeds, into a stack."""
    if run.noise is None:
        return None
    what = dict(run.noise) if isinstance(run.noise, tuple) else run.noise
    example = x[:2]
    if isinstance(seed, list):
        example = x[:, :2] if run.data.per_seed else example.expand(len(seed), *example.shape)
    return inject(
        model, what, seed=seed, example=example,
        draw=run.draw, by=run.by, statistics=run.statistics,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class State:
    """The state of training at a step. In a stack, data that differ by seed and all results have a
    first dimension S.

    loss: [S], the objective at the last step, with the noise or with R; None before the first step.
    """

    run: "Run"
    seeds: tuple[int, ...]
    step: int
    epoch: int
    model: nn.Module
    noise: Injection | None
    data: Tensors
    loss: Tensor | None = None
    stacked: bool = False
    _outputs: dict = field(default_factory=dict, repr=False)

    @property
    def seed(self) -> int:
        return self.seeds[0]

    def examples(self, split: Split, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """The first `limit` inputs and targets of a split; in a stack, [S, n, …]."""
        x, y = (getattr(self.data, f"{name}_{split}") for name in "xy")
        if not self.stacked:
            return x[:limit], y[:limit]
        if not self.run.data.per_seed:
            x, y = (t.expand(len(self.seeds), *t.shape) for t in (x, y))
        return x[:, :limit], y[:, :limit]

    @torch.no_grad()
    def outputs(self, split: Split, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Outputs [S, n, C] and targets [S, n, …]. Computed once per state."""
        if (split, limit) not in self._outputs:
            x, y = self.examples(split, limit)
            s = len(self.seeds)
            chunk = IMAGES if x.dim() - self.stacked > 3 else CHUNK
            parts = [
                output(self.model, part) for part in x.split(max(chunk // s, 1), int(self.stacked))
            ]
            z = torch.cat([part.unflatten(0, (s, -1)) for part in parts], 1)
            self._outputs[split, limit] = z, (y if self.stacked else y[None])
        return self._outputs[split, limit]

    def each(self) -> Iterator["State"]:
        """The states of the replicas, as plain models with their own noises. A plain state gives
        itself.
        """
        if not self.stacked:
            yield self
            return
        names = ("x_train", "y_train", "x_test", "y_test") if self.run.data.per_seed else ()
        for s, seed in enumerate(self.seeds):
            data = replace(self.data, **{name: getattr(self.data, name)[s] for name in names})
            model = self.model.unstack(s).eval()  # type: ignore[operator]
            noise = injected(self.run, model, seed, data.x_train)
            if noise is not None and self.noise is not None:
                with torch.no_grad():
                    for label, w in self.noise.nodes.items():
                        noise.nodes[label].copy_(w[s])
                noise.step, noise.paused = self.noise.step, self.noise.paused
            loss = None if self.loss is None else self.loss[s : s + 1]
            yield replace(
                self,
                seeds=(seed,),
                model=model,
                noise=noise,
                data=data,
                loss=loss,
                stacked=False,
                _outputs={},
            )

    @contextmanager
    def noisy(self) -> Iterator["State"]:
        """The same state with the noise on and the rest of the model in eval mode."""
        noise = self.noise
        if noise is None:
            yield self
            return
        before = noise.when, noise.paused, noise.get_extra_state()
        noise.when, noise.paused = "always", False
        try:
            yield replace(self, _outputs={})
        finally:
            noise.when, noise.paused = before[:2]
            noise.set_extra_state(before[2])


@dataclass(frozen=True)
class Loss:
    """The mean loss over (the first `limit` examples of) a split, noise off: "loss/train"."""

    split: Split = "train"
    every: int | None = 0
    limit: int | None = None
    stacked: ClassVar[bool] = True

    def __call__(self, state: State) -> Seen:
        z, y = state.outputs(self.split, self.limit)
        per_sample = losses.get(state.run.loss).per_sample(z.flatten(0, 1), y.flatten(0, 1))
        return {f"loss/{self.split}": per_sample.view(len(z), -1).mean(1)}


@dataclass(frozen=True)
class Accuracy:
    """The share of examples with the largest output at their class, noise off: "accuracy/test"."""

    split: Split = "test"
    every: int | None = 0
    limit: int | None = None
    stacked: ClassVar[bool] = True

    def __call__(self, state: State) -> Seen:
        z, y = state.outputs(self.split, self.limit)
        if state.data.classes:
            right = z.argmax(-1) == y
        elif isinstance(losses.get(state.run.loss), losses.Logistic):  # y in {−1, +1} or {0, 1}
            right = (z.flatten(1) > 0) == (y.view(z.shape[0], -1) > 0)
        else:
            raise DitherError(f"accuracy needs labels, and {state.run.data.name!r} is a regression")
        return {f"accuracy/{self.split}": right.float().mean(1)}


@dataclass(frozen=True)
class WithNoise:
    """Another watch with the noise on, averaged over draws: "noisy accuracy/test"."""

    watch: Loss | Accuracy
    draws: int = 1
    stacked: ClassVar[bool] = True

    @property
    def every(self) -> int | None:
        return self.watch.every

    def __call__(self, state: State) -> Seen:
        seen = []
        for _ in range(self.draws):
            with state.noisy() as noisy, ExitStack() as held:
                if noisy.noise is not None:
                    noisy.noise.step += len(seen)  # other draws …
                    held.enter_context(noisy.noise.hold())  # … one for all parts of a split
                seen.append(self.watch(noisy))
        return {f"noisy {name}": torch.stack([s[name] for s in seen]).mean(0) for name in seen[0]}


@dataclass(frozen=True)
class Objective:
    """The objective of the last step on its batch, with the noise, or loss + R: "objective".

    Nothing at step 0. A stack has no R of each replica, so with a penalty the runs are serial.
    """

    every: int | None = 1
    stacked: ClassVar[bool] = True

    def __call__(self, state: State) -> Seen:
        return {} if state.loss is None else {"objective": state.loss}


@dataclass(frozen=True)
class WeightNorms:
    """‖W‖_F of each parameter: "norm/fc0.weight"."""

    every: int | None = 0
    stacked: ClassVar[bool] = True

    def __call__(self, state: State) -> Seen:
        return {f"norm/{name}": _norms(p, state) for name, p in state.model.named_parameters()}


@dataclass(frozen=True)
class NodeNorms:
    """‖w‖ of each noise node: "node/fc0:out". Nothing without nodes."""

    every: int | None = 0
    stacked: ClassVar[bool] = True

    def __call__(self, state: State) -> Seen:
        nodes = {} if state.noise is None else dict(state.noise.nodes.items())
        return {f"node/{label.replace('/', '.')}": _norms(w, state) for label, w in nodes.items()}


def _norms(p: Tensor, state: State) -> Tensor:
    return p.detach().reshape(len(state.seeds), -1).norm(dim=1)


@dataclass(frozen=True)
class Outputs:
    """The outputs at the examples of a split: "output/17"; with several outputs "output/17/3"."""

    split: Split = "train"
    every: int | None = None
    limit: int | None = None
    stacked: ClassVar[bool] = True

    def __call__(self, state: State) -> Seen:
        z, _ = state.outputs(self.split, self.limit)
        if z.shape[-1] == 1:
            return {f"output/{i}": z[:, i, 0] for i in range(z.shape[1])}
        return {f"output/{i}/{c}": z[:, i, c] for i in range(z.shape[1]) for c in range(z.shape[2])}


@dataclass(frozen=True)
class Amplitudes:
    """|2/n Σ_t f(t) exp(−2πikt)| on the training grid t = 0, 1/n, … < 1: 1 for sin(2πkt + φ):
    "amplitude/5".
    """

    frequencies: tuple[int, ...] = FREQUENCIES
    every: int | None = 0
    stacked: ClassVar[bool] = True

    def __call__(self, state: State) -> Seen:
        z = state.outputs("train")[0].squeeze(-1)  # [S, n]
        spectrum = torch.fft.rfft(z, dim=1, norm="forward").abs() * 2
        return {f"amplitude/{k}": spectrum[:, k] for k in self.frequencies}
