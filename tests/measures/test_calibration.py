"""The calibration error by hand, against torchmetrics, and against models that are calibrated."""

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from dither.errors import DitherError
from dither.measures import calibration


def drawn(n: int, sharp: float = 1.0, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of softmax(sharp z) and labels drawn from softmax(z)."""
    z = torch.randn(n, classes, dtype=torch.float64)
    return (sharp * z).softmax(1), torch.multinomial(z.softmax(1), 1)[:, 0]


def test_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.85, 0.15], [0.6, 0.4], [0.45, 0.55]], dtype=torch.float64)
    found = calibration.reliability(p, torch.tensor([0, 1, 0, 1]), bins=5)
    assert found.count.tolist() == [0, 0, 2, 0, 2]
    assert found.accuracy[[2, 4]].tolist() == [1.0, 0.5]
    assert found.accuracy[[0, 1, 3]].isnan().all()
    torch.testing.assert_close(found.confidence[[2, 4]], torch.tensor([0.575, 0.875]).double())
    assert float(found.error) == pytest.approx(0.5 * 0.425 + 0.5 * 0.375)
    assert float(found.worst) == pytest.approx(0.425)
    assert float(found.overconfidence) == pytest.approx(0.5 * 0.375 - 0.5 * 0.425)


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("sharp", [0.5, 1.0, 3.0])
def test_it_is_what_torchmetrics_says(sharp, bins):
    p, y = drawn(3000, sharp)
    p = p.clamp(max=1 - 1e-6)  # theirs has a bin of its own for a confidence of 1
    found = calibration.reliability(p, y, bins=bins)
    for norm, value in (("l1", found.error), ("max", found.worst)):
        theirs = multiclass_calibration_error(p, y, p.shape[1], n_bins=bins, norm=norm)
        assert float(value) == pytest.approx(theirs.item(), abs=1e-6)


def test_a_calibrated_model_errs_by_chance_only():
    errors, chances = zip(
        *((float(r.error), float(r.chance)) for r in (calibrated() for _ in range(300))),
        strict=True,
    )
    ratio = sum(errors) / sum(chances)  # sd of one ratio ≈ .25: .015 of the mean of 300
    assert abs(ratio - 1) < 0.06


def calibrated():
    return calibration.reliability(*drawn(500))


@pytest.mark.parametrize(("sharp", "sign"), [(0.5, -1), (3.0, 1)])
def test_too_sharp_is_overconfident(sharp, sign):
    found = calibration.reliability(*drawn(2000, sharp))
    assert float(found.overconfidence) * sign > 5 * float(found.chance)
    assert float(found.error) >= abs(float(found.overconfidence)) - 1e-12


def test_edges_belong_to_the_bin_below_and_certainty_to_the_last():
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.75, 0.25]], dtype=torch.float64)
    found = calibration.reliability(p, torch.zeros(3).long(), bins=4)
    assert found.count.tolist() == [0, 1, 1, 1]
    assert math.isclose(calibration.error(p, torch.zeros(3).long(), bins=4), 0.25)


@pytest.mark.parametrize(
    ("p", "y", "bins", "match"),
    [
        (torch.randn(4, 3), torch.zeros(4).long(), 15, "pass z.softmax"),
        (torch.full((4, 2), 0.5), torch.zeros(3).long(), 15, r"\[4, 2\] and \[3\]"),
        (torch.full((4, 2), 0.5), torch.zeros(4), 15, "float32"),
        (torch.full((4, 2), 0.5), torch.zeros(4).long(), 0, "bins is a whole number ≥ 1: got 0"),
        (
            torch.full((4, 2), 0.5),
            torch.zeros(4).long(),
            2.5,
            "bins is a whole number ≥ 1: got 2.5",
        ),
        (torch.full((4, 2), 0.5), torch.full((4,), 2), 15, r"from 0 to 1: .* 2 … 2"),
        (torch.full((4, 2), 0.5), torch.full((4,), -100), 15, r"from 0 to 1: .* -100 "),
        (torch.full((4, 2), 0.5), torch.zeros(4).bool(), 15, "bool"),
        (torch.zeros(0, 2), torch.zeros(0).long(), 15, r"\[0, 2\] and \[0\]"),
    ],
)
def test_bad_input_is_a_sentence(p, y, bins, match):
    with pytest.raises(DitherError, match=match):
        calibration.reliability(p, y, bins=bins)
