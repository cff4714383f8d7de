"""The language model: what it sees, its R against a loop, its text, and its claims by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import dither
from dither.lab.figure import Silent
from dither.lab.table import Table
from dither.papers.beyond import language
from dither.papers.beyond.characters import Text, Transformer, pieces


def small(seed=0, dtype=torch.float64):
    return Transformer(seed, symbols=5, length=4, width=4, blocks=1).to(dtype)


def test_no_position_sees_what_comes_after():
    model, x = small(), torch.tensor([[0, 1, 2, 3]])
    other = torch.tensor([[0, 1, 4, 0]])
    assert torch.allclose(model(x)[:, :2], model(other)[:, :2], atol=1e-12)
    assert not torch.allclose(model(x)[:, 2:], model(other)[:, 2:], atol=1e-3)


def test_a_model_is_a_function_of_its_seed():
    one, two, other = (small(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["embed"], other["embed"])


def test_R_of_a_sequence_model_is_the_loop_over_positions():
    # tr GN = 1/BT Σ_bt ‖√H_bt ∂z_bt/∂w‖², H = diag p − p pᵀ
    model, x = small(), torch.tensor([[0, 1, 2, 3], [4, 3, 3, 1]])
    y = torch.tensor([[1, 2, 3, 0], [3, 3, 1, 2]])
    z, total = model(x), 0.0
    for row, p in zip(z.flatten(0, 1), z.flatten(0, 1).softmax(-1), strict=True):
        H = (torch.diag(p) - torch.outer(p, p)).detach()
        how = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        slopes = [torch.autograd.grad(out, list(model.parameters()), **how) for out in row]
        J = torch.stack([torch.cat([g.flatten() for g in of]) for of in slopes])
        total += float((J.T @ H @ J).trace()) / len(z.flatten(0, 1))
    with dither.inject(model, dither.Weight(0.3)) as noise, torch.no_grad():
        found = dither.explicit(noise, x, y)
    assert found.R.item() == pytest.approx(0.3**2 / 2 * total, rel=1e-10)
    assert found.loss.item() == pytest.approx(F.cross_entropy(z.flatten(0, 1), y.flatten()).item())


def test_the_text_is_split_by_topics_and_read_in_the_training_alphabet():
    text = Text.of(300, 200)
    assert (len(text.train), len(text.test)) == (300, 200)
    words = "".join(text.alphabet[i] for i in text.train)
    assert set(words) <= set(text.alphabet)
    rest = "".join(text.alphabet[i] for i in text.test)
    assert words != rest[:300]
    assert "statement" in words
    x, y = pieces(text.train, torch.tensor([0, 7]), 5)
    assert torch.equal(x[1, 1:], y[1, :-1])
    assert y[1, -1] == text.train[12]


def test_a_run_does_not_touch_the_default_generator():
    how = {"train": 300, "test": 200, "length": 6, "width": 16, "blocks": 1, "batch": 2,
           "steps": 2, "looks": 1}  # fmt: skip
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    found = {
        scheme: list(language.trained(0, Silent(), scheme=scheme, sigma=0.2, **how))
        for scheme in ("none", "noise", "noise (layer)", "loss + R̂")
    }
    assert torch.equal(torch.rand(1), expected)
    start = [dict((q, v) for step, q, v in rows if step == 0) for rows in found.values()]
    assert all(one == start[0] for one in start)
    ends = {
        dict((q, v) for step, q, v in rows if step == 2)["loss/train"] for rows in found.values()
    }
    assert len(ends) == 4


# ------------------------------------------------------------------------------------------- claims


def table(**changed):
    """Ends of (test loss, trace, calibration error), varied a little over seeds."""
    ends = {
        "none": (2.0, 50, 0.10),
        "noise, σ = 0.1": (1.95, 30, 0.05),
        "noise (layer), σ = 0.1": (1.9, 20, 0.04),
        "noise, σ = 0.3": (2.5, 5, 0.02),
        "noise (layer), σ = 0.3": (2.2, 6, 0.02),
        "loss + R̂, σ = 0.1": (1.92, 25, 0.05),
    }
    for label, end in changed.items():
        name = {"full": "noise", "layer": "noise (layer)", "R": "loss + R̂"}[label[:-1]]
        ends[f"{name}, σ = 0.{label[-1]}"] = end
    quantities = ("loss/test", "trace", "calibration error")
    fixed = [(1, "loss/train", 1.0), (1, "trace sem", 0.1)]
    return Table.of({
        label: {
            s: fixed + [(1, quantities[k], end[k] * (1 + 0.001 * s)) for k in range(3)]
            for s in range(5)
        }
        for label, end in ends.items()
    })  # fmt: skip


def verdict(claim, t):
    return next(c for c in language.figure.claims if c.id == claim).check(t)


CASES = [
    ("T1", {"layer1": (2.1, 20, 0.04)}),
    ("T2", {"full1": (1.95, 60, 0.05)}),
    ("T3", {"layer1": (1.9, 20, 0.2)}),
    ("T4", {"R1": (2.1, 20, 0.04)}),
    ("T5", {"full3": (2.1, 5, 0.02)}),
]


@pytest.mark.parametrize(("claim", "worse"), CASES)
def test_claims(claim, worse):
    assert verdict(claim, table())[0] is True
    assert verdict(claim, table(**worse))[0] is False


def test_nothing_is_said_of_a_model_that_has_not_learnt():
    t = table()
    shift = t.frame.with_columns(
        value=t.frame["value"] + 2.0 * (t.frame["quantity"] == "loss/train").cast(float)
    )
    holds, numbers = verdict("T1", Table(shift))
    assert holds is None
    assert "nats" in numbers["why"]
    assert np.isfinite(t.last("none", "loss/test")).all()
