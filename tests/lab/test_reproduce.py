import csv
import json
import re

import pytest
import tasks
from tasks import counting, plain

from dither.errors import DitherError
from dither.lab import reproduce as runner
from dither.lab.data import needs
from dither.lab.figure import Run
from dither.lab.runs.screen import Quiet
from dither.lab.runs.store import Store
from dither.lab.runs.workers import Job


class Told(Quiet):
    """Remembers what is said and which jobs fail."""

    def __init__(self):
        self.said, self.order, self.reports = [], [], []

    def say(self, text):
        self.said.append(text)

    def start(self, job):
        self.order.append(job.label)

    def update(self, job, done, total):
        self.reports.append((str(job), done, total))


def read(folder, name):
    return json.loads((folder / "results/figures/toy2024/fig1" / name).read_text(encoding="utf-8"))


# ----------------------------------------------------------------------------------- a whole figure


def test_from_a_name_to_a_page(toy, tmp_path):
    results = toy(fig1=plain())("toy2024/fig1")
    folder = tmp_path / "results" / "figures" / "toy2024" / "fig1"
    assert sorted(p.name for p in folder.iterdir()) == [
        "claims.json", "figure.json", "figure.png", "figure.svg", "numbers.csv",
    ]  # fmt: skip
    (claim,) = read(tmp_path, "claims.json")
    assert list(claim) == ["id", "claim", "holds", "numbers", "seeds", "scale"]
    assert (claim["id"], claim["holds"], claim["seeds"], claim["scale"]) == ("T1", True, 2, "smoke")
    assert claim["numbers"]["fast"]["mean"] == pytest.approx(2.718**-2 + 0.0005)
    assert results.claims == [claim]
    assert repr(results) == f"toy2024/fig1: 1 claim holds\nThe page: {results.page}"
    assert "faster is lower" in results.page.read_text(encoding="utf-8")
    with (folder / "numbers.csv").open(encoding="utf-8") as file:
        first = next(csv.DictReader(file))
    assert first["run"] == "rate 0.1"
    assert (float(first["n"]), float(first["mean"])) == (2, 1.0005)


def test_a_second_call_computes_nothing(toy, tmp_path):
    settings, noted = counting(tmp_path)
    reproduce = toy(fig1=plain(smoke=settings))
    first = reproduce()
    assert sorted(noted()) == ["0.1 0", "0.1 1", "0.5 0", "0.5 1"]
    assert reproduce().claims == first.claims
    assert len(noted()) == 4


def test_more_seeds_compute_only_what_is_missing(toy, tmp_path):
    settings, noted = counting(tmp_path)
    reproduce = toy(fig1=plain(smoke=settings))
    reproduce(seeds=1)
    results = reproduce(seeds=range(1, 3))
    assert sorted(noted()) == ["0.1 0", "0.1 1", "0.1 2", "0.5 0", "0.5 1", "0.5 2"]
    assert results.figures["toy2024/fig1"].table.seeds == (1, 2)
    assert read(tmp_path, "figure.json")["command"].endswith(
        f"--seeds 1:3 --out {tmp_path / 'results'}"
    )


def test_again_computes_once_more(toy, tmp_path):
    settings, noted = counting(tmp_path)
    reproduce = toy(fig1=plain(smoke=settings))
    reproduce()
    reproduce(again=True)
    assert len(noted()) == 8


def test_what_failed_again_is_told_as_earlier(toy, tmp_path, monkeypatch):
    reproduce, told = toy(fig1=plain()), Told()
    reproduce()
    decay = tasks.decay

    def bug(seed, progress, rate, steps):
        return decay(seed, progress, rate, steps if rate < 0.2 else None)

    monkeypatch.setattr(tasks, "decay", bug)
    results = reproduce(again=True, screen=told)
    said = "toy2024/fig1: 1 claim holds; rate 0.5 failed this time"
    said += ": results of an earlier run were used"
    assert said in told.said
    assert len(results.failures) == 2
    assert read(tmp_path, "figure.json")["earlier"] == ["rate 0.5"]
    page = results.page.read_text(encoding="utf-8")
    assert "From earlier runs,</strong> because a run failed when computed again: rate 0.5" in page


def test_claims_that_fail_are_told_at_the_end(toy):
    told = Told()
    false = plain().replace("return bool(", "return not bool(").replace("T1", "T2")
    results = toy(fig1=plain(), fig2=false)(screen=told)
    assert told.said[-3:] == ["fails:", "  toy2024/fig2 T2: faster is lower", told.said[0]]
    assert results.failed_claims == {"toy2024/fig2 T2": results.claims[1]}


def test_a_run_that_figures_share_is_computed_once(toy, tmp_path):
    settings, noted = counting(tmp_path)
    results = toy(fig1=plain(smoke=settings), fig2=plain(smoke=settings))(jobs=2)
    assert len(noted()) == 4
    assert [c["holds"] for c in results.claims] == [True, True]


def test_the_cheapest_figure_comes_first_and_the_unknown_last(toy, tmp_path):
    told = Told()
    toy(
        fig1=plain(smoke={"steps": 3}),
        fig2=plain(smoke={"steps": 4}, cost={"smoke": 9}),
        fig3=plain(smoke={"steps": 5}, cost={"smoke": 1}),
    )(screen=told)
    figures = [label.split(" · ")[0][-4:] for label in told.order]
    assert list(dict.fromkeys(figures)) == ["fig3", "fig2", "fig1"]


def test_the_page_comes_first_and_each_figure_is_told(toy, tmp_path):
    told = Told()
    toy(fig1=plain(cost={"smoke": 0.5}))(screen=told)
    page, opening, figure, again = told.said
    assert page == again
    assert page == f"The page: {tmp_path / 'results' / 'index.html'}"
    assert opening == (
        "1 figure at scale smoke: 4 runs to do in this process (about 30 s on one core)"
    )
    assert figure == "toy2024/fig1: 1 claim holds"


def test_the_time_counts_what_is_missing_and_a_shared_run_once(toy, tmp_path):
    shared = plain(smoke={"steps": 3}, cost={"smoke": 0.5})
    reproduce = toy(fig1=shared, fig2=shared)
    told = Told()
    reproduce(screen=told, seeds=(0,))  # one of two seeds, which cost 30 s
    assert "2 runs to do in this process (about 15 s on one core)" in told.said[1]
    told = Told()
    reproduce(screen=told, seeds=(0, 1, 2))
    assert "4 runs to do in this process (about 30 s on one core)" in told.said[1]


def test_a_smaller_scale_replaces_the_picture_not_the_runs(toy, tmp_path):
    reproduce = toy(fig1=plain(smoke={"steps": 3}, quick={"steps": 4}))
    reproduce(scale="quick")
    reproduce(scale="smoke")
    assert read(tmp_path, "figure.json")["scale"] == "smoke"
    told = Told()
    reproduce(scale="quick", screen=told)
    assert not told.order


# ---------------------------------------------------------------------------------------- executors


def test_processes_and_this_process_agree(toy, tmp_path):
    reproduce = toy(fig1=plain())
    here = reproduce().figures["toy2024/fig1"].table.frame
    told = Told()
    there = reproduce(again=True, jobs=2, screen=told).figures["toy2024/fig1"].table.frame
    assert here.equals(there)
    assert len(told.order) == 4
    assert all(total == 5 for _, _, total in told.reports)
    assert told.reports  # the workers' progress arrives here


def test_a_stack_takes_many_seeds_in_one_call():
    class Wide:
        widths = (10, 1000, 10)

        def build_stacked(self): ...

    class Narrow(Wide):
        widths = (10, 16, 10)

    def calls(model):
        job = Job(Run(data=0, model=model(), optimiser=0, steps=1), tuple(range(40)), "x")
        return [len(part.seeds) for part in runner.parts(job)]

    assert calls(Narrow) == [32, 8]
    assert calls(Wide) == [1] * 40

    lost = Job(Run(data=0, model=Narrow(), optimiser=0, steps=1), (1, 7, 9), "x")
    programs = [(0, 1, 2), (3, 4), (5, 6, 7)]
    assert [part.seeds for part in runner.parts(lost, programs)] == [(0, 1, 2), (5, 6, 7), (9,)]


def test_jobs_say_their_seeds():
    run = Run(data=0, model=0, optimiser=0, steps=1)
    assert str(Job(run, (3,), "a")) == "a · seed 3"
    assert str(Job(run, (3, 4, 5), "a")) == "a · seeds 3–5"
    assert str(Job(run, (3, 5), "a")) == "a · seeds 3, 5"


# ----------------------------------------------------------------------------------------- failures


def faulty(how):
    return plain(smoke={"function": "tasks:faulty", "how": how})


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("bug", "ZeroDivisionError: a bug (traceback: "),
        ("sentence", "site 'fc9' matches nothing; there is fc0"),
    ],
)
def test_a_failed_run_loses_no_other(toy, tmp_path, how, sentence):
    results = toy(fig1=faulty(how), fig2=plain())()
    assert list(results.failures) == [f"toy2024/fig1 · rate 0.5 · seed {s}" for s in (0, 1)]
    assert all(why.startswith(sentence) for why in results.failures.values())
    assert results.figures["toy2024/fig2"].claims[0]["holds"] is True
    (claim,) = read(tmp_path, "claims.json")
    assert claim["holds"] is None
    assert claim["numbers"]["why"].startswith(
        f"could not be judged: 'rate 0.5' has no results: {sentence}"
    )
    page = results.page.read_text(encoding="utf-8")
    assert "Not run: rate 0.5:" in page
    logs = [p.read_text(encoding="utf-8") for p in (tmp_path / "results").glob("logs/*")]
    assert all("Traceback" in log and "tasks.py" in log for log in logs)
    assert bool(logs) == (how == "bug")


def test_a_failed_run_is_tried_again(toy, tmp_path):
    reproduce = toy(fig1=faulty("bug"))
    reproduce()
    told = Told()
    reproduce(screen=told)
    assert told.order == ["toy2024/fig1 · rate 0.5"] * 2


def test_seeds_that_lack_a_run_are_left_out(toy, tmp_path):
    results = toy(fig1=faulty("one seed"))(seeds=3)
    (claim,) = results.claims
    assert (claim["holds"], claim["seeds"]) == (True, 2)
    assert results.figures["toy2024/fig1"].table.seeds == (0, 2)
    assert "Seed 1 left out, because a run failed" in results.page.read_text(encoding="utf-8")


def test_a_run_that_takes_its_process_down(toy, tmp_path):
    results = toy(fig1=faulty("killed"), fig2=plain(smoke={"steps": 30}))(jobs=2, seeds=1)
    (why,) = results.failures.values()
    assert why.startswith("its process died 3 times (SIGKILL: ")
    assert results.figures["toy2024/fig2"].claims[0]["holds"] is True
    assert Store(tmp_path / "results").has(results.figures["toy2024/fig1"].runs["rate 0.1"], 0)


def test_wrong_rows_are_a_sentence(toy):
    results = toy(fig1=plain(smoke={"function": "tasks:wrong"}))()
    assert "(step, quantity, value)" in results.failures["toy2024/fig1 · rate 0.1 · seed 0"]
    assert results.figures["toy2024/fig1"].problem.startswith("a run gives (step, quantity, value)")


def test_absent_data(toy, tmp_path):
    results = toy(fig1=plain(needs=("imagenet",)), fig2=plain())()
    why = "not run: data absent: data 'imagenet' is not here"
    (claim,) = read(tmp_path, "claims.json")
    assert claim["holds"] is None
    assert claim["numbers"]["why"].startswith(why)
    assert "data absent: data &#39;imagenet&#39; is not here" in results.page.read_text(
        encoding="utf-8"
    )
    assert results.figures["toy2024/fig2"].claims[0]["holds"] is True


def test_runs_that_are_there_need_no_data(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(needs.PACKAGED, "imagenet", ("json", "a package everybody has"))
    reproduce = toy(fig1=plain(needs=("imagenet",)))
    reproduce()
    monkeypatch.delitem(needs.PACKAGED, "imagenet")
    assert reproduce().claims[0]["holds"] is True


BROKEN = {
    "import": (
        "import nothing_of_that_name\nfigure = None",
        "can't be imported: ModuleNotFoundError",
    ),
    "type": ("figure = 3", "is a int, not a dither.lab.figure.Figure"),
    "runs": (
        "from dither.lab.figure import Figure\nfigure = Figure(lambda: 1 / 0, print)",
        "ZeroDivisionError.*traceback",
    ),
    "identity": (
        "from dither.lab.figure import Figure, Task\n"
        "figure = Figure(lambda: {'a': Task.of('m:f', x={1})}, print)",
        "no identity that lasts",
    ),
    "syntax": ("figure = (", "SyntaxError"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_figure_hides_no_other(toy, kind):
    source, match = BROKEN[kind]
    results = toy(fig1=source, fig2=plain())()
    assert results.figures["toy2024/fig2"].claims[0]["holds"] is True
    problem = results.figures["toy2024/fig1"].problem
    assert re.search(match, problem)


def test_a_broken_picture_hides_no_claim(toy, tmp_path):
    source = plain().replace("Picture(figsize=(3, 2))", "1 / 0")
    reproduce = toy(fig1=source)
    results = reproduce()
    assert results.claims[0]["holds"] is True
    assert "No picture:" in results.page.read_text(encoding="utf-8")
    assert not (tmp_path / "results/figures/toy2024/fig1/figure.svg").exists()


def test_a_result_of_another_format_stops_before_any_work(toy, tmp_path):
    reproduce = toy(fig1=plain())
    reproduce()
    for env in (tmp_path / "results").glob("runs/*/*/env.json"):
        env.write_text('{"format": 99}', encoding="utf-8")
        env.with_name("sha256.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DitherError, match="was written in format 99"):
        reproduce()


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"scale": "big"}, "'big' is none of smoke, quick, decisive, paper"),
        ({"jobs": 0}, "jobs = 0"),
        ({"seeds": 0}, "seeds = 0"),
        ({"seeds": [1, 1]}, "one twice"),
        ({"seeds": [-1]}, "below 0"),
        ({"names": "toy2025"}, "did you mean toy2024"),
    ],
)
def test_what_cannot_be_asked_for(toy, more, match):
    with pytest.raises(DitherError, match=match):
        toy(fig1=plain())(**more)


def test_an_unreadable_result_does_not_hide_the_other_figures(toy, tmp_path):
    reproduce = toy(fig1=plain(smoke={"steps": 3}), fig2=plain(smoke={"steps": 4}))
    reproduce()
    run = next(iter(runner.catalogue.find("toy2024/fig1").at("smoke").values()))
    folder = Store(tmp_path / "results").folder(run, 0)
    (folder / "rows.parquet").write_bytes(b"not parquet")
    told = Told()
    reproduce(screen=told)
    claims = read(tmp_path, "claims.json")
    assert claims[0]["holds"] is None
    assert "can't be read" in json.dumps(claims[0]["numbers"])
    assert any(said.startswith("toy2024/fig2: 1 claim holds") for said in told.said)
