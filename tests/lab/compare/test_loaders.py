"""compare on loaders of one's own, real targets, and what a result tells of its training."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

import dither
from dither.lab.compare import compare
from dither.lab.compare.streams import Draws, moved, states

X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.randn(5, 3, generator=torch.Generator().manual_seed(1))).argmax(1)
DATA = (X[:40], Y[:40], X[40:], Y[40:])
SMALL = {"seeds": 2, "epochs": 2, "batch": 16}


def make_model():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def values(found):
    """All but the time of a step."""
    return {q: v for q, v in found.values["none"].items() if q != "ms/step"}


def same(one, two):
    assert one.keys() == two.keys()
    for quantity, value in one.items():
        np.testing.assert_array_equal(value, two[quantity], quantity)


def counted(rows):
    """A step of one's own that notes the size of each batch."""

    def step(model, x, y, optimiser):
        rows.append(len(x))
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
        return loss

    return step


def test_a_loader_keeps_its_batch_size():
    train, test = TensorDataset(*DATA[:2]), TensorDataset(*DATA[2:])
    held = values(compare(make_model, DATA, {"none": None}, **SMALL))
    loader = DataLoader(train, batch_size=16, shuffle=True)
    found = compare(make_model, (loader, test), {"none": None}, seeds=2, epochs=2)
    same(values(found), held)
    assert "batches of 16" in str(found)


def test_a_loader_that_drops_its_last_batch_has_none_that_is_smaller():
    """40 samples in batches of 16."""
    train, test = TensorDataset(*DATA[:2]), TensorDataset(*DATA[2:])
    order = RandomSampler(train, generator=torch.Generator().manual_seed(3))
    for how, sizes in (
        ({"batch_size": 16}, [16, 16, 8]),
        ({"batch_size": 16, "drop_last": True}, [16, 16]),
        ({"batch_sampler": BatchSampler(order, 16, drop_last=True)}, [16, 16]),
    ):
        rows: list[int] = []
        data = DataLoader(train, **how), test
        compare(make_model, data, {"none": None}, seeds=1, epochs=3, step=counted(rows))
        assert rows == [2, *sizes * 3]  # the first is the trial on two samples
    few = DataLoader(train, batch_size=50, drop_last=True)
    with pytest.raises(dither.DitherError, match=r"drop_last leaves no batch: .* 50 and 40"):
        compare(make_model, (few, test), {"none": None})


def test_a_sampler_of_ones_own_is_refused():
    train, test = TensorDataset(*DATA[:2]), TensorDataset(*DATA[2:])

    class Batches(Sampler):
        def __iter__(self):
            return iter([[0, 1], [2, 3]])

    for how in (
        {"sampler": WeightedRandomSampler(torch.ones(40), 32), "batch_size": 8},
        {"sampler": RandomSampler(train, replacement=True), "batch_size": 8},
        {"sampler": RandomSampler(train, num_samples=20), "batch_size": 8},
        {"batch_sampler": Batches()},
    ):
        with pytest.raises(dither.DitherError, match="loader has a sampler of its own"):
            compare(make_model, (DataLoader(train, **how), test), {"none": None})


class Augmented(TensorDataset):
    """Other values whenever it is read, whichever library draws them."""

    draw = staticmethod(lambda: torch.randn(5))

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + 0.1 * self.draw(), y


class ByNumpy(Augmented):
    draw = staticmethod(lambda: torch.from_numpy(np.random.standard_normal(5)).float())


class ByPython(Augmented):
    draw = staticmethod(lambda: torch.tensor([random.gauss(0, 1) for _ in range(5)]))


class ByOwnNumpy(Augmented):
    def __init__(self, *tensors):
        super().__init__(*tensors)
        own = np.random.default_rng(3)
        self.draw = lambda: torch.from_numpy(own.standard_normal(5)).float()


class ByOwnTorch(Augmented):
    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.own = {"one": [torch.Generator().manual_seed(3)]}
        self.draw = lambda: torch.randn(5, generator=self.own["one"][0])


class Rarely(TensorDataset):
    """Changes one sample in twenty."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return (-x if random.random() < 0.05 else x), y


KINDS = [Augmented, ByNumpy, ByPython, ByOwnNumpy, ByOwnTorch, Rarely]


@pytest.mark.parametrize("kind", KINDS)
def test_all_methods_get_the_same_batches_of_data_that_change(kind):
    """Whatever generators the loader and its samplers bring."""
    train, test = kind(*DATA[:2]), TensorDataset(*DATA[2:])
    own = torch.Generator().manual_seed(3)
    for how in (
        {"batch_size": 8, "shuffle": True, "generator": own},
        {"batch_sampler": BatchSampler(RandomSampler(train, generator=own), 8, drop_last=True)},
        {"sampler": WeightedRandomSampler(torch.ones(40), 32, generator=own), "batch_size": 8},
    ):
        loader = DataLoader(train, **how)
        methods = {"none": None, "zero": dither.Additive(0.0)}
        found = compare(make_model, (loader, test), methods, seeds=2, epochs=2)
        assert (found.difference("zero", "loss/test") == 0).all()
        assert "40 to train on" in str(found)
        assert not any(name.endswith("/train") for name in found.quantities)  # they change
        assert "batches of 8" in str(found)


def test_measures_of_real_targets_are_scikit_learns():
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    y = torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 2]], 1)
    data = x[:120], y[:120], x[120:], y[120:]
    found = compare(
        lambda: nn.Linear(5, 2), data, {"none": None}, seeds=1, epochs=3, batch=20,
        loss="half_square", measures=["r2", "mae"],
    )  # fmt: skip
    z = found.models["none"][0](data[2]).detach()
    assert found.values["none"]["R²"] == pytest.approx(metrics.r2_score(data[3], z), rel=1e-5)
    error = metrics.mean_absolute_error(data[3], z)
    assert found.values["none"]["mean absolute error"] == pytest.approx(error, rel=1e-5)
    with pytest.raises(dither.DitherError, match=r"r2 needs one real target for each output"):
        compare(
            lambda: nn.Linear(5, 1), data, {"none": None}, loss=lambda z, y: (z[:, 0] - y[:, 0])**2,
            measures="r2",
        )  # fmt: skip
    classes = (data[0], (y[:120, 0] > 0).long(), data[2], (y[120:, 0] > 0).long())
    with pytest.raises(dither.DitherError, match="mae needs real targets, and whole numbers are"):
        compare(lambda: nn.Linear(5, 2), classes, {"none": None}, measures="mae")


def test_the_result_tells_how_it_was_trained():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    data = x, x[:, :1], x, x[:, :1]
    settings = {"seeds": 1, "epochs": 2, "batch": 20, "loss": "half_square"}

    def mine(parameters):
        return torch.optim.Adam(parameters, 1e-3)

    def told(**changed):
        return str(compare(lambda: nn.Linear(5, 1), data, {"a": None}, **{**settings, **changed}))

    assert (
        "2 epochs, batches of 20, optimiser SGD(lr=0.05), constant rate, loss half_square"
    ) in told()
    assert (
        "1 epoch, all samples at once, optimiser mine(), cosine rate, loss MSELoss, patience 2"
    ) in told(
        epochs=1, batch=None, optimiser=mine, schedule="cosine", loss=nn.MSELoss(),
        validation=0.2, patience=2,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(x, x[:, :1]), batch_size=8, shuffle=True)
    found = compare(lambda: nn.Linear(5, 1), (loader, loader), {"a": None}, **settings)
    assert "batches of 8" in str(found)
    adam = partial(torch.optim.Adam, lr=1e-3)
    assert "optimiser Adam, of its own rate" not in told(optimiser=adam)
    assert "optimiser Adam, loss of its own" in told(
        optimiser=adam, loss=lambda z, y: (z - y).square().sum(1)
    )


def test_an_error_of_a_users_code_is_its_only_cause():
    with pytest.raises(dither.DitherError, match="a step on two samples fails with") as caught:
        compare(lambda: nn.Linear(4, 3), DATA, {"a": None})
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.__cause__.__cause__ is None


def test_a_measure_that_raises_and_an_empty_loader_are_named():
    def oops(model, x, y):
        raise ValueError("no such thing")

    with pytest.raises(
        dither.DitherError, match=r"measure 'oops' fails with ValueError: no such thing"
    ):
        compare(make_model, DATA, {"none": None}, measures=oops, seeds=1)
    x, y, *test = map(torch.as_tensor, DATA)
    for empty in (TensorDataset(x[:0], y[:0]), DataLoader(TensorDataset(x[:0], y[:0]), 4)):
        with pytest.raises(
            dither.DitherError, match="the training data are empty: give one sample or mo"
        ):
            compare(make_model, (empty, TensorDataset(*test)), {"none": None}, seeds=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["loader", "sampler", "none"])
def test_a_comparison_on_a_loader_whose_data_change_goes_on_where_it_was(tmp_path, where, kind):
    """Though the loader's generator has moved since."""
    own = torch.Generator().manual_seed(3)
    train, test = kind(*DATA[:2]), TensorDataset(*DATA[2:])
    how = {
        "loader": {"batch_size": 8, "shuffle": True, "generator": own},
        "sampler": {"batch_size": 8, "sampler": RandomSampler(train, generator=own)},
        "none": {"batch_size": 8, "shuffle": True},
    }[where]
    data, told = (DataLoader(train, **how), test), []
    once = {"seeds": 2, "epochs": 2, "out": tmp_path}
    one = compare(make_model, data, {"none": None}, **once)
    torch.rand(7, generator=own)
    two = compare(make_model, data, {"none": None}, **once, progress=lambda *run: told.append(run))
    assert not told
    same(values(one), values(two))


def test_what_data_draw_is_their_own():
    """Random states of torch, numpy and Python are after a comparison what they were before."""
    train, test = ByNumpy(*DATA[:2]), TensorDataset(*DATA[2:])
    states = lambda: (torch.get_rng_state(), np.random.get_state()[1], random.getstate())  # noqa: E731
    before = states()
    compare(make_model, (DataLoader(train, batch_size=8), test), {"none": None}, seeds=1, epochs=1)
    after = states()
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]


def test_draws_go_on_from_batch_to_batch():
    own = [np.random.default_rng(0), torch.Generator(), random.Random(0), np.random.RandomState(0)]

    def drawn():
        return (
            torch.rand(1).item(), np.random.rand(), random.random(), own[0].random(),
            torch.rand(1, generator=own[1]).item(), own[2].random(), own[3].rand(),
        )  # fmt: skip

    whole, parts = Draws(5, own), Draws(5, own)
    with whole():
        once = [drawn() for _ in range(3)]
    before = states(own)
    for expected in once:
        with parts():
            assert drawn() == expected
        assert not moved(before, states(own))
    assert len({value for row in once for value in row}) == 21
    with Draws(6, own)():
        assert not set(drawn()) & set(once[0])


def test_a_loader_that_mixes_what_it_collates_is_read_anew():
    train, test = TensorDataset(*DATA[:2]), TensorDataset(*DATA[2:])

    def mixed(samples):
        x, y = torch.utils.data.default_collate(samples)
        return x + 0.1 * torch.randn(x.shape), y

    loader = DataLoader(train, batch_size=8, shuffle=True, collate_fn=mixed)
    found = compare(make_model, (loader, test), {"a": None, "b": None}, seeds=2, epochs=2)
    assert (found.difference("b", "loss/test") == 0).all()
    assert not any(name.endswith("/train") for name in found.quantities)


def test_workers_that_draw_on_are_refused():
    data = DataLoader(Augmented(*DATA[:2]), batch_size=8, num_workers=1, persistent_workers=True)
    with pytest.raises(dither.DitherError, match="persistent_workers=False"):
        compare(make_model, (data, TensorDataset(*DATA[2:])), {"none": None})
