"""The callbacks against a loop by hand: the same steps, the same draws, and nothing left."""

from pathlib import Path

import pytest
import torch
from loops import BATCH, LR, SEED, WHATS, Named, X, Y, by_hand, clean, loss, plain, same
from torch import nn

import dither
from dither.integrations.attached import Attached

pytestmark = pytest.mark.filterwarnings("ignore")  # of others' packages


# ---------------------------------------------------------------------------------- lightning


def fitted(net: nn.Module, callback, accumulate: int, epochs: int, precision="32-true", **how):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), LR)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), BATCH)
    trainer = lightning.Trainer(
        max_epochs=epochs, accumulate_grad_batches=accumulate,
        callbacks=callback if isinstance(callback, list) else [callback],
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, precision=precision,
    )  # fmt: skip
    trainer.fit(Module(), data, **how)
    return trainer


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("case", WHATS)
def test_a_fit_of_lightning_is_the_loop_by_hand(case, accumulate):
    pytest.importorskip("lightning.pytorch")
    from dither.integrations.lightning import Noise

    what, how = WHATS[case]
    net, wanted = plain(), plain()
    steps = by_hand(wanted, what, 2, accumulate, **how)
    callback = Noise(what, module="net", seed=SEED, **how)
    fitted(net, callback, accumulate, 2)
    same(net, wanted)
    assert callback.noise.step == steps == 2 * len(X) // (BATCH * accumulate)
    clean(net)


def test_callbacks_of_lightning_that_noise_does_not_go_with_are_told():
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    from dither.integrations.lightning import Noise

    class Freezing(callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.net[0])

        def finetune_function(self, pl_module, epoch, optimizer):
            pass

    nodes, weights = {"net.2": dither.Node(1.0)}, dither.Weight(0.1)
    pruning = callbacks.ModelPruning("l1_unstructured", amount=0.3)
    for what, other, said in (
        (nodes, Freezing(), "Freezing knows"),
        (weights, pruning, r"'net\.[02]\.\w+' is no longer in the model"),
    ):
        net = plain()
        callback = Noise(what, seed=0)
        with pytest.raises(dither.DitherError, match=said):
            fitted(net, [callback, other], 1, 2)
        assert callback.noise.removed


def test_a_fit_that_goes_on_from_a_checkpoint_draws_what_it_would_have_drawn(tmp_path):
    pytest.importorskip("lightning.pytorch")
    from dither.integrations.lightning import Noise

    what, how = WHATS["nodes"]
    whole = plain()
    fitted(whole, Noise(what, module="net", seed=SEED, **how), 1, 3)
    first = plain()
    fitted(first, Noise(what, module="net", seed=SEED, **how), 1, 1).save_checkpoint(
        tmp_path / "a.ckpt"
    )
    second = plain()
    fitted(second, Noise(what, module="net", **how), 1, 3, ckpt_path=tmp_path / "a.ckpt")
    same(second, whole)


def test_vectors_are_of_the_models_precision_and_two_callbacks_go_together():
    lightning = pytest.importorskip("lightning.pytorch")
    from dither.integrations.lightning import Noise

    class Always(lightning.Callback):
        """Looks at the model between steps, which must move no clock."""

        def on_train_batch_end(self, trainer, pl_module, *_):
            pl_module.net(X[:2].double())

    callbacks = [
        Noise({"0": dither.Node(1.0)}, module="net", name="node", when="always"),
        Noise(dither.Weight(0.1), module="net", name="weights"),
    ]
    net = plain()
    fitted(net, [*callbacks, Always()], 1, 2, precision="64-true")
    assert next(callbacks[0].attached.parameters()).dtype == torch.float64
    assert [c.attached.steps for c in callbacks] == [12, 12]
    clean(net)


def test_an_exception_in_a_fit_leaves_no_noise():
    pytest.importorskip("lightning.pytorch")
    from dither.integrations.lightning import Noise

    net = plain()
    net.append(Raises())
    with pytest.raises(ZeroDivisionError):
        fitted(net, Noise(dither.Weight(0.1), module="net"), 2, 1)
    clean(net)


# -------------------------------------------------------------------------------- transformers


def trained(
    model: nn.Module, callback, folder: Path, accumulate: int, steps: int, optim="sgd", **how
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    rows = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    args = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=BATCH, gradient_accumulation_steps=accumulate,
        max_steps=steps, use_cpu=True, report_to=[], save_strategy="steps", save_steps=4,
        learning_rate=LR, lr_scheduler_type="constant", max_grad_norm=0.0, optim=optim,
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_, **__):
            return torch.utils.data.SequentialSampler(rows)

    InOrder(model, args, train_dataset=rows, callbacks=[callback]).train(**how)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("case", WHATS)
def test_a_training_of_transformers_is_the_loop_by_hand(case, accumulate, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from dither.integrations.transformers import Noise

    what, how = WHATS[case]
    what = {f"net.{name}": one for name, one in what.items()} if isinstance(what, dict) else what
    model, wanted = Named(), Named()
    steps = by_hand(wanted, what, 2, accumulate, **how)
    callback = Noise(what, seed=SEED, **how)
    trained(model, callback, tmp_path, accumulate, steps)
    assert callback.noise.step == steps
    same(model, wanted)
    clean(model)


def test_a_training_of_transformers_goes_on_from_a_checkpoint(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from dither.integrations.transformers import Noise

    what = {"net.0": dither.Node(2.0)}
    whole, first, second = Named(), Named(), Named()
    trained(whole, Noise(what, seed=SEED), tmp_path / "whole", 1, 8)
    trained(first, Noise(what, seed=SEED), tmp_path / "parts", 1, 4)
    folder = tmp_path / "parts"
    callback = Noise(what)
    trained(second, callback, folder, 1, 8, resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert callback.noise.step == 8
    same(second, whole)


def test_vectors_in_fp16_are_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from dither.integrations.transformers import Noise

    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    args.fp16 = True
    callback = Noise({"0": dither.Node(1.0)})
    with pytest.raises(dither.DitherError, match="bf16"):
        callback.on_train_begin(args, transformers.TrainerState(), None, model=plain())
    clean(callback.attached.noise.model)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
def test_vectors_have_the_trainers_kind_of_optimiser(optim, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from dither.integrations.transformers import Noise

    model, callback = Named(), Noise({"net.0": dither.Node(1.0)}, seed=0)
    trained(model, callback, tmp_path, 1, 3, optim)
    clean(model)
    with dither.inject(Named(), {"net.0": dither.Node(1.0)}, seed=0) as untrained:
        (now,), (then,) = callback.attached.parameters(), untrained.parameters()
        assert not torch.equal(now, then)
    assert callback.optimiser.param_groups[0]["weight_decay"] == 0


def test_a_training_that_goes_on_elsewhere_asks_for_its_noise(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from dither.integrations.transformers import Noise

    first, second = Named(), Named()
    trained(first, Noise(dither.Additive(0.1), seed=1), tmp_path / "a", 1, 4)
    on = str(tmp_path / "a" / "checkpoint-4")
    with pytest.raises(dither.DitherError, match=r"Noise\(…, resume=folder\)"):
        trained(second, Noise(dither.Additive(0.1)), tmp_path / "b", 1, 6,
                resume_from_checkpoint=on)  # fmt: skip
    clean(second)
    callback = Noise(dither.Additive(0.1), resume=on)
    trained(second, callback, tmp_path / "b", 1, 6, resume_from_checkpoint=on)
    assert (callback.noise.step, callback.noise.seeds) == (6, (1,))


# ------------------------------------------------------------------------------- what both share


class Raises(nn.Module):
    def forward(self, x):
        raise ZeroDivisionError


def test_vectors_are_given_once_and_need_an_optimiser():
    net, attached = plain(), Attached({"0": dither.Node(1.0)})
    attached.attach(net)
    sgd = torch.optim.SGD(net.parameters(), LR)
    attached.teach([sgd])
    attached.teach([sgd])
    assert sum(p is next(attached.parameters()) for p in sgd.param_groups[0]["params"]) == 1
    with pytest.raises(dither.DitherError, match="no optimiser"):
        attached.teach([])


def test_state_waits_for_a_model():
    first, second = Attached(dither.Weight(0.1), seed=3), Attached(dither.Weight(0.1))
    net = plain().train()
    first.attach(net)
    for _ in range(3):
        first.hold()
        net(X)
        net(X)
        first.release()
        net(X)  # between two steps: an evaluation
    second.restore(first.state())
    first.detach()
    noise = second.attach(plain())
    assert (noise.step, noise.seeds) == (3, (3,))


# ---------------------------------------------------------------------------------- kept at a share


KEPT = {"0": dither.Multiplicative(dither.schedule.Balanced(0.1, every=2))}


def kept_by_hand(model: nn.Module, epochs: int) -> dict:
    """The loop of `dither.rebalance`, of which Lightning's callback is the same."""
    model.train()
    with dither.inject(model, KEPT, seed=SEED) as noise:
        sgd = torch.optim.SGD(model.parameters(), LR)
        for _ in range(epochs):
            for x, y in zip(X.split(BATCH), Y.split(BATCH), strict=True):
                dither.rebalance(noise, x, y)
                sgd.zero_grad()
                loss(model, x, y).backward()
                sgd.step()
        return noise.kept


def test_lightning_keeps_a_share_as_the_loop_does():
    pytest.importorskip("lightning.pytorch")
    from dither.integrations.lightning import Noise

    model, wanted = plain(), plain()
    kept = kept_by_hand(wanted, 12)
    callback = Noise(KEPT, module="net", seed=SEED)
    fitted(model, callback, 1, 12)
    assert callback.noise.kept == kept
    assert all(kept["sigma"].values())
    same(model, wanted)


def test_transformers_keeps_a_share_and_goes_on_from_a_checkpoint(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from dither.integrations.transformers import Noise

    what = {f"net.{name}": noise for name, noise in KEPT.items()}
    whole, first, second = Named(), Named(), Named()
    one, two = Noise(what, seed=SEED), Noise(what)
    trained(whole, one, tmp_path / "whole", 1, 48)
    trained(first, Noise(what, seed=SEED), tmp_path / "parts", 1, 40)
    folder = tmp_path / "parts"
    trained(second, two, folder, 1, 48, resume_from_checkpoint=str(folder / "checkpoint-40"))
    assert all(one.noise.kept["sigma"].values())
    assert two.noise.kept == one.noise.kept
    same(second, whole)
    clean(second)


def test_a_batch_that_is_no_pair_is_told():
    pytest.importorskip("transformers")
    from dither.integrations.attached import pair
    from dither.integrations.transformers import following

    assert pair([1, 2]) == (1, 2)
    assert pair({"x": 1, "labels": 2}) == ({"x": 1}, 2)
    labels = torch.arange(6).view(2, 3)
    assert following({"labels": labels})[1].tolist() == [[1, 2, -100], [4, 5, -100]]
    with pytest.raises(dither.DitherError, match=r"neither a pair nor .* got Tensor.*batch=lambda"):
        pair(X)
