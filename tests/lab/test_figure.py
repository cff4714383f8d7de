import hashlib
import re
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tasks import paper, plain

from dither.errors import DitherError
from dither.lab import catalogue, identity
from dither.lab.figure import Claim, Figure, Run, Silent, Task
from dither.lab.runs.execute import execute
from dither.lab.table import Table
from dither.lab.wording import duration, title_and_caption


@dataclass(frozen=True)
class Net:
    widths: tuple[int, ...] = (784, 64, 10)
    activation: str = "relu"

    def build_stacked(self, seeds): ...


@dataclass(frozen=True)
class Until:
    sigma: float
    step: int
    note: str = field(default="", compare=False)


@dataclass(frozen=True)
class Unlabelled:
    sigma: float
    step: int


def run(**changed):
    said = {
        "data": "planted",
        "model": Net(),
        "optimiser": ("sgd", 0.1),
        "noise": Until(0.1, 5),
        "steps": 10,
    }
    return Run(**{**said, **changed})


# ----------------------------------------------------------------------------------------- identity

CHANGES = {
    "data": "sinusoids",
    "model": Net(activation="elu"),
    "optimiser": ("sgd", 0.2),
    "noise": Until(0.2, 5),
    "draw": "cycle",
    "by": "layer",
    "objective": "explicit",
    "loss": "half_square",
    "batch": 7,
    "epochs": 3,
    "steps": 11,
    "stop": 0.98,
    "schedule": "cosine",
    "watch": (Net(),),
    "statistics": "keep",
    "precision": "bf16",
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_of_a_run_is_part_of_its_identity(name):
    changed = {name: CHANGES[name]} | ({"steps": None} if name == "epochs" else {})
    assert run(**changed).key != run().key


def test_no_field_of_a_run_was_forgotten_above():
    assert {f.name for f in fields(Run)} == set(CHANGES)


def test_a_nested_field_is_part_of_the_identity():
    assert (
        run(noise={"fc0": Until(Until(0.1, 3), 5)}).key
        != run(noise={"fc0": Until(Until(0.1, 4), 5)}).key
    )


def test_what_does_not_compare_is_not():
    assert run(noise=Until(0.1, 5, note="a")).key == run(noise=Until(0.1, 5, note="b")).key


def test_a_later_field_is_said_where_it_differs():
    @dataclass(frozen=True)
    class Net:
        width: int = 4
        norm: str = field(default="none", metadata=identity.LATER)

    said = {"is": identity.class_name(Net), "width": 4}
    assert identity.canonical(Net()) == identity.canonical(Net(norm="none")) == said
    assert identity.canonical(Net(norm="batch")) == said | {"norm": "batch"}


def test_an_identity_outlives_the_process():
    task = Task.of("tasks:decay", rate=0.5, steps=3)
    said = '{"function":"tasks:decay","is":"Task","kwargs":[["rate",0.5],["steps",3]]}'
    assert task.key == hashlib.sha256(said.encode()).hexdigest()[:16]


leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
)
things = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=8)


@given(st.dictionaries(st.text(max_size=4), things, max_size=5))
def test_the_order_of_names_does_not_count(said):
    backwards = dict(reversed(said.items()))
    assert identity.key(said) == identity.key(backwards)


@given(things, things)
def test_equal_things_and_only_they_have_equal_keys(a, b):
    # Python calls True and 1 equal; an experiment that says one does not say the other.
    same = a == b and repr(a).replace(".0", "") == repr(b).replace(".0", "")
    if identity.key(a) == identity.key(b):
        assert a == b
    elif same:
        pytest.fail(f"{a!r} and {b!r} are equal, their keys are not")


@given(st.integers(-(2**53), 2**53))
def test_a_whole_number_may_be_spelt_as_a_float(n):
    assert (
        identity.key(n)
        == identity.key(float(n))
        == identity.key(np.float64(n))
        == identity.key(np.int64(n))
    )


def test_two_classes_with_the_same_fields_differ():
    assert identity.key(Until(0.1, 5)) != identity.key(Unlabelled(0.1, 5))


@pytest.mark.parametrize(
    ("thing", "match"),
    [
        (lambda: 0, "lambda.*top of a module"),
        (np.zeros(2), "ndarray.*no identity that lasts"),
        ({1, 2}, r"Run.noise\[1\]\[0\] is a set"),
        ({3: "x"}, "the key 3: only strings"),
    ],
)
def test_what_has_no_lasting_identity_is_named(thing, match):
    with pytest.raises(DitherError, match=match):
        identity.key(run(noise=(("fc0", 1), (thing, 2))))


# ----------------------------------------------------------------------------------- runs and tasks


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"steps": None}, "epochs or steps"),
        ({"epochs": 3}, "epochs or steps"),
        ({"steps": 0}, "steps = 0"),
        ({"batch": -1}, "batch = -1"),
        ({"objective": "implicit"}, "'implicit' is none of"),
        ({"objective": "explicit", "noise": None}, "noise is None"),
    ],
)
def test_a_run_that_says_nonsense(changed, match):
    with pytest.raises(DitherError, match=match):
        run(**changed)


def test_noise_by_pattern_is_hashable():
    by_pattern = run(noise={"fc0": Until(0.1, 5), "fc1": Until(0.2, 5)})
    assert by_pattern.noise == (("fc0", Until(0.1, 5)), ("fc1", Until(0.2, 5)))
    assert hash(by_pattern) == hash(replace(by_pattern))


def test_narrow_networks_are_stacked():
    assert run(model=Net((784, 64, 10))).stacked
    assert not run(model=Net((784, 257, 10))).stacked
    assert not run(model="no build_stacked").stacked


def test_a_task_runs_its_function():
    rows = execute(Task.of("tasks:decay", rate=0.0, steps=2), [3], Silent())
    assert rows == {3: [(0, "value", 1.003), (1, "value", 1.003)]}


def test_a_task_does_not_mind_the_order_of_its_arguments():
    assert Task.of("tasks:decay", rate=1, steps=2) == Task.of("tasks:decay", steps=2, rate=1)
    assert Task.of("tasks:decay", rate=[1, 2]).kwargs == (("rate", (1, 2)),)


def test_tasks_that_cannot_be_found():
    with pytest.raises(DitherError, match=r"'package\.module:name', got 'decay'"):
        Task.of("decay")
    with pytest.raises(DitherError, match="tasks has no function 'decoy'"):
        execute(Task.of("tasks:decoy"), [0], Silent())
    with pytest.raises(DitherError, match="top of a module"):
        Task.of(lambda seed, progress: [])


def test_departures_are_those_of_the_scale():
    figure = Figure(dict, print, departures=["quick: 3 epochs", "paper: 20 seeds", "always"])
    assert figure.departures_at("quick") == ["quick: 3 epochs", "always"]


def test_a_figure_of_something_else():
    with pytest.raises(DitherError, match="'a' is a str, not a Run or a Task"):
        Figure(lambda: {"a": "b"}, print).at("smoke")
    with pytest.raises(DitherError, match="'big' is none of smoke, quick, decisive, paper"):
        Figure(dict, print).at("big")


def test_title_and_caption():
    title, caption = title_and_caption(
        "Figure 3 (cf. Fig. 2): phases. One layer,\nη = 0.01.   Levi et al. 2022\n\n"
        "    R = σ²/2  ‖g‖²\n    S = 1\n\nMore\nof it."
    )
    assert title == "Figure 3 (cf. Fig. 2): phases"
    assert caption == (
        "One layer, η = 0.01. · Levi et al. 2022\n\n    R = σ²/2  ‖g‖²\n    S = 1\n\nMore of it."
    )
    assert title_and_caption("A title.   Toy 2024, Fig. 1") == ("A title", "Toy 2024, Fig. 1")
    assert title_and_caption("What eq. 14 is. More.") == ("What eq. 14 is", "More.")
    assert title_and_caption("Figure 1: a title   Toy 2024") == ("Figure 1: a title", "Toy 2024")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.42, "0.4 s"), (6, "6 s"), (9.96, "10 s"), (12.3, "12 s"), (90, "90 s"), (180, "3 min"),
     (210, "3.5 min"), (9000, "2.5 h"), (36e3, "10 h"), (1.2e6, "14 days")],
)  # fmt: skip
def test_duration(seconds, words):
    assert duration(seconds) == words


# -------------------------------------------------------------------------------------------- table


@pytest.fixture
def table():
    return Table.of(
        {
            "none": {0: [(0, "loss", 2.0), (1, "loss", 1.0)], 1: [(0, "loss", 3.0)]},
            "gni": {0: [(5, "acc", 0.5)], 1: [(7, "acc", 0.6), (7, "diverged", 7)]},
        },
        missing={"r": "it failed"},
    )


def test_series_of_seeds_that_stopped_early(table):
    steps, values = table.series("none", "loss")
    np.testing.assert_array_equal(steps, [0, 1])
    np.testing.assert_array_equal(values, [[2, 1], [3, np.nan]])


def test_first_and_last_are_each_seeds_own(table):
    np.testing.assert_array_equal(table.last("none", "loss"), [1, 3])
    np.testing.assert_array_equal(table.first("none", "loss"), [2, 3])
    np.testing.assert_array_equal(table.last("gni", "diverged"), [np.nan, 7])


def test_a_table_knows_what_is_in_it(table):
    assert table.labels == ("none", "gni")
    assert table.seeds == (0, 1)
    assert table.quantities("gni") == ["acc", "diverged"]
    assert table.numbers().row(0) == ("none", "loss", 0.0, 2, 2.5, pytest.approx(0.5**0.5))


def test_asking_for_what_is_not_there(table):
    with pytest.raises(DitherError, match="no run 'nonee'; there is 'none'"):
        table.last("nonee", "loss")
    with pytest.raises(DitherError, match="no quantity 'los'; there is 'loss'"):
        table.last("none", "los")
    with pytest.raises(DitherError, match="'r' has no results: it failed"):
        table.last("r", "loss")


# ---------------------------------------------------------------------------------------- catalogue


@pytest.fixture
def papers(tmp_path, monkeypatch):
    helper = '"""Shared."""\nx = 1\n'
    paper(
        tmp_path,
        monkeypatch,
        fig10=plain(),
        fig2=plain(),
        table1=plain(),
        nets=helper,
        broken="figure = 1 / 0",
    )


def test_names_in_reading_order_and_without_importing(papers):
    assert catalogue.names() == [
        "toy2024/fig2",
        "toy2024/fig10",
        "toy2024/broken",
        "toy2024/table1",
    ]
    assert catalogue.title("toy2024/fig2") == "Figure 1: a decay"
    assert catalogue.paper("toy2024") == "Toy et al. 2024, On Nothing"


def test_a_figure_is_found_by_name(papers):
    figure = catalogue.find("toy2024/fig2")
    assert figure.name == "toy2024/fig2"
    assert figure.doc.startswith("Figure 1: a decay")
    assert list(figure.at("smoke")) == ["rate 0.1", "rate 0.5"]
    assert isinstance(figure.claims[0], Claim)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["toy2024/fig2"], ["fig2"]),
        (["toy2024"], ["fig2", "fig10", "broken", "table1"]),
        (["*/fig*"], ["fig2", "fig10"]),
        (["*/table1", "toy2024/fig*", "toy2024.fig2"], ["table1", "fig2", "fig10"]),
        ([], ["fig2", "fig10", "broken", "table1"]),
    ],
)
def test_patterns(papers, patterns, names):
    assert catalogue.match(patterns) == [f"toy2024/{name}" for name in names]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("toy2024/fig3", "did you mean toy2024/fig2"),
        ("toy2042/fig10", "did you mean toy2024/fig10"),
        ("fig10", "did you mean toy2024/fig10"),
        ("toy204", "did you mean toy2024"),
        ("zzz", "`dither list`"),
    ],
)
def test_an_unknown_name_is_told_its_neighbours(papers, name, match):
    with pytest.raises(DitherError, match=f"no figure is called '{name}'; .*{re.escape(match)}"):
        catalogue.match([name])


def test_a_broken_figure_says_why(papers):
    with pytest.raises(DitherError, match="toy2024/broken can't be imported: ZeroDivisionError"):
        catalogue.find("toy2024/broken")
