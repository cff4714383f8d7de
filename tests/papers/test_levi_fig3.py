"""Levi et al. 2022, Fig. 3: its settings, Keras' loss, and claims that can fail."""

import io
import math

import numpy as np
import pytest
import torch

import dither
from dither.lab.data import needs
from dither.lab.figure import Silent
from dither.lab.identity import key
from dither.lab.runs.execute import execute
from dither.lab.table import Table
from dither.papers.levi2022 import fig3
from dither.papers.levi2022.keras import ClippedSoftmax

LOG_EPS = math.log(1e-7)


def verdict(claim: str, table: Table):
    return next(c for c in fig3.figure.claims if c.id == claim).check(table)


def spread_logits() -> tuple[torch.Tensor, torch.Tensor]:
    """Right, wrong within the clip, wrong beyond it, right beyond it."""
    z = torch.zeros(4, 3, dtype=torch.float64)
    z[:, 0] = torch.tensor([2.0, -5.0, -30.0, 30.0])
    return z, torch.zeros(4, dtype=torch.long)


def test_the_clipped_loss_is_kerass_formula():
    z, y = spread_logits()
    p = torch.softmax(z, -1).clamp(1e-7, 1 - 1e-7)
    torch.testing.assert_close(ClippedSoftmax().per_sample(z, y), -p[:, 0].log())


def test_it_has_no_gradient_beyond_the_clip_and_cross_entropys_inside():
    z, y = spread_logits()
    z.requires_grad_()
    (found,) = torch.autograd.grad(ClippedSoftmax().per_sample(z, y).sum(), z)
    (exact,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z, y, reduction="sum"), z)
    torch.testing.assert_close(found[:2], exact[:2])
    assert not found[2:].any()
    assert exact[2].any()  # cross-entropy itself does push


def test_its_columns_are_the_root_of_its_hessian():
    z, y = spread_logits()
    S = torch.stack([s for _, s in ClippedSoftmax().columns(z, y)], -1)  # [B, C, K]
    for i in range(len(z)):
        one = lambda row: ClippedSoftmax().per_sample(row[None], y[i : i + 1]).sum()  # noqa: B023, E731
        H = torch.autograd.functional.hessian(one, z[i])
        torch.testing.assert_close(S[i] @ S[i].T, H, atol=1e-12, rtol=1e-8)


def test_R_takes_it_in_both_ways():
    net = torch.nn.Sequential(torch.nn.Linear(3, 3)).double().eval()
    z, y = spread_logits()
    noise = dither.inject(net, dither.Additive(0.1), seed=0)
    exact = dither.explicit(noise, z, y, ClippedSoftmax()).R
    lots = [dither.explicit(noise, z, y, ClippedSoftmax(), samples=1).R for _ in range(400)]
    lots = torch.stack(lots).detach()
    assert abs(lots.mean() - exact) < 5 * lots.std() / 20
    assert exact > 0


def test_the_loss_is_part_of_a_runs_identity():
    assert key(ClippedSoftmax()) != key(ClippedSoftmax(1e-6))
    runs = fig3.figure.at("paper")
    assert len({run.key for run in runs.values()}) == len(runs)


def test_paper_scale_is_the_papers():
    runs = fig3.figure.at("paper")
    for phase, ratio in {"decoupled": 0, "decay": 0.1, "catapult": 1, "divergent": 1.8}.items():
        run = runs[f"{phase}, logits"]
        ((where, node),) = run.noise
        assert (where, run.batch, run.optimiser.lr) == ("fc0", 1000, 0.01)
        assert node.sigma**2 == pytest.approx(ratio * 785 / 0.01)
    assert runs["decay, logits"].model.widths == (784, 1024, 10)


@pytest.mark.skipif(not needs.found("fashion-mnist"), reason="Fashion-MNIST is not on this machine")
def test_a_smoke_run_gives_a_picture_and_no_verdict():
    runs = fig3.figure.at("smoke")
    table = Table.of({label: execute(run, (0,), Silent()) for label, run in runs.items()})
    picture = io.BytesIO()
    fig3.figure.plot(table).savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")
    for claim in fig3.figure.claims:
        holds, numbers = claim.check(table)
        assert holds is None
        assert "steps to tell" in numbers["why"]


def told(
    node=(1, 0.7, 0.3), still=1.0, loss=(10, 40, 2), w=(1, 1.5, 1.4), end=2e3, noisy=0.1
) -> Table:
    """A table of 600 steps with these courses; `loss`, `w` of the catapult, `end` of divergence."""
    steps = np.arange(0, 601, 5.0)

    def course(points):
        return np.interp(steps, [0, 300, 600], points)

    def rows(**courses):
        return [
            (s, quantity, float(v))
            for quantity, values in courses.items()
            for s, v in zip(steps, values, strict=True)
        ]

    def net(nodes, losses, next_, accuracy):
        looks = {
            "loss/train": losses,
            "noisy loss/train": losses,
            fig3.CLEAN: (0.5,) * 3,
            fig3.NOISY: (accuracy,) * 3,
        }
        courses = {fig3.NODE: nodes, "objective": losses, fig3.NEXT: next_, **looks}
        return rows(**{quantity: course(points) for quantity, points in courses.items()})

    flat = (1, 1, 1)
    parts = {"faint": net((1, 1, still), flat, flat, 0.5)}
    for name in fig3.LOSSES:
        parts |= {
            f"decoupled, {name}": net((1, 1, still), flat, flat, 0.5),
            f"decay, {name}": net(node, flat, flat, 0.5),
            f"catapult, {name}": net(flat, loss, w, 0.5),
            f"divergent, {name}": net(flat, (10, end, end), w, noisy),
        }
    return Table.of({label: dict.fromkeys(range(5), part) for label, part in parts.items()})


@pytest.mark.parametrize(
    ("claim", "case", "holds"),
    [
        ("L5 (logits)", {}, True),
        ("L5 (logits)", {"still": 1.06}, False),
        ("L5 ours", {"still": 0.9}, False),
        ("L6 (clipped)", {}, True),
        ("L6 (clipped)", {"node": (1, 0.3, 0.5)}, False),
        ("L6 (logits)", {"node": (1, 0.9, 0.7)}, False),
        ("L6 (logits)", {"node": (1, 0.3, 0.33)}, True),  # a climb of 3 % is none
        ("L7 (logits)", {}, True),
        ("L7 (logits)", {"loss": (10, 40, 20)}, False),
        ("L7 (clipped)", {"loss": (10, 11, 2)}, False),
        ("L7 (clipped)", {"w": (1, 1.02, 1)}, False),
        ("L8 (logits)", {}, True),
        ("L8 (logits)", {"end": 1}, False),
        ("L8 (clipped)", {"noisy": 0.4}, False),
    ],
)
def test_claims_can_fail(claim, case, holds):
    assert verdict(claim, told(**case))[0] is holds


def test_a_run_that_diverged_has_not_recovered():
    part = [(s, "objective", 10.0 if s < 50 else math.inf) for s in range(0, 601, 5)]
    part += [(s, fig3.NEXT, 1.0) for s in range(0, 50, 5)]
    part += [
        (0, "loss/train", 2.0),
        (0, "noisy loss/train", 10.0),
        (0, fig3.CLEAN, 0.1),
        (0, fig3.NOISY, 0.1),
        (50, "diverged", 50),
    ]
    five = dict.fromkeys(range(5), part)
    rows = {label: five for label in ("divergent, logits", "catapult, logits")}
    rows["decay, logits"] = {seed: [(600, fig3.NODE, 1.0)] for seed in range(5)}
    table = Table.of(rows)
    assert verdict("L8 (logits)", table)[0] is True
    assert verdict("L7 (logits)", table)[0] is False
