"""Camuto et al., Fig. 3 and its multiplicative sibling: the looks against dense oracles, the claims
against tables made by hand.
"""

import io

import numpy as np
import polars as pl
import pytest
import torch
from camuto import STEPS, made_up, path, verdict
from torch import nn
from torch.func import functional_call

import dither
from dither.lab.data import files, needs
from dither.lab.data.sets import Data
from dither.lab.figure import Silent
from dither.lab.nets.specs import MLP
from dither.lab.page.judge import judge
from dither.lab.table import Table
from dither.lab.training.loop import train
from dither.papers.camuto2020 import (
    colour,
    epochs,
    fig3,
    followed,
    multiplicative_training,
    paths,
)

NET = MLP((6, 5, 4, 3), activation="elu", bias=False, init="glorot")

# ---------------------------------------------------------------------------------------- looks


def data(n: int = 7):
    torch.manual_seed(0)
    return torch.randn(n, 6), torch.randint(3, (n,))


class State:
    """What the watches look at."""

    def __init__(self, model, seed=4):
        self.model, self.seed, self.batch = model, seed, data()
        self.run = type("Run", (), {"loss": "cross_entropy"})

    def examples(self, split, limit):
        assert split == "train"
        return tuple(t[:limit] for t in self.batch)


def dense(model, name: str, x, y) -> torch.Tensor:
    """tr ∇²_W of the mean loss, by autograd's Hessian."""
    parameters = dict(model.named_parameters())

    def f(w):
        return nn.functional.cross_entropy(functional_call(model, {**parameters, name: w}, (x,)), y)

    w = parameters[name].detach()
    return torch.autograd.functional.hessian(f, w).reshape(w.numel(), -1).trace()


def test_the_traces_are_the_hessians():
    model = NET.build(0)
    watch = paths.Traces(0.3, None, limit=7, probes=800)
    seen = watch(State(model))
    x, y = data()
    names = [name for name, _ in model.named_parameters()]
    plain = sum(dense(model, name, x, y) for name in names)
    # its own standard error: false once in a million
    assert abs(seen["trace"] - plain) < 5 * seen["trace sem"]
    assert seen["trace sem"] < 0.06 * plain
    rng = torch.Generator().manual_seed(4)
    layers = []
    for name, layer in model.named_children():
        if name.startswith("fc"):
            layers.append(paths.Shift(0.3 * torch.randn(7, layer.in_features, generator=rng)))
        layers.append(layer)
    noisy = nn.Sequential(*layers)
    theirs = sum(dense(noisy, name, x, y) / p.numel() for name, p in noisy.named_parameters())
    assert seen["authors' trace"] == pytest.approx(float(theirs), rel=0.1)
    assert abs(seen["authors' trace"] - float(plain)) > 0.1 * float(plain)


def test_a_draw_kept_is_the_noise():
    model, (x, _) = NET.build(1), data()
    once = paths.noisy(model, x, 0.5, seed=3)
    assert torch.equal(once(x), once(x))
    assert not torch.equal(once(x), model(x))
    assert torch.equal(paths.noisy(model, x, 0.0, seed=3)(x), model(x))
    assert [p.data_ptr() for p in once.parameters()] == [p.data_ptr() for p in model.parameters()]
    assert not [name for name, _ in model.named_modules() if "noise" in name]


def test_a_sketch_keeps_distances():
    rng = torch.Generator().manual_seed(0)
    pairs = torch.randn(200, 2, 5000, generator=rng)
    ratios = torch.tensor(
        [float((paths.sketch(a) - paths.sketch(b)).norm() / (a - b).norm()) for a, b in pairs]
    )
    # one sketch and 200 differences: the mean over them of the squared ratio is 1 ± .09 at most
    assert abs(float(ratios.square().mean()) - 1) < 5 * (2 / paths.BUCKETS) ** 0.5
    assert float(ratios.std()) < 2 * (0.5 / paths.BUCKETS) ** 0.5
    a = torch.randn(5000, generator=rng)
    torch.testing.assert_close(paths.sketch(3 * a), 3 * paths.sketch(a))
    assert float(paths.sketch(torch.eye(50)[7]).abs().sum()) == 1


def test_the_mean_path_is_where_the_draws_average_out():
    """a and b at 9 ± 5 in one direction each: the distance from 8 to their mean is 1."""
    places = {"R": 8.0, "a": 14.0, "b": 4.0}
    t = Table.of({m: path(0.5, 1.0, at) for m, at in places.items()})
    steps, square = paths.to_mean(t, "R", "a", "b")
    assert list(steps) == list(STEPS)
    np.testing.assert_allclose(square[:, -1], (8 - 14) * (8 - 4))
    rng = np.random.default_rng(0)
    a, b = 9 + 5 * rng.normal(size=(2, 40_000))
    # sd of a product √(1·50 + 625): the mean of 40 000 within 5 standard errors
    assert abs(((8 - a) * (8 - b)).mean() - 1) < 5 * (50 + 625) ** 0.5 / 200


def test_the_sketch_is_of_all_parameters():
    model = NET.build(0)
    seen = paths.Sketch(None)(State(model))
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert list(seen.values()) == pytest.approx(paths.sketch(theta).tolist())
    assert len(seen) == paths.BUCKETS


# ----------------------------------------------------------------------------------------- runs


def test_the_three_start_from_the_same_weights(monkeypatch):
    monkeypatch.setattr(needs, "found", lambda name: name == "fashion-mnist" or None)
    found = fig3.figure.at("smoke")
    assert len(found) == 4 * (3 + 3 + 2)
    quick = fig3.figure.at("quick")
    assert quick["Fashion-MNIST, standardised MLP, few images R"].steps == 720
    assert quick["Fashion-MNIST MLP R"].steps == 293
    assert quick["Fashion-MNIST MLP R"].data.standardise is False
    assert quick["Fashion-MNIST, standardised 2 × 32 R"].data.standardise is None
    assert "Fashion-MNIST, standardised CONV R" not in quick
    three = {m: found[f"Fashion-MNIST 2 × 32 {m}"] for m in (*fig3.METHODS, fig3.AGAIN)}
    assert three["R"].objective == "explicit"
    assert found["Fashion-MNIST CONV R"].objective == "sampled"
    assert three["baseline"].noise is None
    assert three["GNI"].noise == dither.Additive(0.1**0.5)
    if files.locate("fashion-mnist", "train-images-idx3-ubyte") is None:
        pytest.skip("Fashion-MNIST is not on this machine")
    t = Table.of({f"N 2 × 32 {m}": train(run, [0, 1], Silent()) for m, run in three.items()})
    for a, b in fig3.PAIRS:
        steps, d = paths.distance(t, f"N 2 × 32 {a}", f"N 2 × 32 {b}")
        assert list(steps) == [0, 2, 4]
        assert (d[:, 0] == 0).all()
        assert (d[:, 1:] > 0).all()
    again = paths.distance(t, "N 2 × 32 GNI", f"N 2 × 32 {fig3.AGAIN}")[1]
    assert (again[:, 1:] > 0).all()


def test_the_noise_is_on_the_input_and_every_hidden_activation():
    for net, sites in (("MLP", 5), ("2 × 32", 3), ("CONV", 3)):
        model = followed.model(net, "fashion-mnist", 8, (2, 3)).build(0)
        with dither.inject(model, dither.Additive(0.1)) as noise:
            assert len(noise.sites) == sites


def test_other_sets_are_run_where_they_are(monkeypatch):
    monkeypatch.setattr(needs, "found", lambda name: "here")
    found = fig3.figure.at("paper")
    assert len(found) == 4 * (3 * 6 + 2)
    conv = found["SVHN CONV baseline"]
    assert conv.model.image == (3, 32, 32)
    assert not conv.data.flat
    assert found["CIFAR-10, standardised MLP GNI"].model.widths == (3072, 512, 512, 512, 512, 10)
    for name, data in fig3.SETS.items():
        run = found[f"{name} CONV baseline"]
        passes = run.steps * run.batch / epochs.IMAGES[data]
        assert passes == pytest.approx(250, rel=1e-4)
        assert run.optimiser.lr == 1e-3


@pytest.mark.parametrize("module", [fig3, multiplicative_training])
@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_what_is_trained_is_long_enough_to_be_judged(module, scale, monkeypatch):
    monkeypatch.setattr(needs, "found", lambda name: "here")
    for label, run in module.figure.at(scale).items():
        every = next(watch.every for watch in run.watch)
        assert run.steps // every * every >= module.ENOUGH, label


@pytest.mark.parametrize("name", ["svhn", "cifar-10"])
def test_colour_images_are_trained_on_for_250_epochs(name):
    for size, rate in (("quick", 0.05), ("paper", 1e-3)):
        for run in colour.runs(name, size).values():
            assert run.optimiser.lr == rate
            time = 250 * epochs.IMAGES[name] / 512 * 1e-3
            assert run.steps * rate == pytest.approx(time, rel=1e-3)


def test_the_sizes_of_the_sets_are_the_files():
    for name, n in epochs.IMAGES.items():
        if needs.found(name):
            assert len(Data(name, test=1).load().y_train) == n


# --------------------------------------------------------------------------------------- claims


def camuto(steps=STEPS, **changed) -> Table:
    """(loss, trace, place) of each method."""
    methods = {"baseline": (0.4, 5.0, 0.0), "GNI": (0.6, 3.0, 9.0), "R": (0.55, 2.0, 8.0)}
    methods[fig3.AGAIN] = (0.6, 3.0, 9.0)
    found = made_up(methods | changed, (*fig3.NETS, fig3.SLOWER), "Fashion-MNIST ", steps)
    cases = (*fig3.NETS, *fig3.SCARCE)
    again = made_up(methods | changed, cases, "Fashion-MNIST, standardised ", steps)
    return Table(found.frame.vstack(again.frame))


@pytest.mark.parametrize(
    ("claim", "changed", "holds"),
    [
        ("C4 CONV", {}, True),
        ("C4 2 × 32", {"R": (0.45, 2.0, 8.0)}, False),
        ("C4 MLP, few images", {}, True),
        ("C4 MLP, few images", {"R": (0.3, 2.0, 8.0)}, False),
        ("C5", {}, True),
        ("C5", {"GNI": (0.6, 5.1, 9.0)}, False),
        ("C5, standardised", {"GNI": (0.6, 5.1, 9.0)}, False),
        ("C5 throughout", {}, True),
        ("C5 throughout", {"GNI": (0.6, 4.9, 9.0), fig3.AGAIN: (0.6, 4.9, 9.0)}, False),
        ("C5 theirs", {"R": (0.5, 5.1, 8.0)}, False),
        ("C6", {}, True),
        ("C4 MLP, mean", {"GNI": (0.8, 2.0, 8.0), fig3.AGAIN: (0.5, 2.0, 8.0)}, True),
        ("C4 MLP, mean", {"GNI": (0.8, 2.0, 8.0), fig3.AGAIN: (0.2, 2.0, 8.0)}, None),
        ("C4 MLP, mean", {"R": (0.3, 2.0, 8.0)}, False),
        ("C6, mean", {}, True),
        ("C6, mean", {"R": (0.5, 2.0, -1.0)}, False),
        ("C6, mean", {"GNI": (0.5, 2.0, 12.0), fig3.AGAIN: (0.5, 2.0, 4.0)}, True),
        ("C6, mean", {"GNI": (0.5, 2.0, 99.0), fig3.AGAIN: (0.5, 2.0, -89.0)}, None),
        ("C6", {"GNI": (0.5, 2.0, 99.0), fig3.AGAIN: (0.5, 2.0, -89.0)}, False),
        ("C6", {"R": (0.5, 2.0, 1.0)}, False),
        ("C6", {"R": (0.5, 2.0, -9.0), "GNI": (0.5, 2.0, 1.0)}, False),
    ],
)
def test_the_claims_can_hold_and_fail(claim, changed, holds):
    found, numbers = verdict(fig3.figure, claim, camuto(**changed))
    assert found is holds
    assert numbers


def test_only_the_time_before_the_fit_counts():
    """R leaves GNI for the baseline after the baseline has fitted its images."""
    frame = camuto().frame
    late = (pl.col("step") == STEPS[-1]) & pl.col("run").str.ends_with(" R")
    late &= pl.col("quantity") == "loss/test"
    frame = frame.with_columns(value=pl.when(late).then(0.1).otherwise(pl.col("value")))
    assert verdict(fig3.figure, "C4 MLP, few images", Table(frame))[0] is False
    fitted = (pl.col("step") >= STEPS[1]) & (pl.col("quantity") == "accuracy/train")
    frame = frame.with_columns(value=pl.when(fitted).then(1.0).otherwise(pl.col("value")))
    assert verdict(fig3.figure, "C4 MLP, few images", Table(frame))[0] is True


@pytest.mark.usefixtures("no_files")
def test_short_runs_are_not_judged():
    short = camuto(steps=(0, 5, 10))
    for claim in fig3.figure.claims:
        if claim.id.endswith(followed.HOUSES):
            continue
        holds, numbers = claim.check(short)
        assert holds is None
        elsewhere = any(name in claim.id for name in fig3.SETS if name != fig3.ALWAYS)
        assert ("data absent" if elsewhere else "fewer than") in numbers["why"]


def test_the_papers_own_sets_are_judged_where_they_were_run():
    methods = {"baseline": (0.4, 5.0, 0.0), "GNI": (0.6, 3.0, 9.0), "R": (0.55, 2.0, 8.0)}
    methods[fig3.AGAIN] = (0.6, 3.0, 9.0)
    for R, wanted in ((methods["R"], True), ((0.3, 6.0, 0.1), False)):
        t = made_up(methods | {"R": R}, fig3.NETS, "SVHN ")
        of_svhn = [claim for claim in fig3.figure.claims if claim.id.endswith("SVHN")]
        assert len(of_svhn) == 7
        assert [claim.check(t)[0] for claim in of_svhn] == [wanted] * 7
        assert verdict(fig3.figure, "C5, CIFAR-10", t)[0] is None


def test_boston_is_judged_where_it_was_run():
    methods = {"baseline": (0.05, 5.0, 0.0), "GNI": (0.14, 3.0, 9.0), "R": (0.12, 2.0, 8.0)}
    methods[fig3.AGAIN] = (0.14, 3.0, 9.0)
    of_houses = [c for c in fig3.figure.claims if c.id.endswith(followed.HOUSES)]
    for changed, wanted in (
        ({}, True),
        ({"R": (0.06, 6.0, 0.1)}, False),
        ({"baseline": (0.3, 5.0, 0.0)}, None),  # not learnt
    ):
        t = made_up(methods | changed, followed.NETS[1:], "Boston ")
        assert [c.check(t)[0] for c in of_houses] == [wanted] * 6
    elsewhere = camuto()
    for claim in of_houses:
        assert claim.check(elsewhere)[1]["why"] == "this scale does not train on Boston"


def test_networks_that_have_not_learnt_are_not_compared():
    lost = pl.col("run").str.ends_with("GNI") & (pl.col("quantity") == "accuracy/test")
    frame = camuto().frame.with_columns(value=pl.when(lost).then(0.1).otherwise(pl.col("value")))
    for claim in ("C4 MLP", "C5", "C5 throughout", "C6", "C6, mean"):
        holds, numbers = verdict(fig3.figure, claim, Table(frame))
        assert holds is None
        assert "GNI (test accuracy 0.1)" in numbers["why"]


def test_pictures_and_numbers(monkeypatch):
    monkeypatch.setattr(needs, "found", lambda name: None)
    t = camuto()
    picture = fig3.plot(t)
    picture.savefig(io.BytesIO(), format="png")
    assert "SVHN: not run, its files are not here" in picture.get_supxlabel()
    for claim in fig3.figure.claims:
        entry, trace = judge(claim, t, "quick")
        assert not trace, trace
        elsewhere = any(name in claim.id for name in ("SVHN", "CIFAR-10", followed.HOUSES))
        assert entry["holds"] is (None if elsewhere else True)


def test_a_difference_within_its_interval_is_not_judged():
    """Four seeds with a lower trace, one with a higher by as much as they have together."""
    frame = camuto().frame
    one = (pl.col("seed") == 2) & (pl.col("quantity") == "trace")
    one &= pl.col("run").str.ends_with("2 × 32 GNI") & (pl.col("step") == STEPS[-1])
    for value, wanted in ((3.1, True), (12.0, None)):
        t = Table(frame.with_columns(value=pl.when(one).then(value).otherwise(pl.col("value"))))
        holds, numbers = verdict(fig3.figure, "C5", t)
        assert holds is wanted
        assert wanted or "does not settle" in numbers["why"]


def test_a_run_that_failed_takes_no_other_set_with_it():
    t = made_up({"baseline": (0.4, 5.0, 0.0), "GNI": (0.6, 3.0, 9.0), "R": (0.55, 2.0, 8.0),
                 fig3.AGAIN: (0.6, 3.0, 9.0)}, fig3.NETS, "SVHN ")  # fmt: skip
    lacking = Table(t.frame, {"Fashion-MNIST MLP R": "it failed"})
    found = {claim.id: judge(claim, lacking, "quick")[0] for claim in fig3.figure.claims}
    assert found["C6, SVHN"]["holds"] is True
    assert found["C4 MLP"]["holds"] is None


def test_paths_are_compared_halfway_too():
    """R is with GNI at the end, and was with the baseline halfway."""
    frame = camuto().frame
    half = (pl.col("step") == STEPS[1]) & (pl.col("quantity") == "θ/0")
    half &= pl.col("run").str.ends_with("2 × 32 R")
    t = Table(frame.with_columns(value=pl.when(half).then(0.5).otherwise(pl.col("value"))))
    assert verdict(fig3.figure, "C6", camuto())[0] is True
    assert verdict(fig3.figure, "C6", t)[0] is False


def test_the_slower_mlp_is_judged_by_its_own_runs():
    """It falls on the baseline at one rate and on noise at the other; without runs it is not
    judged.
    """
    near = {"baseline": (0.4, 5.0, 0.0), "GNI": (0.6, 3.0, 9.0), "R": (0.55, 2.0, 8.0)}
    near[fig3.AGAIN] = near["GNI"]
    far = near | {"R": (0.45, 2.0, 8.0)}
    claim = f"C4 {fig3.SLOWER}"
    for at, slower in ((near, far), (far, near)):
        alone = made_up(at, fig3.NETS, "Fashion-MNIST ")
        both = Table(alone.frame.vstack(made_up(slower, [fig3.SLOWER], "Fashion-MNIST ").frame))
        assert verdict(fig3.figure, "C4 MLP", both)[0] is (at is near)
        assert verdict(fig3.figure, claim, both)[0] is (slower is near)
        assert verdict(fig3.figure, claim, alone)[0] is None
    label = f"Fashion-MNIST {fig3.SLOWER} R"
    lacking = Table(both.frame.filter(pl.col("run") != label), {label: "it failed"})
    of_it = next(c for c in fig3.figure.claims if c.id == claim)
    assert judge(of_it, lacking, "decisive")[0]["holds"] is None
    assert len(fig3.plot(lacking).axes) == len(fig3.plot(alone).axes) < len(fig3.plot(both).axes)


def test_the_slower_mlp_is_trained_as_far(monkeypatch):
    monkeypatch.setattr(needs, "found", lambda name: "here")
    runs = fig3.figure.at("decisive")
    for method in (*fig3.METHODS, fig3.AGAIN):
        fast, slower = (runs[f"Fashion-MNIST {case} {method}"] for case in ("MLP", fig3.SLOWER))
        assert slower.optimiser.lr == 0.01 < fast.optimiser.lr
        assert slower.steps * 0.01 == pytest.approx(fast.steps * fast.optimiser.lr, rel=1e-3)
        assert (slower.model, slower.data, slower.noise) == (fast.model, fast.data, fast.noise)
