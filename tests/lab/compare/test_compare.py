"""compare: every method alike, from the same seeds, with differences taken seed by seed."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither
from dither.lab.compare import Method, compare, dropout


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(found.data, dtype=torch.float32)[order] / 16 - 0.3
    y = torch.tensor(found.target)[order]
    return x[:300], y[:300], x[300:700], y[300:700]


def make_model():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def measured(found, method):
    """All but the time of a step."""
    return {q: v for q, v in found.values[method].items() if q != "ms/step"}


def run(digits, methods, **settings):
    return compare(
        make_model, digits, methods, **{"seeds": 2, "epochs": 2, "batch": 32, **settings}
    )


def test_noise_of_no_size_is_no_noise(digits):
    found = run(digits, {"none": None, "zero": dither.Additive(0.0)})
    assert (found.difference("zero", "loss/test") == 0).all()
    assert (found.values["zero"]["R/loss"] == 0).all()


def test_a_comparison_repeats_itself_and_leaves_the_random_state(digits):
    state = torch.get_rng_state()
    methods = {"none": None, "gni": dither.Additive(0.3)}
    one, two = run(digits, methods), run(digits, methods)
    assert torch.equal(state, torch.get_rng_state())
    for method in methods:
        for quantity, values in measured(one, method).items():
            np.testing.assert_array_equal(values, two.values[method][quantity], quantity)
    assert (one.difference("gni", "loss/test") != 0).all()


def test_the_methods_are_what_they_say(digits):
    methods = {
        "none": None,
        "node": {"0": dither.Node(1.0)},
        "R": Method(dither.Additive(0.3), objective="explicit"),
        "cycle": Method(dither.Weight(0.1), draw="cycle"),
    }
    found = run(digits, methods, seeds=[4])
    assert found.seeds == (4,)
    losses = [values["loss/test"][0] for values in found.values.values()]
    assert len(set(losses)) == len(methods)


def test_a_divergence_is_shown_and_not_averaged(digits):
    found = run(digits, {"none": None, "node": {"0": dither.Node(1e5)}})
    assert found.values["node"]["diverged"].sum() == 2
    assert np.isnan(found.values["node"].get("loss/test", np.nan)).all()
    assert "2 of 2" in str(found)


def test_regression_has_no_accuracy(digits):
    x, _, x_test, _ = digits
    data = x, x[:, :2].sum(1, keepdim=True), x_test, x_test[:, :2].sum(1, keepdim=True)
    found = compare(
        lambda: nn.Linear(64, 1), data, {"none": None}, seeds=1, epochs=1, loss="half_square"
    )
    assert set(found.quantities) == {"loss/train", "loss/test", "ms/step"}


def with_part(i, part):
    """Data of two samples with one part replaced."""
    data = [torch.ones(2, 4), torch.ones(2), torch.ones(2, 4), torch.ones(2)]
    return (*data[:i], part, *data[i + 1 :])


MADE: list[nn.Module] = []


def other_weights():
    MADE.append(make_model())
    with torch.no_grad():
        MADE[-1][0].bias[0] = len(MADE)
    return MADE[-1]


ONE = nn.Linear(64, 10)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"methods": {}}, "at least one method"),
        ({"methods": {"a": 0.1}}, r"method 'a' must be None, a noise, .* got 0.1"),
        ({"data": (torch.ones(2), torch.ones(2))}, "of data sets or loaders of torch: got 2 parts"),
        ({"data": None}, "of data sets or loaders of torch: got NoneType"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": 1.5}, "whole number or a sequence of them: got 1.5"),
        ({"methods": [None]}, "methods is a mapping"),
        ({"epochs": 1.5}, "epochs is a whole number ≥ 1: got 1.5"),
        ({"optimiser": 0.1}, "the optimiser is a function of the parameters.* got 0.1"),
        ({"optimiser": lambda p: None}, "it gave NoneType"),
        ({"optimiser": torch.optim.SGD([torch.ones(1)])}, "is built anew for each run.*SGD"),
        ({"schedule": "cosin"}, "schedule is 'constant'.* got 'cosin'"),
        ({"seeds": [1, 1]}, "a seed occurs twice"),
        ({"batch": 0}, "batch is a whole number ≥ 1: got 0"),
        ({"jobs": 0}, "jobs is a whole number ≥ 1 .*got 0"),
        ({"validation": 1}, "validation is a share .* got 1"),
        ({"patience": 2}, "patience needs a validation part"),
        (
            {"match": -1},
            "match is R as a share of the loss, a number > 0 and ≤ 1, such as 0.1: got -1",
        ),
        (
            {"match": 10},
            "match is R as a share of the loss, a number > 0 and ≤ 1, such as 0.1: got 10",
        ),
        (
            {"step": lambda model, x, y, optimiser: None},
            "step gives the loss of its batch, .* NoneType",
        ),
        ({"make_model": nn.Linear(5, 3)}, "^make_model is a function .*: got Linear$"),
        (
            {"optimiser": torch.optim.SGD([torch.ones(1)], 0.1)},
            "^compare: method 'none': the optimiser is",
        ),
        ({"measures": ["acuracy"]}, "there is no 'acuracy'; there are loss, accuracy"),
        ({"measures": [3]}, "3 is neither a name"),
        ({"measures": {"m": lambda model, x, y: "a"}}, "'m' must give a number .* got 'a'"),
        ({"step": 3}, "step is a function"),
        ({"step": lambda *a: 1 / 0}, "a step on two samples fails with ZeroDivisionError"),
        ({"methods": {"none": Method(objective="noize")}}, "objective is 'noise'.* got 'noize'"),
        ({"methods": {"none": Method(objective="sampled")}}, "penalises a noise: give one"),
        ({"methods": {"none": dropout(0.1)}}, "the model has no dropout layer"),
        ({"methods": {3: None}}, "the name of a method is a string: got 3"),
        (
            {"make_model": lambda: nn.Linear(63, 10)},
            "a step on two samples fails with RuntimeError",
        ),
        ({"make_model": lambda: nn.Linear(64, 9)}, "classes up to 9, and the model has 9 outputs"),
        ({"make_model": lambda: 1 / 0}, r"make_model fails with ZeroDivisionError: .*\.py, line"),
        ({"make_model": lambda: ONE}, "gives the same module twice"),
        ({"make_model": other_weights}, "gives other weights at each call"),
        ({"methods": {"none": None, "a": {"nope": dither.Additive(0.1)}}}, "'nope' matches no"),
        ({"make_model": nn.Linear(4, 2)}, "a function that gives a new nn.Module"),
        ({"make_model": lambda: None}, "a function that gives a new nn.Module: got None"),
        (
            {"data": (torch.ones(0, 4), torch.ones(0), torch.ones(1, 4), torch.ones(1))},
            r"x_train has the shape \[0, 4\]",
        ),
        ({"data": (torch.full((2, 4), torch.nan), *[torch.ones(2)] * 3)}, "not finite in 2 of 2"),
        ({"data": with_part(1, torch.full((2,), torch.nan))}, "y_train is not finite in 2 of 2"),
        ({"data": with_part(3, torch.ones(3))}, "got 2 inputs and 3 targets to test on"),
        ({"data": with_part(3, torch.tensor([0, 1]))}, "y_train and y_test are of different kinds"),
        ({"data": with_part(0, torch.ones(2, 4, dtype=torch.complex64))}, "of real numbers: got"),
        ({"data": with_part(0, torch.ones(2, 4).to_sparse())}, r"got torch.float32 \(sparse\)"),
        ({"data": with_part(0, torch.ones(2, 4, device="meta"))}, r"\(meta\)"),
        ({"data": with_part(0, None)}, "x_train must be numbers: got NoneType"),
        ({"data": with_part(0, torch.tensor(1.0))}, r"x_train has the shape \[\]"),
        ({"data": with_part(1, np.array(["a", "b"]))}, "y_train must be numbers"),
    ],
)
def test_bad_input_is_told_before_training(digits, change, says):
    arguments = {"make_model": make_model, "data": digits, "methods": {"none": None}, **change}
    told = []
    with pytest.raises(dither.DitherError, match=says):
        compare(**arguments, progress=lambda *done: told.append(done))
    assert not told


def test_labels_of_any_whole_type_and_models_that_give_a_tuple(digits):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_model()

        def forward(self, x):
            return self.net(x), x.argmax(1)  # the one tensor of real numbers is the output

    x, y, x_test, y_test = digits
    as_given = run(digits, {"none": None}, seeds=1, epochs=1)
    other = (x, y.int(), x_test, y_test.byte())
    found = compare(Pair, other, {"none": None}, seeds=1, epochs=1, batch=32)
    for quantity, values in measured(as_given, "none").items():
        np.testing.assert_allclose(found.values["none"][quantity], values, rtol=1e-5)
