"""The decision rule: how often it errs, what it finds, and what it says is missing."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dither.errors import DitherError
from dither.lab import rule

N = 2000  # simulated claims
ALARM = 5  # standard errors: a false alarm once in two million


def rate(verdicts, truth: float) -> float:
    """How far a frequency lies above its bound, in standard errors."""
    return (np.mean(verdicts) - truth) / math.sqrt(truth * (1 - truth) / len(verdicts))


def simulated(comparisons: int, n: int, effect: float, correlation: float = 0.0):
    rng = np.random.default_rng(comparisons + 100 * n)
    for _ in range(N):
        shared = rng.normal(size=n)
        own = rng.normal(size=(comparisons, n))
        x = effect + math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
        yield rule.decide(*(rule.above(str(i), row, by=0.0) for i, row in enumerate(x)))[0]


@pytest.mark.parametrize("n", [5, 10])
@pytest.mark.parametrize(("comparisons", "correlation"), [(1, 0), (4, 0), (4, 0.9), (12, 0.5)])
def test_without_an_effect_at_most_5_percent_of_claims_are_decided(comparisons, correlation, n):
    verdicts = list(simulated(comparisons, n, 0.0, correlation))
    assert rate([v is not None for v in verdicts], 0.05) < ALARM
    assert rate([v is False for v in verdicts], 0.025) < ALARM
    assert rate([v is True for v in verdicts], 0.025) < ALARM
    if comparisons == 1:
        assert abs(rate([v is not None for v in verdicts], 0.05)) < ALARM  # no slack with one


@pytest.mark.parametrize(("effect", "n"), [(0.5, 5), (1, 5), (1, 10), (2, 5)])
def test_power_is_what_it_says(effect, n):
    assert abs(rate(np.array(list(simulated(1, n, effect))) == True, rule.power(effect, n))) < ALARM  # noqa: E712


def test_a_true_claim_of_many_comparisons_is_hardly_ever_failed():
    """One μ on its edge, the others far inside: what fails then is an error."""
    rng, verdicts = np.random.default_rng(1), []
    for _ in range(N):
        rows = rng.normal(size=(6, 8)) + np.array([0, 5, 5, 5, 5, 5])[:, None]
        verdicts.append(rule.decide(*(rule.above(str(i), r) for i, r in enumerate(rows)))[0])
    assert rate([v is False for v in verdicts], 0.025) < ALARM
    assert rate([v is True for v in verdicts], 0.025) < ALARM


def test_holm_decides_step_by_step():
    """Against the textbook's procedure on the p-values of scipy's t-test."""
    rng = np.random.default_rng(2)
    for _ in range(200):
        rows = rng.normal(-0.7, 1, size=(5, 7))
        p = np.array([stats.ttest_1samp(r, 0, alternative="less").pvalue for r in rows])
        order, rejected = np.argsort(p), set()
        for k, i in enumerate(order):
            if p[i] > 0.025 / (len(p) - k):
                break
            rejected.add(i)
        found = rule.findings([rule.above(str(i), r) for i, r in enumerate(rows)])
        assert {i for i, f in enumerate(found) if f.holds is False} == rejected


def test_the_interval_is_students():
    x = np.array([0.3, 1.2, -0.4, 0.9, 2.0, 0.1])
    truth = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert rule.interval(x) == pytest.approx((x.mean(), truth.low, truth.high), rel=1e-12)


def test_the_interval_of_a_share_is_scipys():
    for k in range(8):
        truth = stats.binomtest(k, 7).proportion_ci(0.95, "exact")
        found = rule.interval([1] * k + [0] * (7 - k), kind="share")
        assert found == pytest.approx((k / 7, truth.low, truth.high), rel=1e-9)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.97])
def test_the_interval_of_a_share_covers_it(p):
    """All outcomes of 12 runs, with their probabilities: Clopper and Pearson's is never below."""
    n, covered = 12, 0.0
    for k in range(n + 1):
        _, low, high = rule.interval([1] * k + [0] * (n - k), kind="share")
        covered += stats.binom.pmf(k, n, p) * (low <= p <= high)
    assert covered >= 0.95


@pytest.mark.parametrize(
    ("happened", "n", "holds"), [(35, 35, None), (36, 36, True), (10, 10, None), (5, 10, False)]
)
def test_in_every_run_is_a_share_of_at_least_nine_tenths(happened, n, holds):
    verdict, numbers = rule.decide(
        rule.share("falls", [True] * happened + [False] * (n - happened))
    )
    assert verdict is holds
    if holds is None:
        assert "n = 36" in numbers["why"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=5, max_size=12),
    st.lists(st.floats(-5, 5), min_size=12, max_size=12),
    st.floats(0, 3),
)
def test_both_sides_of_a_comparison_say_the_same(a, b, floor):
    a, b = np.array(a), np.array(b[: len(a)])
    one, other = (
        rule.decide(rule.above("x", a, b, by=floor)),
        rule.decide(rule.below("x", b, a, by=floor)),
    )
    assert one[0] is other[0]
    opposite = rule.decide(rule.not_above("x", a, b, within=floor))[0]
    assert one[0] is (None if opposite is None else not opposite)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=5, max_size=12), st.floats(0.1, 3))
def test_near_holds_just_where_both_sides_do(values, floor):
    both = [rule.not_above("u", values, within=floor), rule.not_below("l", values, within=floor)]
    whole = rule.decide(rule.near("x", values, within=floor))[0]
    assert (whole is True) == all(rule.decide(c)[0] is True for c in both)
    assert (whole is False) == any(rule.decide(c)[0] is False for c in both)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([3.0, 3.1, 3.2, 2.9], "n = 4: at least 5 seeds"),
        ([3.0, 3.1, 3.2, 2.9, math.nan], "1 of 5 values are not finite"),
        ([3.0, 3.1, 3.2, math.inf, math.nan], "2 of 5 values are not finite"),
        ([1.0, -1.0, 0.5, -0.4, 0.1], "does not settle > 0.2"),
    ],
)
def test_what_is_missing_is_said(values, why):
    holds, numbers = rule.decide(rule.above("gain", values, by=0.2))
    assert holds is None
    assert why in numbers["why"]


def test_the_forecast_of_n_is_enough_and_no_more():
    x = np.array([1.0, -0.5, 1.5, 0.2, -0.3])
    _, numbers = rule.decide(rule.above("gain", x))
    n = int(numbers["why"].split("about n = ")[1].split()[0])
    mean, sd = x.mean(), x.std(ddof=1)
    low = [mean - stats.t.isf(0.025, k - 1) * sd / math.sqrt(k) for k in (n - 1, n)]
    assert low[0] <= 0 < low[1]


def test_networks_that_have_not_learnt_are_not_compared():
    good = rule.above("gain", [1, 1.1, 0.9, 1, 1.05])
    why = rule.unlearnt({"none": [0.9] * 5, "noise": [0.1, 0.9, 0.9, 0.9, 0.9]}, at_least=0.5)
    assert "noise (training accuracy 0.74)" in why
    assert "none" not in why
    holds, numbers = rule.decide(good, unless=why)
    assert holds is None
    assert numbers["why"] == why
    assert numbers["gain"].mean == pytest.approx(1.01)
    assert numbers["gain"].holds is None
    assert rule.unlearnt({"none": [0.9] * 5}, at_least=0.5) == ""
    assert rule.unlearnt({"none": [math.nan] * 5}, at_least=0.5)
    assert rule.unlearnt({"none": [2.0]}, at_most=1, what="loss").endswith("at most 1")


@pytest.mark.parametrize(
    ("values", "holds"), [([1e-9, 2e-9], True), ([1e-9, 1e-3], False), ([1e-8], True)]
)
def test_what_is_not_random_needs_no_five_seeds(values, holds):
    assert rule.decide(rule.exact("gap", values, high=1e-8))[0] is holds


def test_one_distance_is_nearer_than_another():
    near, far = np.array([1, 1.1, 0.9, 1, 1]), np.array([2, 2.1, 2, 1.9, 2])
    assert rule.decide(rule.nearer("x", near, far, by=0.4))[0] is True
    assert rule.decide(rule.nearer("x", near, far, by=0.6))[0] is False
    assert rule.decide(rule.nearer("x", far, near, by=0.1))[0] is False
    assert rule.decide(rule.nearer("x", 3 * near, 3 * far, by=0.4))[0] is True  # no unit
    for nothing in (0 * far, -far):
        assert rule.decide(rule.nearer("x", near, nothing, by=0.1))[0] is None


def test_one_comparison_that_fails_fails_the_claim():
    up, down, open_ = [1, 1.1, 0.9, 1, 1], [-1, -1.1, -0.9, -1, -1], [1, -1, 0.5, -0.5, 0.1]
    assert rule.decide(rule.above("a", up), rule.above("b", up))[0] is True
    assert (
        rule.decide(rule.above("a", up), rule.above("b", down), rule.above("c", open_))[0] is False
    )
    assert rule.decide(rule.above("a", up), rule.above("c", open_))[0] is None


def test_a_finding_has_all_that_a_page_shows():
    _, numbers = rule.decide(
        rule.above("gain", [1, 1.1, 0.9, 1, 1.05], by=0.5), numbers={"more": 2}
    )
    entry = numbers["gain"].entry()
    assert set(entry) == {"mean", "low", "high", "n", "asked", "holds", "kind"}
    assert (entry["n"], entry["asked"], entry["holds"]) == (5, "> 0.5", True)
    assert entry["low"] < entry["mean"] < entry["high"]
    assert numbers["more"] == 2
    alone = rule.decide(rule.above("gain", [1.0]))[1]["gain"].entry()
    json.dumps(alone, allow_nan=False)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: rule.above("gain", [1, 2], [1, 2, 3]), r"\(2,\) and \(3,\) are not paired"),
        (lambda: rule.above("gain", np.eye(2)), r"gain: values of shape \(2, 2\)"),
        (lambda: rule.above("gain", 1.0), r"gain: values of shape \(\)"),
        (lambda: rule.above("gain", []), "gain: there is no value"),
        (lambda: rule.between("gain", [1.0], 2, 1), "gain: the range 2 … 1 is empty"),
        (lambda: rule.decide(), "without a comparison"),
        (lambda: rule.decide(rule.above("a", [1]), rule.above("a", [1])), "one name"),
    ],
)
def test_what_cannot_be_compared(wrong, match):
    with pytest.raises(DitherError, match=match):
        wrong()
