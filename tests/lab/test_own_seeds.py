"""Claims that ask seeds of their own, of single runs."""

import pytest
from tasks import PLAIN
from typer.testing import CliRunner

from dither.errors import DitherError
from dither.lab.cli import app
from dither.lab.page.judge import judge
from dither.lab.table import Table

SLOW, FAST = "rate 0.1", "rate 0.5"
CLAIMS = """
    def grows(table):
        return len(table.there) == 1, {"value": table.last("rate 0.5", "value")}

    claims.append(
        Claim("T2", "anew", grows, runs=["rate 0.5"], seeds={"smoke": (3, 4, 5), "paper": (9,)})
    )
    figure = Figure("""
TOY = PLAIN.replace("\n    figure = Figure(", CLAIMS).replace("**MORE", "cost={'smoke': 70}")
ROWS = {
    SLOW: {0: [(0, "value", 1.0)], 1: [(0, "value", 2.0)]},
    FAST: {seed: [(0, "value", 10.0 + seed)] for seed in (0, 1, 3, 4, 5)},
}


def entry(study, claim):
    return next(entry for entry in study.claims if entry["id"] == claim)


def seeds(folder, label, study):
    return sorted(int(path.name) for path in (folder / study.runs[label].key).glob("[0-9]*"))


def test_only_those_runs_get_those_seeds(toy, tmp_path):
    study = toy(fig1=TOY)().figures["toy2024/fig1"]
    runs = tmp_path / "results/runs"
    assert seeds(runs, SLOW, study) == [0, 1]
    assert seeds(runs, FAST, study) == [0, 1, 3, 4, 5]
    assert study.table.seeds == (0, 1)
    assert entry(study, "T1")["seeds"] == 2
    anew = entry(study, "T2")
    assert (anew["holds"], anew["seeds"], anew["numbers"]["value"]["n"]) == (True, 3, 3)


def test_at_a_scale_that_it_does_not_name_it_is_not_asked(toy):
    study = toy(fig1=TOY)(scale="quick").figures["toy2024/fig1"]
    assert entry(study, "T1")["holds"] is not None
    assert entry(study, "T2")["numbers"]["why"] == "asked at another scale: smoke, paper"


@pytest.mark.parametrize(("chosen", "absent"), [(2, 3), (range(4, 6), 1), (range(3, 9), 0)])
def test_it_is_not_judged_on_a_part_of_its_seeds(toy, chosen, absent):
    study = toy(fig1=TOY)(seeds=chosen, only=FAST).figures["toy2024/fig1"]
    anew = entry(study, "T2")
    assert (anew["holds"] is None) == bool(absent)
    if absent:
        why = f"seeds 3 to 5 of {FAST} are asked; {absent} of 3 are not there in every run"
        assert anew["numbers"]["why"] == why
    else:
        assert anew["seeds"] == 3


def test_a_missing_run_of_others_does_not_matter_and_its_own_does():
    alone = Table.of({FAST: ROWS[FAST]}, missing={SLOW: "it failed"})
    figure_claim = entry_of(alone, runs=[FAST])
    assert figure_claim["holds"] is True
    lacking = Table.of({SLOW: ROWS[SLOW]}, missing={FAST: "it failed"})
    assert "3 of 3 are not there" in entry_of(lacking, runs=[FAST])["numbers"]["why"]


def entry_of(table, **more):
    from dither.lab.figure import Claim

    check = lambda t: (t.seeds == (3, 4, 5), {"value": t.last(FAST, "value")})  # noqa: E731
    said, bug = judge(Claim("X", "x", check, seeds={"smoke": (3, 4, 5)}, **more), table, "smoke")
    assert not bug
    return said


def test_a_table_shows_shared_seeds_and_selects_more():
    table = Table.of(ROWS)
    assert table.seeds == (0, 1)
    assert table.last(FAST, "value").tolist() == [10, 11]
    assert table.numbers()["n"].to_list() == [2, 2]
    alone = table.select([FAST])
    assert alone.seeds == (0, 1, 3, 4, 5)
    assert alone.select([FAST], range(1, 4)).last(FAST, "value").tolist() == [11, 13]
    none = table.select([SLOW], [7])
    with pytest.raises(DitherError, match=r"'rate 0\.1' has no results: none of these seeds has"):
        none.last(SLOW, "value")
    with pytest.raises(DitherError, match="'rate 9' has no results: no such run"):
        table.select(["rate 9"]).last("rate 9", "value")


def test_the_list_and_the_plan_count_them(toy, tmp_path):
    toy(fig1=TOY)()
    out = str(tmp_path / "results")
    told = CliRunner().invoke(app, ["show", "toy2024/fig1", "--out", out]).output
    assert "smoke: 2 runs × 2 seeds, 3 more of single runs, 7 of 7 there" in told
    assert "quick: 2 runs × 2 seeds, 4 of 4 there" in told
    plan = CliRunner().invoke(app, ["show", "toy2024/fig1", "--scale", "smoke", "--out", "new"])
    assert "toy2024/fig1     7       70 min       10 min" in plan.output
