"""The scale "decisive": figures that have it, and those that do not."""

import pytest
from tasks import plain
from typer.testing import CliRunner

from dither.errors import DitherError
from dither.lab.cli import app
from dither.lab.figure import SCALES, SEEDS, Figure
from dither.lab.runs.screen import Quiet

MORE = {
    "decisive": {"steps": 7},
    "departures": ["decisive: seven steps", "quick: few", "all scales"],
    "cost": {"decisive": 90},
}


class Told(Quiet):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_it_lies_between_quick_and_paper():
    assert SCALES == ("smoke", "quick", "decisive", "paper")


def test_a_figure_that_has_it_is_run_at_it(toy):
    study = toy(fig1=plain(**MORE))(scale="decisive").figures["toy2024/fig1"]
    assert len(study.table.series("rate 0.1", "value")[0]) == 7
    assert study.seeds == tuple(range(SEEDS))
    assert study.figure.departures_at("decisive") == ["decisive: seven steps", "all scales"]
    assert study.figure.departures_at("paper") == ["all scales"]
    assert study.claims[0]["scale"] == "decisive"


def test_a_figure_says_how_many_seeds_it_takes():
    figure = Figure(dict, print, decisive={}, seeds={"decisive": 7})
    assert [figure.seeds_at(scale) for scale in ("decisive", "quick")] == [7, SEEDS]
    assert figure.scales == SCALES
    assert Figure(dict, print).scales == ("smoke", "quick", "paper")


def test_figures_that_lack_it_are_named_and_keep_what_they_have(toy, tmp_path):
    reproduce, told = toy(fig1=plain(), fig2=plain(**MORE)), Told()
    reproduce()
    before = (tmp_path / "results/figures/toy2024/fig1/claims.json").read_bytes()
    results = reproduce(scale="decisive", screen=told)
    assert list(results.figures) == ["toy2024/fig2"]
    assert "left out, because they have no decisive scale: toy2024/fig1" in told.said
    assert (tmp_path / "results/figures/toy2024/fig1/claims.json").read_bytes() == before


def test_where_no_figure_has_it_that_is_the_answer(toy):
    with pytest.raises(
        DitherError, match=r"fig1 has no decisive scale: ask for one of smoke, quick, paper"
    ):
        toy(fig1=plain())(scale="decisive")


def test_the_command_line_knows_it(toy, tmp_path, monkeypatch):
    toy(fig1=plain(**MORE))
    monkeypatch.setenv("COLUMNS", "200")

    def dither(*words):
        return CliRunner().invoke(app, words, prog_name="dither").stdout

    assert "smoke|quick|decisive|paper" in dither("reproduce", "--help")
    assert "decisive: 2 runs × 5 seeds" in dither("show", "toy2024/fig1", "--out", str(tmp_path))
    assert "90 min" in dither("list")
    out = ("--out", str(tmp_path / "there"), "--jobs", "1")
    assert "at scale decisive: 10 runs" in dither("reproduce", "--scale", "decisive", *out)
