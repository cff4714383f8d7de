"""Levi et al. 2022, App. B: its equations against autograd and the library; claims can fail."""

import io

import numpy as np
import pytest
import torch
from torch import nn

import dither
from dither.lab.figure import Silent
from dither.lab.runs.execute import execute
from dither.lab.table import Table
from dither.papers.levi2022 import linear, toy


def verdict(claim: str, table: Table):
    return next(c for c in toy.figure.claims if c.id == claim).check(table)


@pytest.mark.parametrize("xe", [0.0, 0.3])
def test_eq_13_is_a_gradient_step_on_eq_10(xe):
    w = torch.tensor([0.7, -0.4, 0.3], dtype=torch.float64, requires_grad=True)
    sigma2 = 5.0
    linear.loss10(*w, sigma2, xe).backward()
    expected = (w - linear.ETA * w.grad).detach()
    found = torch.stack(
        [torch.as_tensor(v) for v in linear.eq13(*w.detach(), linear.ETA * sigma2, xe=xe)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_eq_10_is_eq_9_averaged():
    rng = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 1000, dtype=torch.float64, generator=rng)
    x, eps = x / x.square().mean().sqrt(), 3 * eps / eps.square().mean().sqrt()
    w1, w0, wn = 0.7, -0.4, 0.3
    eq9 = (w1 * (w0 * x + wn * eps) - x).square().mean() / 2
    assert linear.loss10(w1, w0, wn, 9.0, (x * eps).mean().item()) == pytest.approx(
        eq9.item(), 1e-12
    )


def test_eq_15_is_a_catapult_in_f_and_lambda():
    w1, wn, k = 1.3, 0.4, 1.7
    (v1, _, vn), f, lam = linear.eq13(w1, 0.0, wn, k, learning=0.0), w1 * wn, w1**2 + wn**2
    assert v1 * vn == pytest.approx(f * (1 - k * lam + (k * f) ** 2), rel=1e-12)
    assert v1**2 + vn**2 == pytest.approx(lam + k * f**2 * (k * lam - 4), rel=1e-12)


def test_the_librarys_R_is_R2_of_eq_12():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double().train()
    x = torch.randn(50, 1, dtype=torch.float64)
    noise = dither.inject(net, {"0": dither.Node(3.0)}, seed=0)
    (node,) = noise.parameters()
    R = dither.explicit(noise, x, x, "half_square").R
    R2 = 3.0**2 * (net[1].weight * node).square().sum() / 2
    torch.testing.assert_close(R, R2, rtol=1e-10, atol=0)


def simulated(ratio: float, batch: int, seed: int = 0) -> Table:
    rows = list(toy.simulated(seed, Silent(), ratio=ratio, steps=20, batch=batch))
    return Table.of({"net": {seed: rows}})


def test_a_larger_batch_follows_eq_13_more_closely():
    small, large = (
        np.mean([toy.departure(simulated(0.5, batch, seed), "net")[0] for seed in range(5)])
        for batch in (100, 10_000)
    )
    assert large < 0.02
    assert large < small / 3  # 1/√|B| says a tenth


def test_without_noise_the_net_is_eq_13_to_rounding():
    rows = list(toy.simulated(0, Silent(), ratio=0.0, steps=5, batch=100))
    table = Table.of({"net": {0: rows}})
    node = table.series("net", "net w_NI")[1]
    np.testing.assert_array_equal(node, toy.START[2])


def test_the_scan_says_decay_below_and_divergence_from_twice_for_eq_15():
    table = Table.of({"scan": {0: toy.scanned(0, Silent(), starts=200, steps=200)}})
    ratios, decays = table.series("scan", "eq 15 decays")
    _, diverges = table.series("scan", "eq 15 diverges")
    assert (decays[0, ratios < 1] == 1).all()  # |1 − kw²| < 1 for both weights, at every step
    assert (diverges[0, ratios > 2] > 0.95).all()


def test_a_smoke_run_gives_a_picture_and_no_verdict():
    runs = toy.figure.at("smoke")
    table = Table.of({label: execute(run, (0, 1), Silent()) for label, run in runs.items()})
    picture = io.BytesIO()
    toy.figure.plot(table).savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")
    for claim in ("L19", "L19 catapult", "L20"):
        holds, numbers = verdict(claim, table)
        assert holds is None
        assert "fewer" in numbers["why"]


def told(drift=0.0, node=(1.0, 0.5, 0.1), peak=2.0, divergent=1e9, share=1.0) -> Table:
    """A table in which the nets leave eq. 13 by `drift`, and the phases are as told."""
    steps = np.linspace(0, 300, len(node))
    rows = {}
    for phase, course in (("decoupled", node), ("decay", node), ("catapult", (1, peak, 0.01))):
        rows[phase] = [
            (s, f"{path} {name}", toy.START[2] * w * (1 + drift * (path == "net")))
            for s, w in zip(steps, course, strict=True)
            for path in ("net", "eq 13", "eq 13 with R1")
            for name in ("w1", "w_NI")
        ]
    rows["divergent"] = [(0, "net loss", 1.0), (5, "net loss", divergent)]
    rows["scan"] = [
        (r, f"{equation} {event}", share)
        for r in toy.RATIOS
        for equation in ("eq 13", "eq 15")
        for event in ("decays", "recovers", "diverges", "told by kλ > 4")
    ]
    return Table.of({label: dict.fromkeys(range(5), part) for label, part in rows.items()})


@pytest.mark.parametrize(
    ("claim", "case", "holds"),
    [
        ("L19", {}, True),
        ("L19", {"drift": 0.2}, False),
        ("L19 catapult", {}, True),
        ("L19 catapult", {"drift": 0.2}, False),
        ("L20", {}, True),
        ("L20", {"node": (1.0, 1.2, 0.1)}, False),
        ("L20", {"peak": 1.0}, False),
        ("L20", {"divergent": 0.1}, False),
        ("L20 starts", {}, True),
        ("L20 starts", {"share": 0.9}, False),
        ("L20 ours", {}, True),
        ("L20 ours", {"share": 0.9}, False),
    ],
)
def test_claims_can_fail(claim, case, holds):
    assert verdict(claim, told(**case))[0] is holds
