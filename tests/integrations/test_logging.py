"""log_every: σ, R and R over the loss in the logs of Lightning and Transformers."""

import copy

import pytest
import torch
from torch import nn

import dither
from dither.integrations.attached import Attached

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True).tanh()
pytestmark = pytest.mark.filterwarnings("ignore")  # of others' packages
NAMES = {"dither/R", "dither/R over loss", "dither/sigma 0:in", "dither/sigma 2:in"}


def plain() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))


def test_with_one_output_the_logged_R_is_exact():
    model = plain()
    attached = Attached(dither.Additive(0.2), loss="half_square", log_every=3, seed=0)
    noise = attached.attach(model.train())
    loss, R, _ = dither.explicit(noise, X, Y, "half_square")
    state = torch.get_rng_state()
    found = attached.numbers((X, Y))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert found.keys() == NAMES
    assert found["dither/R"] == pytest.approx(float(R.detach()), rel=1e-5)
    assert found["dither/R over loss"] == pytest.approx(float((R / loss).detach()), rel=1e-5)
    assert found["dither/sigma 0:in"] == 0.2
    due = []
    for step in range(7):
        due.append(bool(attached.numbers((X, Y))))
        attached.hold()
        model(X)
        assert not attached.numbers((X, Y)), step
        attached.release()
    assert due == [True, False, False, True, False, False, True]


def test_schedules_are_logged_as_they_are():
    noise = {"0": dither.Additive(dither.schedule.Linear(0.0, 1.0, 4))}
    attached = Attached(noise, loss="half_square", log_every=1, seed=0)
    model = plain().train()
    attached.attach(model)
    seen = []
    for _ in range(3):
        seen.append(attached.numbers((X, Y))["dither/sigma 0:in"])
        attached.hold()
        model(X)
        attached.release()
    assert seen == [0.0, 0.25, 0.5]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "a"])
def test_log_every_is_a_number_of_steps(wrong):
    with pytest.raises(dither.DitherError, match="log_every is a whole number ≥ 1"):
        Attached(dither.Additive(0.1), log_every=wrong)


def test_lightning_logs_and_trains_the_same():
    lightning = pytest.importorskip("lightning.pytorch")
    from torch.utils.data import DataLoader, TensorDataset

    from dither.integrations.lightning import Noise

    class Module(lightning.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def training_step(self, batch, _):
            x, y = batch
            return (self.net(x) - y).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trained = {}
    for every in (None, 2):
        net = plain()
        callback = Noise(
            dither.Additive(0.2), module="net", seed=3, loss="half_square", log_every=every
        )
        trainer = lightning.Trainer(
            max_epochs=2, callbacks=[callback], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        )  # fmt: skip
        trainer.fit(Module(net), DataLoader(TensorDataset(X, Y), batch_size=8))
        trained[every] = net
        assert {name for name in trainer.logged_metrics if "dither" in name} == (
            NAMES if every else set()
        )
    for p, q in zip(trained[None].parameters(), trained[2].parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("own", [False, True])
def test_transformers_logs(own, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from dither.integrations.transformers import Noise

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = plain()

        def forward(self, x, labels=None):
            z = self.net(x)
            return {"loss": (z - labels).square().mean(), "logits": z}

    rows = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    noise = Noise({"net.0": dither.Additive(0.2)}, loss="half_square", log_every=2, seed=0)
    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=8, report_to=[], use_cpu=True,
        disable_tqdm=True, save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(Named(), args, train_dataset=rows, callbacks=[noise])
    told = []
    if own:
        noise.log = lambda numbers: told.append(copy.copy(numbers))
    trainer.train()
    logged = told if own else [e for e in trainer.state.log_history if "dither/R" in e]
    assert len(logged) == 2
    assert all(entry["dither/R"] > 0 for entry in logged)
    assert all(entry["dither/sigma net.0:in"] == 0.2 for entry in logged)
