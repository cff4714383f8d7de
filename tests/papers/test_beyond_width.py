"""Weight noise at its best σ, over the width."""

import math

import numpy as np
import pytest
from beyond import SEEDS, drawn, said, table, verdict

from dither.papers.beyond import width
from dither.papers.ends import ACCURACY, LOSS
from dither.papers.orvieto2022.schemes import FULL, GD, LAYER


def tuned(accuracy, loss=0.1, widths=(64, 256, 1024)):
    """accuracy(width, kind, σ); loss: the training loss of plain GD."""
    found = {}
    for w in widths:
        found[f"{w} {GD}"] = {ACCURACY: 0.8, LOSS: loss}
        for kind in width.KINDS:
            for sigma in width.GRID:
                found[f"{w} {kind}, σ = {sigma:g}"] = {ACCURACY: accuracy(w, kind, sigma)}
    return table(found)


def at_its_best(w, kind, sigma):
    """Full noise is best at σ = .1 / (w/64)^½, layer-wise at .05; it gains with the width."""
    best = 0.1 * (64 / w) ** 0.5 if kind == FULL else 0.05
    top = 0.81 if kind == FULL else 0.83 + 0.01 * math.log2(w / 64)
    return top - 0.02 * abs(math.log2(sigma / best))


def verdicts(t):
    return [verdict(width.figure, c, t) for c in ("D1", "D2", "D3")]


def test_each_at_its_best_sigma():
    t = tuned(at_its_best)
    assert verdicts(t) == [True] * 3
    drawn(width.figure, t)
    same = tuned(lambda w, kind, sigma: 0.81 - 0.02 * abs(math.log2(sigma / 0.05)))
    assert verdicts(same) == [False] * 3
    assert verdicts(tuned(lambda w, kind, sigma: 0.8 + sigma)) == [None] * 3


@pytest.mark.parametrize(
    "how", [{"loss": 0.9}, {"loss": float("nan")}, {"widths": (64, 128, 256)}]
)  # fmt: skip
def test_widths_are_judged_of_wide_nets_that_have_learnt(how):
    assert verdicts(tuned(at_its_best, **how)) == [None] * 3


def test_a_claim_is_held_up_by_what_it_reads_alone():
    """Layer-wise noise at the end of the grid, in the middle width: D1, D2 and D3 don't read it."""
    at = lambda w, kind, sigma: (  # noqa: E731
        0.8 + sigma if (w, kind) == (256, LAYER) else at_its_best(w, kind, sigma)
    )
    assert verdicts(tuned(at)) == [True] * 3


def test_no_noise_is_one_of_the_sigmas():
    """Noise that only hurts is best at 0: there is no advantage, and no best σ to have a slope."""
    t = tuned(lambda w, kind, sigma: 0.8 - sigma * (0.1 if kind == LAYER else 1.0))
    for kind in width.KINDS:
        assert width.best(t, 256, kind)[1].tolist() == [0.0] * len(SEEDS)
    assert verdicts(t) == [False, False, None]
    plateau = tuned(lambda w, kind, sigma: 0.79 - 0.01 * abs(math.log2(sigma / 0.05)))
    assert verdicts(plateau) == [False, False, None]
    assert "no noise is better" in said(width.figure, "D3", plateau)[1]["why"]
    drawn(width.figure, t)


def test_the_best_sigma_lies_between_those_of_the_grid():
    t = tuned(lambda w, kind, sigma: 0.81 - 0.2 * math.log2(sigma / 0.03) ** 2)
    assert width.top(t, 256, FULL) == pytest.approx(0.03, rel=0.02)


def test_a_best_sigma_beside_a_run_that_diverged_has_no_top():
    t = tuned(lambda w, kind, sigma: 0.0 if sigma == 0.035 else at_its_best(w, kind, sigma))
    assert np.isfinite(width.top(t, 64, FULL)).all()
    assert np.isnan(width.top(t, 256, LAYER)).all()
    assert "divergence" in said(width.figure, "D3", t)[1]["why"]


def hump(slope, scatter, rng):
    """Accuracies of noise that helps a little and then ruins the net, best at σ ~ width^slope."""

    def accuracy(w, kind, sigma):
        off = math.log2(sigma / (0.035 * (w / 256) ** slope))
        fall = 0.03 * off**2 + 0.03 * max(off, 0.0) ** 3
        return lambda seed: 0.83 - fall + scatter * rng.normal()

    return tuned(accuracy)


@pytest.mark.parametrize("slope", [-0.5, -0.3])
def test_the_slope_of_the_best_sigma_is_the_true_one(slope):
    found = width.slope(hump(slope, 1e-6, np.random.default_rng(0)), FULL)
    assert found.mean() == pytest.approx(slope, abs=0.03)


def test_the_interval_of_the_slope_is_no_narrower_than_its_error():
    """A true slope at the edge of the range is told from it in one case of twenty at most."""
    rng = np.random.default_rng(0)
    judged = [verdict(width.figure, "D3", hump(-0.3, 0.002, rng)) for _ in range(40)]
    assert sum(v is not None for v in judged) <= 6
    wrong = [verdict(width.figure, "D3", hump(-0.5, 0.002, rng)) for _ in range(10)]
    assert sum(v is True for v in wrong) >= 3
    assert False not in wrong
