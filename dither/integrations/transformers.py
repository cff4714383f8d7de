"""Noise in a training of transformers' Trainer:

    from dither.integrations.transformers import Noise
    Trainer(model, args, train_dataset=…, callbacks=[Noise(dither.Additive(0.1), seed=0)])

It counts the steps of the optimiser, and the Trainer's checkpoints hold its state.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback

from dither.errors import DitherError
from dither.integrations.attached import Attached, pair


class Noise(TrainerCallback):
    """Noise on a Trainer's model for the time of a training. A step of the noise is a step of the
    optimiser: all batches that are accumulated for it share the draw of the weights and σ.

    what, how  as in `dither.inject`.
    name       tells several such callbacks of one Trainer apart.
    resume     the folder of the checkpoint to continue from, if it is outside `output_dir`.
    log_every  steps after which σ, R and R over the loss are logged; None: never. A log costs about
               one and a half steps. They go to the Trainer's `log_history`; for TensorBoard or
               W&B tell the callback where to, `noise.log = trainer.log`.
    loss       for `schedule.Balanced` and `log_every`, as in `dither.explicit`.
    batch      for the same: the model's arguments → (x, y); by default y is "labels", moved by one
               position for a causal language model. σ is measured after a step.

    An optimiser of the Trainer's kind trains Nodes' vectors, at its rate and without weight decay.
    Their gradients are not clipped. Each checkpoint's folder holds seed, clock and vectors. The
    Trainer calls no callback after an exception: call `remove` then. `noise` is the Injection, once
    a training has begun. Raises DitherError for several GPUs in one process, for Nodes in fp16 (the
    Trainer scales their gradients; in bf16 it does not), and for a training that continues without
    the file of its noise.
    """

    def __init__(self, what: Any, *, name: str = "", resume: str | None = None, **how: Any) -> None:
        self.attached, self.name, self.resume = Attached(what, **how), name, resume
        self.log: Callable[[dict[str, float]], Any] | None = None  # such as trainer.log
        self.theirs: Any = None  # the Trainer's optimiser
        self.optimiser: Optimizer | None = None  # of the vectors

    @property
    def noise(self) -> Any:
        return self.attached.noise

    @property
    def file(self) -> str:
        """The name of the noise's file in a checkpoint's folder."""
        return f"dither-{self.name}.pt" if self.name else "dither.pt"

    def remove(self) -> None:
        """Take the noise off."""
        self.attached.detach()

    def on_train_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        if getattr(args, "n_gpu", 1) > 1:
            raise DitherError(
                "noise can't reach the replicas that the Trainer makes on several GPUs of one "
                "process: start one process per GPU (torchrun), or make one GPU visible"
            )
        with ExitStack() as undo:
            undo.callback(self.attached.detach)
            self.attached.attach(of["model"])
            self.attached.watch()
            if self.attached.batch is None:
                self.attached.batch = following if _causal(of["model"]) else whole
            self._begin(args, state, of)
            undo.pop_all()

    def _begin(self, args: Any, state: Any, of: dict[str, Any]) -> None:
        vectors = list(self.attached.parameters())
        self.theirs, self.optimiser = of.get("optimizer"), None
        if vectors and args.fp16:
            raise DitherError(
                "noise with trained vectors (Node) and fp16=True: the Trainer scales the loss and "
                "their gradients with it; use bf16=True"
            )
        if vectors and self.theirs is not None:
            self.optimiser = alike(self.theirs, vectors)
        if not state.global_step:
            return
        folder = self.resume or args.resume_from_checkpoint
        saved = (Path(folder) if isinstance(folder, str) else _folder(args, state)) / self.file
        if not saved.exists():
            raise DitherError(
                f"the training continues at step {state.global_step}, and the file of its noise, "
                f"{saved}, is missing: pass the checkpoint's folder, Noise(…, resume=folder)"
            )
        checkpoint = torch.load(saved, weights_only=True)
        self.attached.restore(checkpoint["noise"])
        if self.optimiser is not None and checkpoint["optimiser"] is not None:
            self.optimiser.load_state_dict(checkpoint["optimiser"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        self.attached.hold()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        if self.optimiser is not None:
            self.optimiser.param_groups[0]["lr"] = self.theirs.param_groups[0]["lr"]
            self.optimiser.step()
            self.optimiser.zero_grad()

    def on_step_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        self.attached.release()
        seen = self.attached.seen
        if seen is None or seen.batch is None:
            return
        self.attached.rebalance(seen.batch)
        if numbers := self.attached.numbers(seen.batch):
            if self.log is not None:
                self.log(numbers)
            else:
                state.log_history.append({**numbers, "step": state.global_step})

    def on_save(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        folder = _folder(args, state)
        if state.is_world_process_zero and folder.is_dir():
            own = None if self.optimiser is None else self.optimiser.state_dict()
            torch.save({"noise": self.attached.state(), "optimiser": own}, folder / self.file)

    def on_train_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        self.attached.detach()


def _causal(model: nn.Module) -> bool:
    return any(word in type(model).__name__ for word in ("ForCausalLM", "LMHead"))


def whole(batch: Any) -> tuple[Any, Any]:
    """(x, y) of the model's arguments: all of them, and the labels."""
    return batch, pair(batch)[1]


def following(batch: Any) -> tuple[Any, Any]:
    """The same for a causal language model: the label of a position is that of the next one."""
    x, y = whole(batch)
    return x, torch.cat([y[:, 1:], torch.full_like(y[:, :1], -100)], 1)


def alike(optimiser: Any, parameters: list[nn.Parameter]) -> Optimizer:
    """An optimiser of the same kind and settings for other parameters, without weight decay."""
    theirs = getattr(optimiser, "optimizer", optimiser)  # accelerate wraps optimisers
    known = inspect.signature(type(theirs)).parameters
    group = theirs.param_groups[0]
    how = {k: v for k, v in {**theirs.defaults, **group}.items() if k in known and k != "params"}
    if "weight_decay" in how:
        how["weight_decay"] = 0.0
    return type(theirs)(parameters, **how)


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
