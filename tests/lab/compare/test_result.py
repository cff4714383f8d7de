"""What a comparison says: differences, verdicts, tables, files."""

import math
from datetime import date

import numpy as np
import polars as pl
import pytest
from scipy import stats

import dither
from dither.lab.compare import Comparison


def comparison(values, seeds=None):
    n = len(next(iter(next(iter(values.values())).values())))
    return Comparison(values, tuple(seeds or range(n)))


def test_differences_are_paired():
    base = np.random.default_rng(0).normal(0, 10, 8)
    gap = np.random.default_rng(1).normal(1, 0.1, 8)
    found = comparison({"a": {"loss/test": base}, "b": {"loss/test": base + gap}})
    told = found.differences("loss/test")["b"]
    low, high = stats.ttest_1samp(gap, 0).confidence_interval(0.95)
    assert (told.mean, told.low, told.high) == pytest.approx((gap.mean(), low, high))
    assert told.verdict == "worse"


def test_a_verdict_has_a_side():
    n, up = np.zeros(5), np.array([1.0, 1.1, 0.9, 1.0, 1.05])
    sides = {
        "loss/test": ("worse", "better"),
        "accuracy/test": ("better", "worse"),
        "accuracy, s = 0.5": ("better", "worse"),
        "calibration error": ("worse", "better"),
        "mine": ("higher", "lower"),
        "ms/step": ("", ""),
    }
    for quantity, expected in sides.items():
        found = comparison({"a": {quantity: n}, "up": {quantity: up}, "down": {quantity: -up}})
        told = found.differences(quantity)
        assert (told["up"].verdict, told["down"].verdict) == expected


def test_few_seeds_have_no_verdict():
    found = comparison({"a": {"loss/test": np.zeros(4)}, "b": {"loss/test": np.ones(4)}})
    assert found.differences("loss/test")["b"].verdict == ""
    assert "no verdict below 5 seeds" in str(found)


def test_without_effects_one_of_many_methods_is_told_apart_in_five_percent_at_most():
    rng, runs, alarms = np.random.default_rng(0), 400, 0
    for _ in range(runs):
        first = rng.normal(size=6)
        values = {f"m{i}": {"mine": first + rng.normal(size=6)} for i in range(8)}
        found = comparison({"a": {"mine": first}, **values})
        alarms += any(d.verdict for d in found.differences("mine").values())
    assert alarms <= stats.binom.ppf(0.999, runs, 0.05)


def test_runs_without_a_value_are_left_out_and_counted():
    one = np.array([1.0, 2.0, math.nan])
    found = comparison({"a": {"q": np.ones(3)}, "b": {"q": one, "diverged": np.array([0, 0, 1.0])}})
    text = str(found)
    assert "1.50 ± 0.71 (1 missing)" in text
    assert "1 of 3" in text
    assert found.differences("q")["b"].verdict == ""


VALUES = {
    "none": {"loss/test": np.arange(5.0), "accuracy/test": np.full(5, 0.9), "ms/step": np.ones(5)},
    "<b>": {"loss/test": np.arange(5.0) + 1, "accuracy/test": np.full(5, 0.95), "mine": np.ones(5)},
}


def test_the_files_hold_all_values_and_the_page_stands_alone(tmp_path):
    found = comparison(VALUES)
    page = found.save(tmp_path / "out").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert f"Written on {date.today().isoformat()} by dither {dither.__version__}, torch" in page
    table = pl.read_parquet(tmp_path / "out" / "values.parquet")
    assert table.equals(found.to_frame())
    assert pl.read_csv(tmp_path / "out" / "values.csv").shape == table.shape
    for method, columns in VALUES.items():
        for quantity, value in columns.items():
            rows = table.filter((pl.col.method == method) & (pl.col.quantity == quantity))
            assert rows["value"].to_list() == value.tolist()


def test_a_notebook_shows_all_tables():
    html = comparison(VALUES)._repr_html_()
    for word in ("loss/test", "accuracy/test, %", "90.0", "better", "worse", "mine"):
        assert word in html


def test_the_picture_has_a_panel_for_each_quantity():
    import matplotlib.pyplot as plt

    found = comparison(VALUES)
    titles = [ax.get_title("left") for ax in found.plot().axes]
    assert titles == ["loss/test, minus none", "accuracy/test, %, minus none"]
    assert len(found.plot(["loss/test"]).axes) == 1
    with pytest.raises(dither.DitherError, match=r"no difference of 'nope'; there are loss/test"):
        found.plot(["nope"])
    with pytest.raises(dither.DitherError, match="two methods with a quantity in common"):
        comparison({"a": {"q": np.ones(3)}}).plot()
    plt.close("all")
