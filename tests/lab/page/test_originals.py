"""The papers' own claims: which entry speaks for each, and what its verdict is made of."""

import json
import re

import pytest

from dither.lab import catalogue
from dither.lab.original import Original
from dither.lab.page import originals

PAPERS = {"camuto2020": ("C", 15), "levi2022": ("L", 20), "orvieto2022": ("O", 19)}


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """Two folders, and a paper with two claims; `write` puts entries into one of them."""
    listed = (
        Original(
            "P1",
            "One.",
            "Fig. 1",
            ("p/fig1: P1 a", "p/fig1: P1 b"),
            "more",
            limits="at ten times the rate",
        ),
        Original("P10", "Ten.", "Fig. 2", ("p/fig2: P10",), "a run"),
    )
    monkeypatch.setattr(catalogue, "originals", lambda paper: listed)
    both = tmp_path / "records", tmp_path / "results"

    def write(root, name, scale, **holds):
        folder = both[root] / "figures" / name
        folder.mkdir(parents=True)
        entries = [
            {"id": id.replace("_", " "), "claim": "c", "holds": verdict, "numbers": {"why": "w"},
             "seeds": 5}
            for id, verdict in holds.items()
        ]  # fmt: skip
        about = {"name": name, "title": "t", "scale": scale, "seeds": [0], "left out": []}
        (folder / "claims.json").write_text(json.dumps(entries))
        (folder / "figure.json").write_text(json.dumps(about))

    return both, write


@pytest.mark.parametrize(
    ("a", "b", "holds"),
    [(True, True, True), (True, False, False), (None, False, False), (True, None, None)],
)
def test_a_claim_of_several_holds_if_all_do_and_fails_if_one_fails(roots, a, b, holds):
    both, write = roots
    write(0, "p/fig1", "paper", P1_a=a, P1_b=b)
    one, ten = originals.rows("p", originals.known(*both))
    assert one.holds is holds
    assert (one.missing == "") == (holds is not None)
    assert ten.holds is None
    assert ten.missing == "a run"


@pytest.mark.parametrize("scale", ["quick", "decisive", "paper"])
@pytest.mark.parametrize("holds", [True, False, None])
def test_the_limits_of_a_verdict_stand_beside_the_scale_that_has_them(roots, scale, holds):
    both, write = roots
    write(0, "p/fig1", scale, P1_a=holds, P1_b=True)
    one, ten = originals.rows("p", originals.known(*both))
    limited = scale == "decisive" and holds is not None
    assert one.limits == ("at ten times the rate" if limited else "")
    assert ten.limits == ""


def test_the_largest_scale_that_judges_it_speaks(roots):
    both, write = roots
    write(0, "p/fig1", "paper", P1_a=None, P1_b=True)
    write(1, "p/fig1", "quick", P1_a=False, P1_b=False)
    one, _ = originals.rows("p", originals.known(*both))
    found = {
        name: (entry["scale"], entry["holds"]) for name, entry in one.deciding.items() if entry
    }
    assert found == {"p/fig1: P1 a": ("quick", False), "p/fig1: P1 b": ("paper", True)}
    assert one.holds is False
    assert one.scale == "quick"


def test_if_no_scale_judges_it_the_largest_that_compared_something_speaks():
    nothing = {"holds": None, "numbers": {"why": "no results"}}
    found = {"asked": "> 0.1", "holds": None}
    interval = {"holds": None, "numbers": {"why": "does not settle it", "a − b": found}}
    paper, decisive, quick = {"scale": "paper"}, {"scale": "decisive"}, {"scale": "quick"}
    entries = [{**nothing, **paper}, {**interval, **decisive}, {**interval, **quick}]
    assert originals.best(entries) == entries[1]
    assert originals.best([{**nothing, **paper}, {**nothing, **quick}]) == {**nothing, **paper}
    judged = {**nothing, **quick, "holds": False}
    assert originals.best([*entries, judged]) == judged


def test_variants_are_those_of_the_same_number(roots):
    both, write = roots
    write(0, "p/fig1", "paper", P1_a=True, P1_b=True, P1_c=False, P10_x=True, other=True)
    one, ten = originals.rows("p", originals.known(*both))
    assert list(one.variants) == ["p/fig1: P1 c"]
    assert list(ten.variants) == ["p/fig1: P10 x"]
    assert one.holds is True
    assert list(originals.ours("p", originals.known(*both))) == ["p/fig1: other"]


@pytest.mark.parametrize("paper", PAPERS)
def test_every_claim_of_the_papers_is_decided_by_claims_there_are(paper):
    letter, n = PAPERS[paper]
    listed = catalogue.originals(paper)
    assert [o.id for o in listed] == [f"{letter}{i}" for i in range(1, n + 1)]
    names = {name for o in listed for name in (b.partition(": ")[0] for b in o.by)}
    there = {f"{name}: {c.id}" for name in names for c in catalogue.find(name).claims}
    assert {by for o in listed for by in o.by} <= there
    assert all(re.match(rf"{o.id}(?!\d)", by.partition(": ")[2]) for o in listed for by in o.by)
    assert all(o.text.endswith(".") and o.place for o in listed)
    assert all(o.counts or o.text.endswith("cannot fail.") for o in listed)
    rows = originals.rows(paper, {})  # nothing is run: each says in a sentence what would settle it
    assert all(re.fullmatch(r"[A-Z0-9].*\.", row.missing) for row in rows)


def test_a_claim_that_cannot_fail_says_so_in_place_of_a_verdict():
    free = [o for paper in PAPERS for o in catalogue.originals(paper) if not o.counts]
    assert [o.id for o in free] == ["C2", "L5"]
    assert originals.Row(free[0], {"x": {"holds": True}}).said == ("cannot fail", "○")


def test_what_was_not_run_is_told_beside_what_was():
    both = originals.Row(Original("P1", "It is so.", "§1", ("p/f: P1 a", "p/f: P1 b")),
                         {"p/f: P1 a": {"holds": True}, "p/f: P1 b": None})  # fmt: skip
    assert both.parts == "P1 a ✓, P1 b not run"
    assert originals.Row(both.original, dict.fromkeys(both.original.by)).parts == ""


def test_a_paper_without_a_list_has_no_rows():
    assert originals.rows("beyond", {}) == []
