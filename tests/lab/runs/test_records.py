"""The recorded results belong to today's figures, and say what they say."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dither.lab import catalogue
from dither.lab.data import needs
from dither.lab.figure import Figure
from dither.lab.page import report
from dither.lab.page.judge import Study, judge, tabulate
from dither.lab.runs.store import Store

RECORDS = Path(__file__).parents[3] / "records"
ROOTS = (RECORDS, RECORDS / "decisive")
FIGURES = sorted(file for root in ROOTS for file in root.glob("figures/*/*/figure.json"))


@contextmanager
def as_recorded(file: Path) -> Iterator[Study]:
    """The study a record is of, as its figure's code has it now, with the sets that were on the
    machine: those that need not be were all there if the record has their runs.
    """
    about = json.loads(file.read_text(encoding="utf-8"))
    figure = catalogue.find(about["name"])
    with pytest.MonkeyPatch.context() as patch:
        for found in (None, "here"):
            patch.setattr(needs, "found", lambda name, found=found: found)
            runs = figure.at(about["scale"])
            there = {folder.name for folder in file.parents[3].glob("runs/*")}
            kept = {run.key for label, run in runs.items() if label not in about["missing"]}
            if {*about["missing"]} <= {*runs} and len(runs) == about["runs"] and kept <= there:
                break
        yield studied(about, figure, runs)


def studied(about: dict, figure: Figure, runs: dict) -> Study:
    study = Study(about["name"], about["scale"], tuple(about["seeds"]), "", figure, runs)
    study.unasked = set(about["missing"])
    return study


def assert_alike(now, then, where: str) -> None:
    """Equal, but for what machines differ in: the order of sums. `lasso` solves an ill-conditioned
    problem anew, and its distances of 1e-5 differ by 1e-4 of them.
    """
    if isinstance(then, dict):
        assert now.keys() == then.keys(), where
        for name, value in then.items():
            assert_alike(now[name], value, f"{where}, {name}")
    elif isinstance(then, float):
        assert now == pytest.approx(then, rel=1e-3, abs=1e-9, nan_ok=True), where
    else:
        assert now == then, where


def check(study: Study, file: Path) -> None:
    """That a record is of today's runs and claims."""
    name, table = study.name, tabulate(study, Store(file.parents[3]))
    about, entries = report.judged(file.parent)
    assert (file.parent / "figure.svg").is_file(), about.get("no picture", name)
    assert set(table.labels) == set(study.runs) - study.unasked, name
    assert set(table.seeds) == set(about["seeds"]) - set(about["left out"]), name
    assert study.figure
    for claim, entry in zip(study.figure.claims_at(study.scale), entries, strict=True):
        assert (claim.id, claim.text) == (entry["id"], entry["claim"]), name
        now = judge(claim, table, study.scale)[0]
        for found in (now, entry):
            if "data absent" in (why := found["numbers"].get("why", "")):
                found["numbers"]["why"] = why.partition(": put ")[0]  # where to is each machine's
        assert_alike(now, entry, f"{name}, {claim.id}")


def test_every_record_is_of_todays_runs_and_claims():
    assert FIGURES
    for file in FIGURES:
        with as_recorded(file) as study:
            check(study, file)


def test_no_run_is_kept_that_no_figure_has():
    known = set()
    for file in FIGURES:
        with as_recorded(file) as study:
            known |= {run.key for run in study.runs.values()}
    assert {folder.name for root in ROOTS for folder in root.glob("runs/*")} <= known
