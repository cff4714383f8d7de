"""What targets may be, and what a callable loss may not give."""

import pytest
import torch

import dither
from dither.loss import get


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
