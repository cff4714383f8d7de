"""sweep: a metric against σ, under noise or after training with it."""

import numpy as np
import pytest
import torch
from torch import nn

import dither
from dither.lab import SGD

torch.manual_seed(0)
X = torch.randn(60, 5)
Y = (X @ torch.randn(5, 3)).argmax(1)


def make_model():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def test_a_linear_model_under_noise_on_its_input():
    """½‖W(x + σε) − y‖² has the mean ½σ²‖W‖² above that without noise."""
    model = nn.Linear(5, 3).double()
    x, y = X.double(), torch.randn(60, 3).double()
    torch.set_default_dtype(torch.float64)
    try:
        found = dither.sweep(
            model, {"input": dither.Additive(1.0)}, [0, 0.5, 1.0], (x, y),
            metric="loss", loss="half_square", draws=200,
        )  # fmt: skip
    finally:
        torch.set_default_dtype(torch.float32)
    square = float(model.weight.detach().square().sum())
    for sigma, row in zip(found.sigmas, found.values, strict=True):
        expected = found.baseline + sigma**2 / 2 * square
        sem = row.std(ddof=1) / np.sqrt(len(row))
        assert abs(row.mean() - expected) <= 4.5 * sem + 1e-12  # 1 of 150 000


def test_the_model_and_the_random_state_stay_as_they_were():
    model, state = make_model().train(), torch.get_rng_state()
    clean = model(X)
    found = dither.sweep(model, dither.Weight(0.1), [0.0, 0.1], (X, Y), draws=3)
    assert torch.equal(model(X), clean)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model._forward_hooks
    assert (found.values[0] == found.baseline).all()


def test_draws_are_the_same_at_every_sigma_and_differ_among_themselves():
    def first(model, x, y):
        return model(x)[0, 0]

    found = dither.sweep(nn.Linear(5, 3), {"input": dither.Additive(1.0)}, [1, 2], (X, Y),
                         metric=first, draws=4)  # fmt: skip
    gaps = found.values - found.baseline
    np.testing.assert_allclose(gaps[1], 2 * gaps[0], rtol=1e-4, atol=1e-6)
    assert len(set(found.values[0])) == 4


def test_one_draw_of_the_weights_holds_for_all_forwards_of_a_metric():
    def difference(model, x, y):
        return (model(x) - model(x)).abs().max()

    found = dither.sweep(make_model(), dither.Weight(0.5), [1.0], (X, Y), metric=difference)
    assert not found.values.any()


def test_a_sweep_with_training_is_a_comparison():
    how = {"seeds": 2, "epochs": 2, "batch": 16, "optimiser": SGD(0.1)}
    data = X[:40], Y[:40], X[40:], Y[40:]
    found = dither.sweep(make_model, dither.Additive(9.0), [0.3, 0.1], data, metric="loss", **how)
    methods = {"none": None, "a": dither.Additive(0.1), "b": dither.Additive(0.3)}
    expected = dither.compare(make_model, data, methods, measures="loss", **how)
    assert found.sigmas == (0.1, 0.3)
    for row, method in zip(found.values, ("a", "b"), strict=True):
        np.testing.assert_array_equal(row, expected.values[method]["loss/test"])
    assert found.baseline == expected.values["none"]["loss/test"].mean()
    assert "2 seeds" in str(found)


def test_without_a_metric_real_targets_have_their_loss():
    model, y = nn.Linear(5, 1), torch.randn(60, 1)
    at = [0, 0.5]
    found = dither.sweep(model, dither.Additive(1.0), at, (X, y), loss="half_square", draws=3)
    assert found.metric == "loss"
    assert found.baseline == pytest.approx((model(X) - y).square().mean().item() / 2, rel=1e-5)
    assert (
        dither.sweep(make_model(), dither.Additive(1.0), at, (X, Y), draws=3).metric == "accuracy"
    )
    with pytest.raises(dither.DitherError, match="accuracy needs class numbers"):
        dither.sweep(model, dither.Additive(1.0), at, (X, y), metric="accuracy")
    how = {"loss": "half_square", "seeds": 2, "epochs": 1}
    trained = dither.sweep(lambda: nn.Linear(5, 1), dither.Additive(1.0), at, (X, y, X, y), **how)
    assert trained.metric == "loss/test"


def test_what_it_shows():
    found = dither.sweep(make_model(), dither.Additive(1.0), [0.5, 1.0], (X, Y), draws=3)
    assert found.to_frame().shape == (6, 3)
    assert str(found).count("\n") == 3
    assert found._repr_html_().count("<tr>") == 3
    ax = found.plot().axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("σ", "accuracy")
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sigmas": []}, r"numbers ≥ 0, one or more: got \[\]"),
        ({"sigmas": [-1]}, r"got \[-1\]"),
        ({"sigmas": ["a"]}, "numbers ≥ 0"),
        ({"sigmas": 1.0}, "numbers ≥ 0"),
        ({"sigmas": [1, 1]}, "occurs twice"),
        ({"noise": 0.1}, "needs a noise, .* got 0.1"),
        ({"metric": "acc"}, "metric is 'accuracy', 'loss' or a function .* got 'acc'"),
        ({"draws": 0}, "draws is a whole number ≥ 1: got 0"),
        ({"data": X}, r"the data of a trained model are \(x, y\)"),
        ({"epochs": 3}, "epochs is for training"),
    ],
)
def test_bad_input_is_one_sentence(change, says):
    arguments = {"noise": dither.Additive(0.1), "sigmas": [0.1], "data": (X, Y), **change}
    model = make_model()
    with pytest.raises(dither.DitherError, match=says):
        dither.sweep(model, **arguments)
    assert not model._forward_hooks
