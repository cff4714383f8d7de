"""How a run ended, and runs at equal training loss, on tables made by hand."""

import numpy as np
import polars as pl
import pytest

from dither.errors import DitherError
from dither.lab.table import Table
from dither.papers import ends

SEEDS = range(3)


def table(values):
    """{label: {quantity: values over looks}} → a table of three equal seeds."""
    rows = {
        label: [(k, q, v) for q, vs in of.items() for k, v in enumerate(vs)]
        for label, of in values.items()
    }
    return Table.of({label: dict.fromkeys(SEEDS, row) for label, row in rows.items()})


def test_a_seed_that_diverged_is_at_chance_whatever_its_last_look_said():
    rows = {
        0: [(1.0, "accuracy/test", 0.9), (1.0, "trace", 5.0), (1.0, "corrupted/0.4", 0.7)],
        1: [(1.0, "accuracy/test", 0.8), (1.0, "trace", 7.0), (2.0, "diverged", 2.0)],
    }
    t = Table.of({"run": rows, "lost": {s: [(1.0, "diverged", 1.0)] for s in (0, 1)}})
    assert ends.diverged(t, "run").tolist() == [False, True]
    assert ends.end(t, "run").tolist() == [0.9, ends.CHANCE]
    assert ends.end(t, "run", "trace") == pytest.approx([5, np.nan], nan_ok=True)
    assert ends.end(t, "run", "corrupted/0.4", ends.CHANCE).tolist() == [0.7, ends.CHANCE]
    assert ends.end(t, "lost").tolist() == [ends.CHANCE] * 2
    assert np.isnan(ends.end(t, "lost", "trace")).all()
    assert ends.gains(t, "accuracy/test", "run", "lost").tolist() == pytest.approx([0.8, 0])
    with pytest.raises(DitherError, match="no quantity 'tracks'"):
        ends.end(t, "run", "tracks")


def test_between_looks_the_loss_falls_exponentially():
    t = table({"a": {"loss/train": np.exp([0, -2, -3]), "trace": (0, 2, 9)}})
    level = np.exp([-2.0, -2.5, -3.0])
    assert ends.at_loss(t, "a", "trace", level) == pytest.approx([2, 5.5, 9])
    assert np.isnan(ends.at_loss(t, "a", "trace", np.full(3, np.exp(-4)))).all()


def test_nothing_is_read_between_the_untrained_net_and_the_first_look():
    """There a line from chance would stand for a net on its way. Runs that are not seen at step 0
    have no such look.
    """
    t = table({"a": {"loss/train": np.exp([0, -2, -3]), "trace": (0, 2, 9)}})
    assert np.isnan(ends.at_loss(t, "a", "trace", np.exp([-0.1, -1.0, -1.99]))).all()
    assert np.isnan(ends.at_loss(t, "a", "trace", np.full(3, 2.0))).all()
    later = Table(t.frame.with_columns(pl.col("step") + 10))
    assert ends.at_loss(later, "a", "trace", np.exp([-1.0] * 3)) == pytest.approx([1, 1, 1])


def test_the_best_run_of_a_seed_is_chosen_on_the_others():
    found = [np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 2.0])]
    assert ends.chosen(found).tolist() == [0.0, 0.0, 0.0]


def test_the_common_loss_is_the_highest_of_the_lowest():
    t = table({"a": {"loss/train": (2, 0.1, 0.3)}, "b": {"loss/train": (2, 1, 0.5)}})
    assert ends.common_loss(t, ("a", "b")) == pytest.approx([0.5] * 3)
