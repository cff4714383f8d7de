"""compare: every method alike, from the same seeds, with differences taken seed by seed."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from typer.testing import CliRunner

import dither
from dither.lab.cli import app
from dither.lab.compare import Comparison, Method, compare


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(found.data, dtype=torch.float32)[order] / 16 - 0.3
    y = torch.tensor(found.target)[order]
    return x[:300], y[:300], x[300:700], y[300:700]


def make_model():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


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
        for quantity, values in one.values[method].items():
            np.testing.assert_array_equal(values, two.values[method][quantity])
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
    assert set(found.values["none"]) == {"loss/train", "loss/test"}


def test_differences_are_paired():
    one, two = np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.5, 3.5])
    found = Comparison({"a": {"q": one}, "b": {"q": two}}, (0, 1, 2))
    assert found.difference("b", "q") == pytest.approx([0.5] * 3)
    assert "+0.500 ± 0.000" in str(found)


def test_calibration_is_that_of_a_loop(digits):
    from types import SimpleNamespace

    from dither.lab.compare import Calibration

    generator = torch.Generator().manual_seed(1)
    z, y = torch.randn(500, 3, generator=generator) * 2, torch.randint(3, (500,))
    state = SimpleNamespace(outputs=lambda split: (z[None], y[None]))
    p = z.softmax(-1)
    confidence, answer = p.max(1)
    error = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            right = (answer == y)[inside].double().mean()
            error += inside.double().mean() * abs(right - confidence[inside].double().mean())
    assert Calibration()(state)["calibration error"] == pytest.approx(float(error), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"methods": {}}, "at least one method"),
        ({"methods": {"a": 0.1}}, r"method 'a' must be None, a noise, .* got 0.1"),
        ({"data": (torch.ones(2), torch.ones(2))}, "four tensors"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": 1.5}, "whole number or a sequence of them: got 1.5"),
        ({"methods": [None]}, "methods is a mapping"),
        ({"epochs": 1.5}, "epochs is a whole number ≥ 1: got 1.5"),
        ({"optimiser": torch.optim.SGD}, "the optimiser is one of dither.lab, .*SGD"),
        ({"methods": {"none": None, "a": {"nope": dither.Additive(0.1)}}}, "'nope' matches no"),
        ({"make_model": nn.Linear(4, 2)}, "a function that gives a new nn.Module"),
        ({"make_model": lambda: None}, "a function that gives a new nn.Module: got None"),
        ({"data": (torch.ones(0, 4), torch.ones(0), torch.ones(1, 4), torch.ones(1))}, "0 inputs"),
        ({"data": (torch.full((2, 4), torch.nan), *[torch.ones(2)] * 3)}, "not finite"),
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
            return self.net(x), x

    x, y, x_test, y_test = digits
    as_given = run(digits, {"none": None}, seeds=1, epochs=1)
    other = (x, y.int(), x_test, y_test.byte())
    found = compare(Pair, other, {"none": None}, seeds=1, epochs=1, batch=32)
    for quantity, values in as_given.values["none"].items():
        np.testing.assert_allclose(found.values["none"][quantity], values, rtol=1e-5)


FILE = """
import torch, dither
from torch import nn
def make_model(): return nn.Linear(4, 2)
x, y = torch.randn(20, 4), torch.randint(2, (20,))
data = x, y, x, y
methods = {"none": None, "gni": dither.Additive(0.1)}
settings = {"seeds": 1, "epochs": 1}
"""


def test_the_command(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    result = CliRunner().invoke(app, ["compare", str(file)])
    assert result.exit_code == 0, result.output
    assert "[2/2] gni · seed 0" in result.stdout
    assert "accuracy/test" in result.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "does not define make_model and data and methods"),
        ("x = 1\ny = 1/0", "line 2: ZeroDivisionError"),
        ("x =", "line 1: SyntaxError"),
        (FILE + "settings['sedes'] = 2", "settings don't fit"),
        (FILE + "methods['none'] = 3", "method 'none' must be None"),
    ],
)
def test_the_command_tells_what_is_wrong_with_a_file(tmp_path, text, says):
    file = tmp_path / "mine.py"
    file.write_text(text)
    result = CliRunner().invoke(app, ["compare", str(file)])
    assert result.exit_code == 1
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
