"""Noise in a fit of Lightning:

    from dither.integrations.lightning import Noise
    Trainer(callbacks=[Noise(dither.Weight(0.05), draw="cycle")], accumulate_grad_batches=4)

It counts the steps of the optimiser, and Lightning's checkpoints hold its state.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning

from dither.errors import DitherError
from dither.integrations.attached import Attached


class Noise(Callback):
    """Noise on a LightningModule for the time of a fit. A step of the noise ends with a step of an
    optimiser: all batches that are accumulated for it share the draw of the weights and σ.

    what, how  as in `dither.inject`.
    module     the name of the submodule that gets it, "" for the LightningModule itself; patterns
               and sites are named from there.
    name       tells several such callbacks of one Trainer apart.
    log_every  steps after which σ, R and R over the loss are logged, for whatever logger there is;
               None: never. A log costs about one and a half steps.
    loss       for `schedule.Balanced` and `log_every`, as in `dither.explicit`.
    batch      for the same: the batch → (x, y); by default it is a pair, or a mapping with
               "labels".

    The noise is attached after the model is moved and cast, and removed after the fit or an
    exception. A second fit continues it. Checkpoints hold seed, clock and Nodes' vectors; the first
    optimiser trains the vectors. `noise` is the Injection, once a fit has begun. Under manual
    optimisation, a batch in which several optimisers step is one step of the noise.
    """

    def __init__(self, what: Any, *, module: str = "", name: str = "", **how: Any) -> None:
        self.attached, self.module, self.name = Attached(what, **how), module, name
        self.at, self.fitting = -1, False

    @property
    def noise(self) -> Any:
        return self.attached.noise

    @property
    def state_key(self) -> str:
        return f"dither {self.module} {self.name}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.fitting = stage == "fit"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step and self.noise is not None and not self.attached.waiting:
            self.attached.restore(self.attached.state())
        self.attached.attach(pl_module.get_submodule(self.module))
        callbacks: list[Any] = getattr(trainer, "callbacks", [])
        others = [c for c in callbacks if isinstance(c, BaseFinetuning)]
        if others and any(True for _ in self.attached.parameters()):
            self.attached.detach()
            raise DitherError(
                f"{type(others[0]).__name__} knows an optimiser's parameters by the model's names, "
                "and the vectors of noise nodes (Node) have none there: freeze by "
                "requires_grad_(False) without that callback, or take another noise"
            )
        self.attached.teach(trainer.optimizers)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.at = trainer.global_step
        self.attached.rebalance(batch)
        if numbers := self.attached.numbers(batch):
            pl_module.log_dict(numbers)
        self.attached.hold()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self.at:
            self.attached.release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.attached.detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.attached.detach()

    def state_dict(self) -> dict[str, Any]:
        return self.attached.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.fitting:  # validation and tests have no noise
            self.attached.restore(state_dict)
