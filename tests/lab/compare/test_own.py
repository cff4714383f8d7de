"""compare on what users bring: data of any kind, optimisers, steps, baselines, sequences."""

import importlib

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    TensorDataset,
)

import dither
from dither.lab import SGD
from dither.lab.compare import (
    Distance,
    Method,
    compare,
    jacobian,
    label_smoothing,
    sam,
    weight_decay,
)
from dither.lab.compare.digest import _code
from dither.lab.compare.plan import Plan, Settings
from dither.lab.compare.quantities import SIGMA
from dither.lab.compare.trial import TrialTraining
from dither.lab.compare.values import LAST

torch.manual_seed(0)
X, W = torch.randn(60, 5), torch.randn(5, 3)
Y = (X @ W).argmax(1)
DATA = (X[:40], Y[:40], X[40:], Y[40:])
SMALL = {"seeds": 2, "epochs": 2, "batch": 16}


def make_model():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def values(found, method="none"):
    return {q: v for q, v in found.values[method].items() if q != "ms/step"}


def same(one, two):
    assert one.keys() == two.keys()
    for quantity, value in one.items():
        np.testing.assert_array_equal(value, two[quantity], quantity)


def training(method, seed=0, data=DATA, **settings):
    """The training of one method, before its first step."""
    names = Settings.__dataclass_fields__
    given = {
        **dict.fromkeys(names),
        **{"seeds": 1, "epochs": 1, "batch": None, "optimiser": SGD(0.1), "schedule": "constant"},
        **{"loss": "cross_entropy", "validation": 0.0, "device": "cpu", **settings},
    }
    plan = Plan.of(make_model, data, {"one": method}, Settings(**given))
    return TrialTraining(plan.trials["one"], (seed,))


def test_data_of_every_kind_are_the_same_data():
    x, y, x_test, y_test = DATA
    train, test = TensorDataset(x, y), TensorDataset(x_test, y_test)
    kinds = [
        tuple(part.numpy() for part in DATA),
        tuple(part.double().numpy() if part.is_floating_point() else part for part in DATA),
        [part.tolist() for part in DATA],
        (train, test),
        (DataLoader(train, batch_size=16, shuffle=True), DataLoader(test)),
    ]
    expected = values(compare(make_model, DATA, {"none": None}, **SMALL))
    for kind in kinds:
        same(values(compare(make_model, kind, {"none": None}, **SMALL)), expected)


def test_samples_of_several_tensors():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_model()

        def forward(self, a, b):
            return self.net(torch.cat([a, b], 1))

    x, y, x_test, y_test = DATA

    def split(x):
        return {"a": x[:, :2], "b": x[:, 2:]}

    methods = {"none": None, "noise": {"net.0": dither.Additive(0.1)}}
    expected = compare(make_model, DATA, {"none": None, "noise": {"0": dither.Additive(0.1)}})
    found = compare(Named, (split(x), y, split(x_test), y_test), methods)
    same(values(found), values(expected))
    rows = [{**split(x[i : i + 1]), "labels": y[i : i + 1]} for i in range(40)]
    loader = DataLoader([{k: v[0] for k, v in row.items()} for row in rows], batch_size=40)
    test = [{"a": a[:2], "b": a[2:], "labels": b} for a, b in zip(x_test, y_test, strict=True)]
    named = compare(Named, (loader, DataLoader(test)), methods)
    same(values(named), values(expected))
    assert named.values["noise"]["R/loss"][0] > 0


class Augmented(Dataset):
    """Other values at each reading."""

    def __init__(self, n):
        self.n, self.read = n, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.read += 1
        return X[i] + 0.1 * torch.randn(5), Y[i]


def test_a_data_set_that_changes_is_read_in_each_epoch():
    data = Augmented(40), TensorDataset(*DATA[2:])
    once = compare(make_model, data, {"none": None, "zero": dither.Additive(0.0)}, **SMALL)
    assert data[0].read > 2 * 2 * 2 * 40
    same(
        values(once), {q: v for q, v in values(once, "zero").items() if q not in ("R/loss", SIGMA)}
    )
    assert "loss/train" not in once.quantities
    again = compare(make_model, (Augmented(40), data[1]), {"none": None}, **SMALL)
    same(values(again), values(once))


def test_targets_of_a_sequence():
    torch.manual_seed(1)
    tokens = torch.randint(6, (30, 4))
    labels = tokens.clone()
    labels[:, 0] = -100

    def net():
        return nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 6))

    data = tokens[:20], labels[:20], tokens[20:], labels[20:]
    found = compare(net, data, {"none": None, "noise": dither.Additive(0.1)}, optimiser=SGD(1.0),
                    batch=4, epochs=30, seeds=1)  # fmt: skip
    assert found.values["none"]["accuracy/test"][0] == 1.0
    assert found.values["noise"]["R/loss"][0] > 0


def test_a_loss_and_targets_of_ones_own():
    x, _, x_test, _ = DATA

    def pinball(z, y):
        return ((z[:, 0] - y["low"]) ** 2 + (z[:, 1] - y["high"]) ** 2) / 2

    def targets(x):
        return {"low": x.min(1).values, "high": x.max(1).values}

    data = x, targets(x), x_test, targets(x_test)
    methods = {"none": None, "R": dither.Additive(0.1)}
    how = {"loss": pinball, "optimiser": lambda p: torch.optim.Adam(p, lr=0.01), **SMALL}
    found = compare(make_model, data, methods, **how)
    assert {"loss/train", "loss/test"} <= set(found.quantities)
    assert (found.values["R"]["R/loss"] > 0).all()


# ------------------------------------------------------------------------------------- optimisers


def test_an_optimiser_of_torch_is_that_of_the_laboratory():
    expected = compare(make_model, DATA, {"none": None}, optimiser=SGD(0.1, momentum=0.9), **SMALL)
    own = compare(
        make_model, DATA, {"none": None}, **SMALL,
        optimiser=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    )  # fmt: skip
    same(values(own), values(expected))


def test_a_scheduler_of_torch_is_a_schedule():
    steps = 2 * 3  # epochs × batches

    def scheduled(p):
        optimiser = torch.optim.SGD(p, lr=0.1, fused=True)
        return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

    one = compare(make_model, DATA, {"none": None}, optimiser=scheduled, **SMALL)
    two = compare(make_model, DATA, {"none": None}, optimiser=SGD(0.1), schedule="cosine", **SMALL)
    for quantity, value in values(one).items():
        np.testing.assert_allclose(value, values(two)[quantity], rtol=1e-4)
    how = {"optimiser": SGD(0.1), "schedule": lambda step, steps: 0.5, **SMALL}
    half = compare(make_model, DATA, {"none": None}, **how)
    other = compare(make_model, DATA, {"none": None}, optimiser=SGD(0.05), **SMALL)
    same(values(half), values(other))


def test_weight_decay_is_the_optimisers():
    expected = compare(make_model, DATA, {"none": None}, optimiser=SGD(0.1, weight_decay=0.01))
    for optimiser in (SGD(0.1), lambda p: torch.optim.SGD(p, lr=0.1, fused=True)):
        found = compare(make_model, DATA, {"none": weight_decay(0.01)}, optimiser=optimiser)
        same(values(found), values(expected))


def test_a_training_step_of_ones_own():
    def step(model, x, y, optimiser):
        loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss

    methods = {"none": None, "noise": dither.Additive(0.3)}
    expected = compare(make_model, DATA, methods, optimiser=SGD(0.1), **SMALL)
    found = compare(make_model, DATA, methods, step=step, optimiser=SGD(0.1), **SMALL)
    for method in methods:
        for quantity, value in values(found, method).items():
            np.testing.assert_allclose(value, values(expected, method)[quantity], rtol=1e-4)


# -------------------------------------------------------------------------------------- baselines


def gradient(run, x, y):
    """The gradient of a training's objective."""
    run.slopes(x, y)
    return torch.cat([p.grad.flatten() for p in run.model.parameters()])


def test_the_jacobian_penalty_is_the_squared_jacobian():
    run, x, y = training(jacobian(0.3)), X[:6], Y[:6]
    found = gradient(run, x, y)
    model = run.model
    jacobians = torch.func.vmap(torch.func.jacrev(model))(x)
    total = nn.functional.cross_entropy(model(x), y) + 0.3 * jacobians.square().sum() / 6
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, [*model.parameters()])])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_distance_has_no_value_and_unit_curvature():
    z = torch.randn(4, 3, dtype=torch.float64)
    assert not Distance().per_sample(z, None).any()
    columns = Distance().columns(z, None)
    root = torch.stack([columns.column(c) for c in range(columns.count)], 2)
    torch.testing.assert_close(root @ root.mT, torch.eye(3, dtype=z.dtype).expand(4, 3, 3))


@pytest.mark.parametrize("noise", [None, dither.Additive(0.5)])
def test_sam_takes_the_gradient_uphill_with_the_same_noise(noise):
    x, y, rho = X[:6], Y[:6], 0.3
    run = training(Method(noise, sam=rho))
    before = [p.detach().clone() for p in run.model.parameters()]
    found = gradient(run, x, y)
    torch.testing.assert_close([*run.model.parameters()], before, rtol=0, atol=0)
    plain = training(Method(noise))
    if noise is None:
        g = gradient(plain, x, y)
    else:
        with plain.noise.hold():
            g = gradient(plain, x, y)
            _shift(plain.model, g * (rho / g.norm()))
            expected = gradient(plain, x, y)
        torch.testing.assert_close(found, expected)
        return
    _shift(plain.model, g * (rho / g.norm()))
    torch.testing.assert_close(found, gradient(plain, x, y))


def _shift(model, by):
    with torch.no_grad():
        for p, d in zip(
            model.parameters(), by.split([p.numel() for p in model.parameters()]), strict=True
        ):
            p += d.view_as(p)


def test_sam_without_radius_is_no_sam():
    found = compare(make_model, DATA, {"none": None, "sam": sam(0.0)}, **SMALL)
    same(values(found), values(found, "sam"))


def test_label_smoothing_is_measured_by_the_comparisons_loss():
    run = training(label_smoothing(0.2))
    x, y = X[:6], Y[:6]
    each = run.objective(x, y)[1]
    expected = nn.functional.cross_entropy(run.model(x), y, label_smoothing=0.2)
    assert float(each.detach()) == pytest.approx(float(expected.detach()))
    found = compare(make_model, DATA, {"smooth": label_smoothing(0.2)}, seeds=1)
    model = found.models["smooth"][0]
    plain = nn.functional.cross_entropy(model(DATA[2]), DATA[3])
    assert found.values["smooth"]["loss/test"][0] == pytest.approx(float(plain.detach()), rel=1e-5)


def test_matched_methods_have_equal_shares():
    methods = {
        "none": None,
        "additive": dither.Additive(1.0),
        "weights": dither.Weight(1e-3),
        "times": {"2:in": dither.Multiplicative(1e-3)},
    }
    how = {"seeds": 1, "epochs": 120, "batch": 20, "optimiser": SGD(0.1)}
    alike = compare(make_model, DATA, methods, match=0.02, **how)
    apart = compare(make_model, DATA, methods, **how)

    def ratio(found):
        shares = [found.values[m]["R/loss"][0] for m in methods if m != "none"]
        return max(shares) / min(shares)

    assert ratio(alike) < ratio(apart) / 10
    sigma = {m: alike.values[m][SIGMA][0] for m in methods if m != "none"}
    assert all(s > 0 for s in sigma.values())
    assert apart.values["weights"][SIGMA][0] == pytest.approx(1e-3)
    assert "σ was 0" not in str(alike)


def test_what_is_matched_is_told():
    methods = {"none": None, "additive": dither.Additive(1.0), "weights": dither.Weight(1.0)}
    how = {"seeds": 2, "batch": 20, "optimiser": SGD(1e-6)}  # nothing is learnt
    short = compare(make_model, DATA, methods, match=1.0, epochs=1, **how)
    for m in ("additive", "weights"):
        assert (short.values[m][SIGMA] == 0).all()
        assert f"{m}: σ was 0 in 2 of 2 runs" in str(short)
    off = compare(make_model, DATA, {"none": None, "0": dither.Additive(0.0)}, seeds=2, epochs=1)
    assert "0: σ was 0 in 2 of 2 runs, so they are as without noise" in str(off)
    with pytest.raises(
        dither.DitherError, match="match gives all noises the same R, and no method has"
    ):
        compare(make_model, DATA, {"none": None, "decay": weight_decay(0.1)}, match=0.1)


def test_the_kept_epoch_has_its_own_sigma():
    """R of the kept weights is that of the σ with which they were trained."""
    how = {"seeds": 1, "epochs": 40, "batch": 20, "optimiser": SGD(0.1), "validation": 0.25}
    methods = {"none": None, "additive": dither.Additive(1.0)}
    seen = compare(make_model, DATA, methods, match=0.02, patience=3, **how)
    last = int(seen.values["additive"][LAST][0])
    whole = compare(make_model, DATA, methods, match=0.02, **{**how, "epochs": last})
    for quantity in (SIGMA, "R/loss, train"):
        kept, then = (found.values["additive"][quantity][0] for found in (seen, whole))
        assert kept == pytest.approx(then)


def test_code_is_the_users_own_wherever_packages_are_installed(tmp_path, monkeypatch):
    """A module of a user, which imports one of another environment, as with system packages."""
    theirs = tmp_path / "site-packages"
    theirs.mkdir()
    (theirs / "their_package.py").write_text("def f(): pass\n")
    (tmp_path / "own_module.py").write_text("import their_package\ndef make(): pass\n")
    for folder in (theirs, tmp_path):
        monkeypatch.syspath_prepend(folder)
    make = importlib.import_module("own_module").make
    assert _code(cloudpickle.dumps(make)) == {tmp_path / "own_module.py"}
