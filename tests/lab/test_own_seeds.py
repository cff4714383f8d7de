"""Claims that ask seeds of their own, of some runs."""

import pytest
from tasks import PLAIN, plain
from typer.testing import CliRunner

from dither.errors import DitherError
from dither.lab import catalogue, planning
from dither.lab.cli import app
from dither.lab.figure import Claim
from dither.lab.page.judge import judge
from dither.lab.runs.store import Store
from dither.lab.table import Table

SLOW, FAST, THIRD = (f"rate {r}" for r in (0.1, 0.5, 0.7))
NAME = "toy2024/fig1"
CLAIMS = """
    def anew(table):
        values = {label: table.last(label, "value") for label in table.labels}
        return list(values) == ["rate 0.1", "rate 0.5"] and table.seeds == (3, 4, 5), values

    asked = dict(runs=["rate 0.1", "rate 0.5"], seeds={"smoke": range(3, 6), "paper": (9,)})
    claims.append(Claim("T2", "anew", anew, **asked))
    figure = Figure("""
TOY = PLAIN.replace("\n    figure = Figure(", CLAIMS).replace("(0.1, 0.5)", "(0.1, 0.5, 0.7)")
ANEW = TOY.replace("**MORE", "cost={'smoke': 120}")


def entry(study, claim):
    return next(entry for entry in study.claims if entry["id"] == claim)


def why(study, claim="T2"):
    said = entry(study, claim)
    assert said["holds"] is None
    return said["numbers"]["why"]


def seeds(folder, label, study):
    return sorted(int(path.name) for path in (folder / study.runs[label].key).glob("[0-9]*"))


def test_only_those_runs_get_those_seeds(toy, tmp_path):
    study = toy(fig1=ANEW)().figures[NAME]
    runs = tmp_path / "results/runs"
    assert [seeds(runs, b, study) for b in (SLOW, FAST, THIRD)] == [[0, 1, 3, 4, 5]] * 2 + [[0, 1]]
    assert study.table.seeds == (0, 1)
    assert study.table.numbers()["n"].unique().to_list() == [2]
    assert (entry(study, "T1")["seeds"], entry(study, "T1")["numbers"]["slow"]["n"]) == (2, 2)
    said = entry(study, "T2")
    assert (said["holds"], said["seeds"], said["numbers"][FAST]["n"]) == (True, 3, 3)
    page = (tmp_path / "results/index.html").read_text()
    assert "3 runs × 2 seeds, and 6 at seeds that a claim asks" in page


def test_other_claims_do_not_see_them_where_every_run_has_them(toy):
    study = toy(fig1=ANEW)(only=[SLOW, FAST]).figures[NAME]
    assert study.table.seeds == (0, 1)
    assert entry(study, "T1")["seeds"] == 2
    assert entry(study, "T2")["seeds"] == 3


def test_at_a_scale_that_it_does_not_name_it_is_not_asked(toy):
    study = toy(fig1=ANEW)(scale="quick").figures[NAME]
    assert [claim["id"] for claim in study.claims] == ["T1"]


@pytest.mark.parametrize(
    ("chosen", "only", "lacks"),
    [
        (2, [], "'rate 0.1' lacks 3–5: left out (--seeds)"),
        (range(4, 6), [], "'rate 0.1' lacks 3: left out (--seeds)"),
        (range(3, 6), [SLOW], r"'rate 0.5' lacks 3–5: left out (--only)"),
        (range(3, 6), [SLOW, FAST], ""),
    ],
)
def test_it_is_not_judged_on_a_part(toy, chosen, only, lacks):
    study = toy(fig1=ANEW)(seeds=chosen, only=only).figures[NAME]
    if lacks:
        assert why(study) == f"could not be judged: seeds 3–5 are asked; {lacks}"
    else:
        assert entry(study, "T2")["holds"] is True


def test_what_is_there_counts_whichever_seeds_are_chosen(toy, tmp_path):
    reproduce = toy(fig1=ANEW)
    reproduce()
    study = reproduce(seeds=1).figures[NAME]
    assert (entry(study, "T1")["seeds"], entry(study, "T2")["holds"]) == (1, True)
    page = (tmp_path / "results/index.html").read_text()
    assert "3 runs × 1 seed, and 6 at seeds that a claim asks" in page
    assert "anew (seeds 3–5 alone)" in page
    out = str(tmp_path / "results")
    told = CliRunner().invoke(app, ["show", NAME, "--out", out]).output
    assert "T2 holds: anew (seeds 3–5 alone)" in told


def fails_at(*seeds):
    """The toy with a run that fails at these seeds."""
    settings = {"function": "tasks:broken_at", "at": seeds}
    return TOY.replace("**MORE", f"smoke={settings}")


def test_one_that_fails_is_told_and_spoils_nothing_else(toy, tmp_path):
    study = toy(fig1=fails_at(4))().figures[NAME]
    assert entry(study, "T1")["holds"] is True
    assert study.table.seeds == (0, 1)
    assert "seeds 3–5 are asked; 'rate 0.5' lacks 4: seed 4 broke" in why(study)
    assert entry(study, "T2")["seeds"] == 0
    page = (tmp_path / "results/index.html").read_text()
    assert "Not there for a claim: rate 0.5, seed 4:</strong> seed 4 broke" in page
    assert "3 runs × 2 seeds, and 5 at seeds that a claim asks" in page


def test_one_that_fails_again_is_told_and_the_earlier_one_counts(toy, tmp_path, monkeypatch):
    reproduce = toy(fig1=fails_at())
    reproduce()
    monkeypatch.setattr("tasks.BROKEN", (4,))
    study = reproduce(again=True).figures[NAME]
    assert entry(study, "T2")["holds"] is True
    page = (tmp_path / "results/index.html").read_text()
    assert "because a run failed when computed again: rate 0.5, seed 4: seed 4 broke" in page


def test_a_run_that_fails_gives_its_reason_to_each_of_its_labels(toy):
    twin = """
    alone = runs

    def runs(**how):
        by_label = alone(**how)
        return {"twin": by_label["rate 0.5"], **by_label}

    def plot("""
    study = toy(fig1=fails_at(4).replace("\n    def plot(", twin))().figures[NAME]
    assert next(iter(study.runs)) == "twin"
    assert "'rate 0.5' lacks 4: seed 4 broke" in why(study)


def test_own_seeds_may_be_the_figures(toy, tmp_path):
    """Each row is read once; a seed of the figure that is damaged takes none of the others."""
    overlap = ANEW.replace("range(3, 6)", "(1, 3)").replace("(3, 4, 5)", "(1, 3)")
    reproduce = toy(fig1=overlap)
    study = reproduce().figures[NAME]
    assert entry(study, "T2")["holds"] is True
    assert [len(study.table.select([b], [1, 3]).frame) for b in (SLOW, FAST)] == [10, 10]
    (tmp_path / f"results/runs/{study.runs[FAST].key}/0/rows.parquet").write_bytes(b"nothing")
    study = reproduce().figures[NAME]
    assert FAST in study.table.missing
    assert entry(study, "T2")["holds"] is True


def test_a_run_that_lacks_the_figures_seeds_is_still_asked_at_its_own(toy):
    study = toy(fig1=fails_at(0, 1))().figures[NAME]
    assert FAST in study.table.missing
    assert entry(study, "T1")["holds"] is None
    assert entry(study, "T2")["holds"] is True


def test_one_that_is_damaged_is_told_and_spoils_nothing_else(toy, tmp_path):
    reproduce = toy(fig1=ANEW)
    key = reproduce().figures[NAME].runs[FAST].key
    (tmp_path / f"results/runs/{key}/4/rows.parquet").write_bytes(b"nothing")
    results = reproduce()
    study = results.figures[NAME]
    assert entry(study, "T1")["holds"] is True
    assert "'rate 0.5' lacks 4: " in why(study)
    assert "rows.parquet" in why(study)
    assert any("rows.parquet" in text for text in results.damaged)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"seeds": {"smoke": (1,)}}, "claim X: seeds of its own need runs, and runs need seeds"),
        ({"runs": [FAST]}, "need runs"),
        ({"runs": FAST, "seeds": {"smoke": (1,)}}, "runs are a list of labels, got 'rate 0.5'"),
        ({"runs": [FAST], "seeds": {"smok": (1,)}}, "'smok' is no scale"),
        ({"runs": [FAST], "seeds": {"smoke": (1, 1)}}, r"seeds \[1, 1\]: give each once"),
        ({"runs": [FAST], "seeds": {"smoke": (-1,)}}, r"seeds \[-1\]: give each once, from 0"),
        ({"runs": [FAST], "seeds": {"smoke": ()}}, "give each once"),
    ],
)
def test_a_claim_that_asks_nonsense(asked, match):
    with pytest.raises(DitherError, match=match):
        Claim("X", "x", lambda t: (None, {}), **asked)


def test_a_label_that_is_no_run_is_a_problem_of_the_figure_before_any_work(toy):
    wrong = ANEW.replace('runs=["rate 0.1"', 'runs=["rate 0.11"')
    study = toy(fig1=wrong)().figures[NAME]
    assert study.problem == f"{NAME}: claim T2 asks runs that it lacks: 'rate 0.11'"


def test_every_claim_of_every_figure_asks_runs_that_there_are():
    asking = {
        (name, scale): len(catalogue.find(name).at(scale))  # raises for a run that it lacks
        for name in catalogue.names()
        for claim in catalogue.find(name).claims
        for scale in claim.seeds
    }
    assert ("levi2022/table2", "decisive") in asking


def test_a_table_selects():
    rows = {SLOW: {0: [(0, "q", 1.0)]}, FAST: {0: [(0, "q", 2.0)]}}
    more = Table.of({SLOW: {3: [(0, "q", 5.0)]}, FAST: {3: [(0, "q", 7.0)], 4: [(0, "q", 8.0)]}})
    table = Table(Table.of(rows).frame, {THIRD: "it failed"}, more.frame, {(SLOW, 4): "it broke"})
    assert table.seeds == (0,)
    assert table.select([FAST], [0, 4]).last(FAST, "q").tolist() == [2, 8]
    both = table.select([FAST, SLOW], [3])
    assert (both.seeds, both.there) == ((3,), (SLOW, FAST))
    for labels, chosen, match in (
        ([SLOW], [3, 4], "seeds 3, 4 are asked; 'rate 0.1' lacks 4: it broke$"),
        ([SLOW], [3, 4, 9], "'rate 0.1' lacks 4, 9: it broke; it has no results$"),
        ([FAST, THIRD], [3], "'rate 0.7' lacks 3: it has no results$"),
    ):
        with pytest.raises(DitherError, match=match):
            table.select(labels, chosen)


def test_a_claim_sees_its_own_runs_alone():
    table = Table(Table.of({FAST: {0: [(0, "q", 1.0)]}}).frame, {SLOW: "it failed"})
    check = lambda t: (t.labels == (FAST,), {})  # noqa: E731
    own = Claim("X", "x", check, runs=[FAST], seeds={"smoke": (0,)})
    assert judge(own, table, "smoke")[0]["holds"] is True
    assert judge(Claim("X", "x", check), table, "smoke")[0]["holds"] is None  # SLOW is missing


def test_the_list_counts_them(toy, tmp_path):
    toy(fig1=ANEW)()
    out = str(tmp_path / "results")
    told = CliRunner().invoke(app, ["show", NAME, "--out", out]).output
    assert "smoke: 3 runs × 2 seeds and 6 more, 12 of 12 there" in told
    assert "quick: 3 runs × 2 seeds, 6 of 6 there" in told


@pytest.mark.parametrize("first", ["fig1", "fig2"])
def test_the_plan_counts_them_where_figures_share_runs(toy, tmp_path, first):
    """Whichever figure is the cheaper."""
    cost = {name: {"smoke": 120 if name == first else 240} for name in ("fig1", "fig2")}
    toy(
        fig1=TOY.replace("**MORE", f"cost={cost['fig1']}"),
        fig2=plain(cost=cost["fig2"]).replace("(0.1, 0.5)", "(0.1, 0.5, 0.7)"),
    )
    both = [catalogue.find(f"toy2024/{name}") for name in ("fig1", "fig2")]
    costs = {c.figure.name: c for c in planning.costs(both, "smoke", Store(tmp_path / "none"))}
    asking, plain_one = costs["toy2024/fig1"], costs["toy2024/fig2"]
    expected = {"fig1": ((12, 0), (0, 6)), "fig2": ((6, 6), (6, 0))}[first]
    assert ((asking.runs, asking.shared), (plain_one.runs, plain_one.shared)) == expected
    assert asking.hours == pytest.approx([cost["fig1"]["smoke"] / 60 / 12] * asking.runs)
