import json
import math
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dither.lab.figure import Claim
from dither.lab.page import judge
from dither.lab.runs.store import Store
from dither.lab.table import Table

TABLE = Table.of({"a": {0: [(0, "loss", 1.0)], 1: [(0, "loss", 3.0)]}})


def judged(check):
    return judge.judge(Claim("X", "x", check), TABLE, "smoke")


def test_numbers_of_a_claim():
    class Estimate(tuple):  # as dither.estimate.Estimate: a pair with names
        value, sem = 0.5, 0.1

    numbers = {
        "float": 1.5, "int": 3, "word": "none", "nan": math.nan, "pair": (1.0, 0.2),
        "bool": np.True_,
        "seeds": TABLE.last("a", "loss"), "others": np.array([0.5, 1.0, math.inf]),
        "list": [0.25, 0.5], "grid": np.eye(2), "nothing": np.array([]),
        "estimate": Estimate((0.5, 0.1)), "one": np.array([2.0]),
    }  # fmt: skip
    entry, _ = judged(lambda t: (np.bool_(False), numbers))
    assert entry["holds"] is False
    assert entry["numbers"] == {
        "float": 1.5, "int": 3, "word": "none", "nan": "nan", "bool": True,
        "pair": {"mean": 1.0, "spread": 0.2},
        "seeds": {"mean": 2.0, "spread": pytest.approx(2**0.5), "kind": "sd", "n": 2},
        "others": [0.5, 1.0, "inf"], "list": {"mean": 0.375, "spread": pytest.approx(2**-2.5),
        "kind": "sd", "n": 2}, "grid": [1.0, 0.0, 0.0, 1.0], "nothing": [],
        "estimate": {"mean": 0.5, "spread": 0.1, "kind": "sem"}, "one": 2.0,
    }  # fmt: skip
    json.dumps(entry, allow_nan=False)


@pytest.mark.parametrize(
    ("check", "why", "bug"),
    [
        (lambda t: (None, {"why": "too few steps"}), "too few steps", False),
        (
            lambda t: (True, {"x": t.last("b", "loss")}),
            "could not be judged: the table has no run 'b'",
            False,
        ),
        (lambda t: 1 / 0, "could not be judged: ZeroDivisionError: division by zero", True),
        (
            lambda t: ("yes", {}),
            "could not be judged: TypeError: its check says holds = 'yes'",
            True,
        ),
        (lambda t: True, "could not be judged: TypeError", True),
        (
            lambda t: (True, {"x": {"a": 1.0}}),
            "could not be judged: TypeError: {'a': 1.0} among its numbers: give its entries",
            True,
        ),
        (lambda t: (True, {"x": object()}), "could not be judged: TypeError", True),
    ],
)
def test_a_claim_that_cannot_be_judged(check, why, bug):
    entry, trace = judged(check)
    assert entry["holds"] is None
    assert entry["numbers"]["why"].startswith(why)
    assert ("Traceback" in trace) == bug


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ({"b": "left out (--only)"}, r"no results, as 'b' \(left out \(--only\)\)"),
        ({}, "ValueError"),
    ],
)
def test_a_picture_without_all_its_runs_says_which_is_missing(tmp_path, missing, said):
    table = Table.of({"a": {0: [(0, "q", 1.0)]}}, missing)
    study: Any = SimpleNamespace(name="toy/fig1", figure=SimpleNamespace(plot=lambda t: max([])))
    record: dict[str, Any] = {}
    assert not judge._drawn(study, table, Store(tmp_path), record)
    assert re.search(said, record["no picture"])
