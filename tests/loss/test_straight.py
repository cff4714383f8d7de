"""Losses linear in the output have no R of their own: they are read with the logits, or refused."""

import pytest
import torch
import torch.nn.functional as F
from oracles import close, half
from torch import nn

import dither
from dither.loss import get

B, C = 4, 3
OMEGA = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
Y = torch.tensor([2, 0, 1, 2])
SEQUENCE = torch.tensor([[0, 2], [1, 1], [2, 0], [0, 1]])


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(B, C), (B, C, 2)])
@pytest.mark.parametrize(
    "how", [{}, {"weight": OMEGA}, {"ignore_index": 2}], ids=["", "weighted", "ignored"]
)
def test_nll_of_log_softmax_is_cross_entropy(shape, how):
    z, y = randn(*shape), Y if len(shape) == 2 else SEQUENCE
    close(
        get(nn.NLLLoss(**how)).per_sample(z.log_softmax(1), y).mean(),
        nn.NLLLoss(**how)(z.log_softmax(1), y),
        1e-12,
    )


@pytest.mark.parametrize("curvature", ["gauss_newton", "full"])
def test_R_of_nll_is_that_of_the_logits(curvature):
    logits, x = half(nn.Sequential(nn.Linear(4, C))), randn(B, 4)
    whole = nn.Sequential(logits, nn.LogSoftmax(1)).eval()
    R = [
        dither.explicit(
            dither.inject(model, dither.Additive(0.3)), x, Y, loss, curvature=curvature
        ).R
        for model, loss in ((whole, nn.NLLLoss()), (logits, nn.CrossEntropyLoss()))
    ]
    assert R[0] > 0
    close(*R)


def test_nll_of_logits_says_so():
    z = torch.tensor([[0.0, 0.0, 0.0]])
    with pytest.raises(dither.DitherError, match=r"log-probabilities: got .* sum to 3; end"):
        get(nn.NLLLoss()).per_sample(z, Y[:1])


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (lambda z, y: z.sum(1) * y, Y.double()),
        (F.nll_loss, Y),
    ],
    ids=["linear", "nll_loss"],
)
def test_a_loss_linear_in_the_output_has_no_R(loss, y):
    noise = dither.inject(half(nn.Sequential(nn.Linear(4, C))), dither.Additive(0.3))
    for on in (True, False):
        with (
            torch.set_grad_enabled(on),
            pytest.raises(dither.DitherError, match=r"linear in the output.*give the logits"),
        ):
            dither.explicit(noise, randn(B, 4), y, loss)


def test_a_loss_that_is_straight_here_has_R_0_here():
    noise = dither.inject(half(nn.Sequential(nn.Linear(4, C))), dither.Additive(0.3))
    far = torch.full((B, C), 1e3, dtype=torch.float64)
    assert dither.explicit(noise, randn(B, 4), far, nn.HuberLoss()).R == 0
