"""`reproduce --only`: some of a figure's runs, and what becomes of the rest."""

import pytest
from tasks import counting, plain

from dither.errors import DitherError
from dither.lab.table import Table
from dither.papers import ends
from dither.papers.levi2022 import methods


def test_only_some_runs(toy, tmp_path):
    more, noted = counting(tmp_path)
    reproduce = toy(fig1=plain(smoke=more))
    study = reproduce(only="*0.5").figures["toy2024/fig1"]
    assert noted() == ["0.5 0", "0.5 1"]
    (claim,) = study.claims
    assert claim["holds"] is None
    assert "'rate 0.1' has no results: left out (--only)" in claim["numbers"]["why"]
    assert study.command.startswith("dither reproduce toy2024/fig1 --scale smoke --only '*0.5'")
    (claim,) = reproduce(only=["rate 0.1"]).claims  # what is there counts, asked for or not
    assert claim["holds"] is True
    assert sorted(noted()) == ["0.1 0", "0.1 1", "0.5 0", "0.5 1"]


def test_only_runs_that_there_are(toy):
    with pytest.raises(
        DitherError, match=r"--only rate 0.7: no run is called that.*'rate 0.5'.*repeat"
    ):
        toy(fig1=plain())(only=["rate 0.7"])


ALL_OF_THEM = """

    def small(table):
        return all((table.last(label, "value") < 9).all() for label in table.labels), {}

    claims.append(Claim("all", "every rate ends below 9", small))
    figure = Figure(runs, plot, claims=claims, seeds=dict(smoke=2, quick=2, paper=4))
"""


def test_a_claim_about_all_runs_is_not_judged_on_some(toy):
    reproduce = toy(fig1=plain().rstrip() + ALL_OF_THEM)
    *_, claim = reproduce(only="*0.5").claims
    assert claim["holds"] is None
    assert "'rate 0.1' has no results: left out (--only)" in claim["numbers"]["why"]
    *_, claim = reproduce().claims
    assert claim["holds"] is True


def test_only_leaves_other_figures_and_earlier_results_alone(toy, tmp_path):
    other = plain().replace("(0.1, 0.5)", "(0.2, 0.7)")
    reproduce = toy(fig1=plain(), fig2=other)
    reproduce(seeds=1)
    before = (tmp_path / "results/figures/toy2024/fig2/claims.json").read_bytes()
    results = reproduce(seeds=2, only="*0.5")
    assert set(results.figures) == {"toy2024/fig1"}
    assert (tmp_path / "results/figures/toy2024/fig2/claims.json").read_bytes() == before
    (claim,) = results.claims  # the seed that both runs have
    assert (claim["holds"], claim["seeds"]) == (True, 1)
    assert (tmp_path / "results/figures/toy2024/fig1/figure.svg").is_file()


def test_only_takes_a_shared_run_by_either_label(toy):
    other = plain().replace('"rate ', '"speed ')
    results = toy(fig1=plain(), fig2=other)(only=["rate 0.1", "speed 0.5"])
    assert [claim["holds"] for claim in results.claims] == [True, True]


def test_an_asked_run_that_fails_is_what_is_told(toy):
    reproduce = toy(fig1=plain(smoke={"function": "tasks:faulty", "how": "sentence"}))
    study = reproduce(only="*0.5").figures["toy2024/fig1"]
    assert "site 'fc9' matches nothing" in study.problem


def test_a_wrong_pattern_leaves_no_folder(toy, tmp_path):
    with pytest.raises(DitherError, match="no run is called that"):
        toy(fig1=plain())(only=["rate 0.7"])
    assert not (tmp_path / "results").exists()


def test_a_run_that_is_missing_has_not_diverged_or_scored_chance():
    """A quantity that a run did not record is one thing, a run that is not there another."""
    table = Table.of({"FC none": {0: [(0, "accuracy/test", 0.9)]}}, {"FC L2": "left out (--only)"})
    assert ends.end(table, "FC none", "corrupted/0.5", 0.1).tolist() == [0.1]
    for ask in (ends.diverged, ends.end, methods.large, lambda t, label: t.quantities(label)):
        with pytest.raises(DitherError, match="'FC L2' has no results: left out"):
            ask(table, "FC L2")
