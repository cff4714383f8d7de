"""Noise in a training of transformers' Trainer.

from dither.integrations.transformers import Noise
Trainer(model, args, train_dataset=…, callbacks=[Noise(dither.Additive(0.1), seed=0)])
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from transformers import TrainerCallback

from dither.errors import DitherError
from dither.integrations.attached import Attached

FILE = "dither.pt"  # in a checkpoint's folder


class Noise(TrainerCallback):
    """Noise on a Trainer's model for the time of a training; a step is one of its optimiser.

    what, how  as in `dither.inject`.

    All batches that are accumulated for a step share its draw of weights and its σ. Nodes' vectors
    have an optimiser of the Trainer's kind, at its rate; their gradients are not clipped. Seed,
    clock and vectors are saved in each checkpoint's folder as `dither.pt`, and read from there
    where a training goes on at its step. Where a training ends by an exception no callback hears of
    it: call `remove`. `noise` is the Injection, once a training has begun. Raises DitherError for
    Nodes in fp16, whose gradients the Trainer scales (bf16 does not).
    """

    def __init__(self, what: Any, **how: Any) -> None:
        self.attached = Attached(what, **how)
        self.theirs: Any = None  # the Trainer's optimiser
        self.optimiser: Optimizer | None = None  # of the vectors

    @property
    def noise(self) -> Any:
        return self.attached.noise

    def remove(self) -> None:
        """Take the noise off."""
        self.attached.detach()

    def on_train_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        noise = self.attached.attach(of["model"])
        vectors = list(self.attached.parameters())
        if vectors and args.fp16:
            raise DitherError(
                "noise with trained vectors (Node) and fp16=True: the Trainer scales the loss and "
                "their gradients with it; take bf16=True"
            )
        self.theirs = of.get("optimizer")
        if vectors and self.theirs is not None:
            theirs = getattr(self.theirs, "optimizer", self.theirs)  # as accelerate wraps it
            self.optimiser = type(theirs)(vectors, **theirs.defaults)
        saved = _folder(args, state) / FILE
        if state.global_step and saved.exists():
            found = torch.load(saved, weights_only=True)
            self.attached.restore(found["noise"])
            if self.optimiser is not None and found["optimiser"] is not None:
                self.optimiser.load_state_dict(found["optimiser"])
        elif state.global_step:
            noise.step = state.global_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        self.attached.hold()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        if self.optimiser is not None:
            self.optimiser.param_groups[0]["lr"] = self.theirs.param_groups[0]["lr"]
            self.optimiser.step()
            self.optimiser.zero_grad()

    def on_step_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        self.attached.release()

    def on_save(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        folder = _folder(args, state)
        if folder.is_dir():
            own = None if self.optimiser is None else self.optimiser.state_dict()
            torch.save({"noise": self.attached.state(), "optimiser": own}, folder / FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        self.attached.detach()


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
