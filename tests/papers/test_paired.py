"""Differences between runs that share their seeds, and whether they are more than their error."""

import numpy as np
import pytest
from scipy import stats

from dither.papers import paired


@pytest.mark.parametrize(
    ("differences", "holds"),
    [
        ([[1, 1.1, 0.9]], True),
        ([[1, 1.1, 0.9], [-1, -1.1, -0.9]], False),
        ([[1, 1.1, 0.9], [1, -1, 0.1]], None),
        ([[0.5]], None),
        ([[1, 1.1, np.nan]], None),
        ([[1, 1.1, np.inf], [-1, -1.1, -0.9]], None),
    ],
)
def test_paired_differences_are_told_by_their_standard_error(differences, holds):
    found, numbers = paired.judged(map(np.array, differences), {"n": 1.0})
    assert found is holds
    assert ("not finite" in numbers.get("why", "")) is (holds is None)
    assert numbers["n"] == 1


@pytest.mark.parametrize(("seeds", "percent"), [(3, 42), (10, 34)])
def test_how_often_chance_is_judged(seeds, percent):
    """What the module says of no difference at all."""
    rng = np.random.default_rng(0)
    n = 4000
    judged = sum(paired.verdict([d]) is not None for d in rng.normal(size=(n, seeds)))
    truth = 2 * stats.t.sf(1, seeds - 1)
    assert round(100 * truth) == percent
    assert abs(judged / n - truth) < 5 * (truth * (1 - truth) / n) ** 0.5  # once in 2 million
