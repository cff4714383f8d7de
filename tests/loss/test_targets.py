"""What a loss and its targets may be, and what a callable loss may not give."""

import functools

import numpy as np
import pytest
import torch
from nets import plain
from torch import nn

import dither
from dither.loss import get
from dither.noise import Additive

Y = torch.tensor([0, 2, 1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.bool])
def test_class_numbers_of_any_integer_type(dtype):
    z, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(2, (6,))
    each = get("cross_entropy")
    assert torch.equal(each.per_sample(z, y.to(dtype)), each.per_sample(z, y))
    for (_, a), (_, b) in zip(each.columns(z, y.to(dtype)), each.columns(z, y), strict=True):
        assert torch.equal(a, b)


def test_a_mean_over_samples_may_have_targets_of_any_kind():
    z, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    weight = torch.rand(6, dtype=torch.float64)
    right = weight * (z - y).square().sum(1)

    def weighted(z, y):
        return (y["weights"][0] * (z - y["at"]).square().sum(1)).mean()

    targets = {"weights": [weight], "at": y}
    torch.testing.assert_close(get(weighted).per_sample(z, targets), right)
    norm = get(lambda z, y: z.square().sum(1).mean())
    torch.testing.assert_close(norm.per_sample(z, None), z.square().sum(1))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda z, y: float(z.sum()), "got float"),
        (lambda z, y: (z.square().sum(1), 0), "got tuple"),
    ],
)
def test_a_loss_that_gives_no_tensor_is_told(loss, said):
    z = torch.randn(6, 3)
    with pytest.raises(dither.DitherError, match=said):
        get(loss).per_sample(z, z)


def test_a_loss_of_detached_outputs_is_told():
    z = torch.randn(6, 3)
    with pytest.raises(dither.DitherError, match="no gradient by the model's outputs"):
        get(lambda z, y: z.detach().square().sum(1)).columns(z, z)


class Gives(nn.Module):
    """A linear layer's output, changed by a function."""

    def __init__(self, out):
        super().__init__()
        self.fc, self.out = nn.Linear(4, 3), out

    def forward(self, x):
        return self.out(self.fc(x))


def of(out, y=Y, loss="cross_entropy"):
    """`explicit` of a model with that output."""
    return dither.explicit(dither.inject(Gives(out), Additive(0.1)), torch.randn(3, 4), y, loss)


def given(y=Y, loss="cross_entropy"):
    """`explicit` with these targets and that loss, for three outputs."""
    return of(lambda z: z, y, loss)


def one(y, loss="cross_entropy"):
    """`explicit` of a model with one output."""
    return of(lambda z: z[:, :1], y, loss)


BAD = {
    "name": (lambda: given(loss="crossentropy"), "'crossentropy': it is one of 'cross_entropy'"),
    "number": (lambda: given(loss=3), "a loss is a name .* a callable: got 3"),
    "class": (lambda: given(loss=nn.CrossEntropyLoss), "a loss is a name .*CrossEntropyLoss.*call"),
    "sum": (lambda: given(loss=nn.CrossEntropyLoss(reduction="sum")), "mean over its samples: got"),
    "above": (lambda: given(torch.tensor([0, 3, 1])), "0 … 2.*got 3; the model has 3 outputs"),
    "below": (lambda: given(torch.tensor([0, -1, 1])), "0 … 2.*ignore_index = -100: got -1"),
    "shape": (lambda: given(torch.tensor([0, 1])), r"targets \(2,\) .*outputs \(3, 3\)"),
    "probabilities": (lambda: given(torch.rand(3, 4)), r"probabilities .*got y \(3, 4\)"),
    "no probabilities": (
        lambda: given(torch.randn(3, 3)),
        "sum to 1 over the classes; for numbers",
    ),
    "list": (lambda: given(Y.tolist()), r"got list; torch.as_tensor\(y\)"),
    "half_square": (
        lambda: given(torch.rand(3, 2), "half_square"),
        r"half_square .*got y \(3, 2\)",
    ),
    "half_square transposed": (
        lambda: of(lambda z: z[:, :2], torch.rand(2, 3), "half_square"),
        "half_square needs y in the output's shape",
    ),
    "logistic labels": (
        lambda: of(lambda z: z[:, 0], Y, "logistic"),
        r"labels in \{−1, \+1\} or \{0, 1\}: got others",
    ),
    "logistic shape": (
        lambda: given(Y % 2, "logistic"),
        r"logistic .*got y \(3,\) and z \(3, 3\)",
    ),
    "one output": (lambda: of(lambda z: z[:, 0]), r"\[B, C\].*got \(3,\).*'logistic'"),
    "one output of a row": (lambda: one(0 * Y), r"\(3, 1\).*'logistic'"),
    "numbers for one output": (lambda: one(torch.randn(3, 1)), "'half_square'"),
    "ambiguous": (
        lambda: of(lambda z: z.unsqueeze(1).expand(-1, 3, -1), Y.expand(3, 3)),
        "can be read with the classes last or second",
    ),
    "callable's shape": (
        lambda: given(loss=lambda z, y: z),
        r"one number per sample \[B\] .*got \(3, 3\) for B = 3",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_loss_that_does_not_fit_is_a_sentence(name):
    call, sentence = BAD[name]
    with pytest.raises(dither.DitherError, match=sentence):
        call()


def test_what_only_looks_wrong_is_taken():
    x, y = torch.randn(8, 4), torch.arange(8) % 3

    def weighted(z, y):
        return nn.functional.cross_entropy(z, y[0], reduction="none") * y[1]

    with dither.inject(plain(), Additive(0.1), seed=0) as n, torch.no_grad():
        assert dither.explicit(n, x, (y, torch.ones(8)), weighted).R > 0
        assert dither.explicit(n, x, None, lambda z, y: z.square().sum(-1)).R > 0
        assert dither.expected(n, x, y, draws=np.int64(4), seed=0).sem > 0
        p = torch.randn(8, 3).softmax(-1)
        once, twice = (dither.explicit(n, x, k * p).R for k in (1, 2))
        torch.testing.assert_close(twice, 2 * once)
    dither.inject(plain(), dither.Node(1.0), batch_dim=np.int64(0)).remove()


def test_targets_of_bce_are_its_own_and_not_those_of_logistic():
    """-1 is no name of 0 there."""
    z, y = torch.randn(6, 1), torch.tensor([[-1.0], [1], [1], [-1], [1], [1]])
    with pytest.raises(dither.DitherError, match=r"BCEWithLogitsLoss needs targets in \[0, 1\]"):
        get(nn.BCEWithLogitsLoss()).per_sample(z, y)
    each = get(nn.BCEWithLogitsLoss()).per_sample(z, (y + 1) / 2)
    torch.testing.assert_close(each, get("logistic").per_sample(z, y))


@pytest.mark.parametrize(
    ("loss", "takes"),
    [
        (nn.TripletMarginLoss(), r"TripletMarginLoss takes \(anchor, positive, negative\)"),
        (nn.GaussianNLLLoss(), r"GaussianNLLLoss takes \(input, target, var\)"),
        (nn.CTCLoss(), r"CTCLoss takes \(log_probs, targets, input_lengths"),
        (lambda z: z.sum(), r"<lambda> takes \(z\)"),
    ],
)
def test_a_loss_of_other_arguments_is_told_what_it_takes(loss, takes):
    with pytest.raises(dither.DitherError, match=r"called as loss\(z, y\).*" + takes):
        get(loss)


@pytest.mark.parametrize("loss", [nn.functional.mse_loss, nn.SmoothL1Loss(), torch.dist])
def test_losses_of_torch_that_take_two_are_losses(loss):
    assert hasattr(get(loss), "per_sample")


def weighted(z, y, w):
    return (z - y).square().sum(1) * w


@functools.wraps(weighted)
def wrapped(z, y):
    return weighted(z, y, 1.0)


class Called(nn.Module):
    """Called in a way of its own."""

    def forward(self, z):
        return z

    def __call__(self, z, y):
        return weighted(z, y, 1.0)


@pytest.mark.parametrize(
    "loss",
    [wrapped, Called(), functools.partial(weighted, w=1.0), torch.vmap(lambda z, y: z @ y)],
)
def test_what_can_be_called_with_two_is_not_refused(loss):
    assert hasattr(get(loss), "per_sample")


@pytest.mark.parametrize(
    "data", [(torch.randn(500, 4), torch.zeros(500)), [(1, 2)], np.zeros((90, 9))]
)
def test_data_in_place_of_a_loss_are_not_printed(data):
    with pytest.raises(
        dither.DitherError, match=r"got (tuple|list|ndarray); .*\(model, loss, data\)"
    ) as e:
        get(data)
    assert len(str(e.value)) < 200
