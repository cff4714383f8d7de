"""Losses per sample are torch's, and their columns are a root of the Hessian."""

import pytest
import torch
import torch.nn.functional as F
from oracles import close, gradients, half, hessian, regulariser
from torch import nn

import dither
from dither.loss import AnyLoss, CrossEntropy, HalfSquare, Logistic, get

B, C = 4, 3
OMEGA = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
Y = torch.tensor([2, 0, 1, 2])
SEQUENCE = torch.tensor([[0, 2], [1, 1], [2, 0], [0, 1]])
SOME = torch.tensor([[0, -100], [1, 1], [-100, -100], [0, 1]])


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def soft(*shape):
    return randn(*shape).softmax(-1)


def signed(z, y):
    return F.softplus(-y * z).mean()


CASES = {
    "cross-entropy": (CrossEntropy(), nn.CrossEntropyLoss(), (B, C), lambda: Y),
    "smoothed": (CrossEntropy(0.1), nn.CrossEntropyLoss(label_smoothing=0.1), (B, C), lambda: Y),
    "weighted": (CrossEntropy(weight=OMEGA), nn.CrossEntropyLoss(OMEGA), (B, C), lambda: Y),
    "smoothed, weighted": (
        CrossEntropy(0.2, OMEGA),
        nn.CrossEntropyLoss(OMEGA, label_smoothing=0.2),
        (B, C),
        lambda: Y,
    ),
    "some ignored": (
        CrossEntropy(),
        nn.CrossEntropyLoss(),
        (B, C),
        lambda: torch.tensor([2, -100, 1, -100]),
    ),
    "ignored number above the classes": (
        CrossEntropy(ignore_index=255),
        nn.CrossEntropyLoss(ignore_index=255),
        (B, C),
        lambda: torch.tensor([2, 255, 1, 255]),
    ),
    "an ignored class": (
        CrossEntropy(0.1, OMEGA, 1),
        nn.CrossEntropyLoss(OMEGA, ignore_index=1, label_smoothing=0.1),
        (B, C),
        lambda: Y,
    ),
    "probabilities": (CrossEntropy(), nn.CrossEntropyLoss(), (B, C), lambda: soft(B, C)),
    "probabilities, smoothed, weighted": (
        CrossEntropy(0.1, OMEGA),
        nn.CrossEntropyLoss(OMEGA, label_smoothing=0.1),
        (B, C),
        lambda: soft(B, C),
    ),
    "torch's sequence": (CrossEntropy(), nn.CrossEntropyLoss(), (B, C, 2), lambda: SEQUENCE),
    "torch's sequence, weighted": (
        CrossEntropy(0.1, OMEGA),
        nn.CrossEntropyLoss(OMEGA, label_smoothing=0.1),
        (B, C, 2),
        lambda: SEQUENCE,
    ),
    "torch's sequence, some ignored": (
        CrossEntropy(weight=OMEGA),
        nn.CrossEntropyLoss(OMEGA),
        (B, C, 2),
        lambda: SOME,
    ),
    "torch's images": (
        CrossEntropy(),
        nn.CrossEntropyLoss(),
        (B, C, 2, 1),
        lambda: SEQUENCE.unsqueeze(2),
    ),
    "torch's sequence of probabilities": (
        CrossEntropy(0.1),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        (B, C, 2),
        lambda: soft(B, 2, C).mT,
    ),
    "sequence": (
        CrossEntropy(),
        lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()),
        (B, 2, C),
        lambda: SEQUENCE,
    ),
    "sequence, some ignored": (
        CrossEntropy(0.1),
        lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten(), label_smoothing=0.1),
        (B, 2, C),
        lambda: SOME,
    ),
    "sequence of probabilities": (
        CrossEntropy(),
        lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten(0, 1)),
        (B, 2, C),
        lambda: soft(B, 2, C),
    ),
    "half-square": (
        HalfSquare(),
        lambda z, y: F.mse_loss(z, y) * C / 2,
        (B, C),
        lambda: randn(B, C),
    ),
    "half-square, one output": (
        HalfSquare(),
        lambda z, y: F.mse_loss(z, y.view(B)) / 2,
        (B,),
        lambda: randn(B, 1),
    ),
    "half-square of images": (
        HalfSquare(),
        lambda z, y: (z - y).square().sum() / 2 / B,
        (B, 2, 3, 2),
        lambda: randn(B, 2, 3, 2),
    ),
    "half-square of sequences": (
        HalfSquare(),
        lambda z, y: (z - y).square().sum() / 2 / B / 2,
        (B, 2, C),
        lambda: randn(B, 2, C),
    ),
    "mean square of images": (
        HalfSquare(mean=True),
        nn.MSELoss(),
        (B, 2, 3, 2),
        lambda: randn(B, 2, 3, 2),
    ),
    "mean square": (HalfSquare(mean=True), nn.MSELoss(), (B, C), lambda: randn(B, C)),
    "mean square of sequences": (
        HalfSquare(mean=True),
        nn.MSELoss(),
        (B, 2, C),
        lambda: randn(B, 2, C),
    ),
    "mean square of numbers": (HalfSquare(mean=True), nn.MSELoss(), (B,), lambda: randn(B)),
    "logistic, signs": (Logistic(), signed, (B,), lambda: torch.tensor([1.0, -1, -1, 1])),
    "logistic, integers, column": (
        Logistic(),
        lambda z, y: F.binary_cross_entropy_with_logits(z, y.double()),
        (B, 1),
        lambda: torch.tensor([[1], [0], [0], [1]]),
    ),
    "logistic, labels": (
        Logistic(mean=True),
        nn.BCEWithLogitsLoss(),
        (B, C),
        lambda: torch.tensor([[1.0, 0, 1]] * B).double(),
    ),
    "logistic, masks": (
        Logistic(),
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="sum") / B,
        (B, 1, 2, 3),
        lambda: torch.randint(2, (B, 1, 2, 3)).double(),
    ),
    "logistic, sequences": (
        Logistic(),
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="sum") / B / 2,
        (B, 2, C),
        lambda: torch.randint(2, (B, 2, C)).double(),
    ),
    "logistic, mean of masks": (
        Logistic(mean=True),
        nn.BCEWithLogitsLoss(),
        (B, 1, 2, 3),
        lambda: torch.rand(B, 1, 2, 3).double(),
    ),
    "logistic, soft": (
        Logistic(mean=True),
        nn.BCEWithLogitsLoss(),
        (B, C),
        lambda: torch.rand(B, C).double(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_torchs(name):
    loss, same, shape, y = CASES[name]
    z, y = randn(*shape), y()
    each = loss.per_sample(z, y)
    assert each.shape == (B,)
    close(each.mean(), same(z, y), 1e-12)
    if isinstance(same, nn.Module):
        assert type(get(same)) is type(loss)
        close(get(same).per_sample(z, y), each, 1e-12)


def dense(columns, z):
    """Σ ± S_k S_kᵀ of every sample, and of all signs' mixtures their mean by linearity."""
    h = torch.zeros(z.shape[0], z[0].numel(), z[0].numel(), dtype=z.dtype)
    for sign, s in columns:
        h = h + sign * s.reshape(len(s), -1).unsqueeze(2) * s.reshape(len(s), -1).unsqueeze(1)
    return h


def through_mixtures(columns, z):
    """The same from `mixed`, which is linear in r: r = e_k one after another."""
    h = torch.zeros(z.shape[0], z[0].numel(), z[0].numel(), dtype=z.dtype)
    for k in range(z[0].numel()):
        r = torch.zeros_like(z).reshape(len(z), -1)
        r[:, k] = 1
        for sign, s in columns.mixed(r.view(z.shape)):
            h = h + sign * s.reshape(len(s), -1).unsqueeze(2) * s.reshape(len(s), -1).unsqueeze(1)
    return h


@pytest.mark.parametrize("name", CASES)
def test_the_columns_are_a_root_of_the_hessian(name):
    loss, _, shape, y = CASES[name]
    z, y = randn(*shape).requires_grad_(), y()
    truth = torch.stack(
        [
            hessian(lambda v, _, i=i: loss.per_sample(v, y)[i], z, y).view(B, -1, B, z[0].numel())[
                i, :, i
            ]
            for i in range(B)
        ]
    )
    columns = loss.columns(z, y)
    assert columns.count == sum(1 for _ in columns)
    if columns.count:
        close(dense(columns, z), truth)
        close(through_mixtures(columns, z), truth)
    else:
        assert not truth.any()


def test_softmax_has_one_column_less_than_classes():
    assert CrossEntropy().columns(randn(B, C), Y).count == C - 1


@pytest.mark.parametrize("size", [1.0, 50.0, 2000.0])
def test_saturated_softmax_has_finite_columns_and_gradients(size):
    z = (size * randn(B, C)).requires_grad_()
    total = sum(s.square().sum() for _, s in CrossEntropy().columns(z, Y))
    (g,) = torch.autograd.grad(total, z)
    assert torch.isfinite(total)
    assert torch.isfinite(g).all()
    p = z.softmax(1)
    close(total + 1, (p * (1 - p)).sum() + 1)


# ---------------------------------------------------------------------------------------- callables


def saddle(z, y):
    """Indefinite, coupled and not quadratic."""
    return (z[:, 0] * z[:, 1] * z[:, 2]).sin() + 0.1 * (z**3).sum(1) * y


CALLABLES = {
    "indefinite": saddle,
    "batch mean": lambda z, y: saddle(z, y).mean(),
    "quadratic": lambda z, y: z[:, 0] * z[:, 1] - z[:, 2] ** 2,
    "equal eigenvalues": lambda z, y: 0.5 * z.square().sum(1) + 0.0 * z.pow(4).sum(1),
    "focal": lambda z, y: (1 - z.softmax(1)[:, 0]) ** 2 * -F.log_softmax(z, 1)[:, 0],
    "torch module": nn.HuberLoss(delta=0.2),
}


@pytest.mark.parametrize("name", CALLABLES)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_any_callable(name):
    loss = CALLABLES[name]
    torch.manual_seed(4)
    model = half(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, C)))
    x = randn(B, 4)
    y = randn(B, C) if name == "torch module" else randn(B)

    def one(z, y):
        value = loss(z.unsqueeze(0), y.unsqueeze(0))
        return value.sum()

    injected = dither.inject(model, dither.Additive(0.3))
    found = dither.explicit(injected, x, y, loss)
    truth = sum(regulariser(injected, x, y, one).values())
    close(found.R, truth)
    close(gradients(found.R, injected), gradients(truth, injected))
    with torch.no_grad():
        close(dither.explicit(injected, x, y, loss).R, truth)


@pytest.mark.parametrize("gradient", [True, False])
def test_sampled_R_of_an_indefinite_loss_is_unbiased(gradient, monkeypatch):
    from signs import every_sign

    model, x, y = half(nn.Sequential(nn.Tanh(), nn.Linear(4, C))), randn(2, 4), randn(2)
    injected = dither.inject(model, dither.Weight(0.3))
    n = every_sign(monkeypatch, x.new_empty(2, C), 0)
    with torch.set_grad_enabled(gradient):
        close(
            dither.explicit(injected, x, y, saddle, samples=n).R,
            dither.explicit(injected, x, y, saddle).R,
        )


@pytest.mark.parametrize("gradient", [True, False])
def test_a_callable_of_one_output(gradient):
    model, x, y = (
        half(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))),
        randn(B, 4),
        torch.tensor([1.0, -1, 1, 1]),
    )
    injected = dither.inject(model, dither.Additive(0.3))
    with torch.set_grad_enabled(gradient):
        R = dither.explicit(injected, x, y, lambda z, y: F.softplus(-y * z)).R
        close(R, dither.explicit(injected, x, y, "logistic").R)


def test_the_hessian_of_a_callable_agrees_with_cross_entropys_own():
    z = randn(B, C).requires_grad_()
    own = AnyLoss(lambda z, y: F.cross_entropy(z, y, reduction="none"))
    close(dense(own.columns(z, Y), z), dense(CrossEntropy().columns(z, Y), z))
    close(dense(own.columns(z.detach(), Y), z), dense(CrossEntropy().columns(z, Y), z))


def test_a_callable_keeps_its_digits_in_single_precision():
    """Sure logits: p(1 − p) is 0 in single precision where it is 4e-8."""
    z = torch.tensor([[17.0, 0.0, 0.0], [0.0, 15.0, 1.0]])
    y = torch.tensor([0, 2])
    own = AnyLoss(lambda z, y: F.cross_entropy(z, y, reduction="none"))
    right = dense(CrossEntropy().columns(z.double(), y), z.double())
    for at in (z, z.clone().requires_grad_()):
        columns = own.columns(at, y)
        assert columns.column(0).dtype == torch.float32
        torch.testing.assert_close(dense(columns, z).double(), right, rtol=1e-5, atol=1e-12)


def test_a_callable_that_holds_to_single_precision_is_taken_as_it_is():
    w, z = torch.tensor([1.0, 2.0, 3.0]), torch.randn(B, C)
    own = AnyLoss(lambda z, y: F.cross_entropy(z, y, w, reduction="none"))
    with pytest.raises(RuntimeError):
        own.function(z.double(), Y)
    twice = AnyLoss(lambda z, y: F.cross_entropy(z, y, w.to(z), reduction="none"))
    close(dense(own.columns(z, Y), z), dense(twice.columns(z, Y), z), 1e-5)
