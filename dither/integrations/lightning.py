"""Noise in a fit of Lightning.

from dither.integrations.lightning import Noise
Trainer(callbacks=[Noise(dither.Weight(0.05), draw="cycle")], accumulate_grad_batches=4)
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dither.integrations.attached import Attached


class Noise(Callback):
    """Noise on a LightningModule for the time of a fit; a step is one of its optimisers.

    what, how  as in `dither.inject`.
    module     the name of the submodule that gets it, "" for the LightningModule itself; patterns
               and sites are named from there.

    All batches that are accumulated for a step share its draw of weights and its σ; checkpoints
    hold the seed and the clock; Nodes' vectors are given to the first optimiser. After the fit, and
    after an exception, the noise is off. `noise` is the Injection, once a fit has begun.
    """

    def __init__(self, what: Any, *, module: str = "", **how: Any) -> None:
        self.attached, self.module, self.at = Attached(what, **how), module, -1

    @property
    def noise(self) -> Any:
        return self.attached.noise

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.attached.attach(pl_module.get_submodule(self.module))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.attached.teach(trainer.optimizers)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.at = trainer.global_step
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
        self.attached.restore(state_dict)
