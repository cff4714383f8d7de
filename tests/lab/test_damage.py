"""A damaged file, of any kind, stops nothing else: it is named, and the other figures go on."""

import json
import shutil
import signal

import pytest
from tasks import plain

from dither.lab.runs.interrupts import heard
from dither.lab.runs.store import Store

BYTES = {"empty": b"", "list": b"[]", "null": b"null", "deep": b"[" * 50_000, "latin": b"\xff\xfe"}


@pytest.fixture
def damaged(toy, tmp_path):
    """damaged(file, damage) → what a call gives after a file of fig1 was spoilt."""
    reproduce = toy(fig1=plain(smoke={"steps": 3}), fig2=plain(smoke={"steps": 4}))
    run = reproduce().figures["toy2024/fig1"].runs["rate 0.1"]
    root = tmp_path / "results"

    def damaged(file, damage, names="toy2024"):
        folder = root / "figures/toy2024/fig1"
        if not (folder / file).exists():
            folder = Store(root).folder(run, 0)
        path = folder / file
        if damage == "folder":
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(BYTES[damage])
        return path, reproduce(names)

    return damaged


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(("figure.json", damage) for damage in (*BYTES, "folder")),
        *(("claims.json", damage) for damage in ("null", "deep", "folder")),
    ],
)
def test_a_figure_that_is_not_asked_for(damaged, file, damage):
    path, results = damaged(file, damage, "toy2024/fig2")
    assert results.figures["toy2024/fig2"].claims[0]["holds"] is True
    (sentence,) = results.damaged
    assert str(path.parent) in sentence
    assert sentence.endswith("delete it and run `dither reproduce` again")
    assert "Left out:" in results.page.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", ["env.json", "rows.parquet", "sha256.json"])
def test_a_result(damaged, file):
    path, results = damaged(file, "deep")
    assert results.figures["toy2024/fig2"].claims[0]["holds"] is True
    assert results.figures["toy2024/fig1"].claims[0]["holds"] is None
    (sentence,) = results.damaged
    assert str(path.parent) in sentence
    assert "--repair` computes it again" in sentence


@pytest.mark.parametrize("file", ["env.json", "rows.parquet"])
def test_a_result_with_a_folder_in_the_place_of_a_file_is_computed_again(damaged, file):
    _, results = damaged(file, "folder")
    assert not results.damaged
    assert [claim["holds"] for claim in results.claims] == [True, True]


@pytest.mark.parametrize("file", ["figure.json", "figure.svg", "numbers.csv"])
def test_a_folder_where_a_figure_is_to_be_written(damaged, file):
    path, results = damaged(file, "folder")
    assert results.figures["toy2024/fig2"].claims[0]["holds"] is True
    assert any(f"can't write {path}" in sentence for sentence in results.damaged)


@pytest.mark.parametrize("file", ["run", "page", "logs"])
def test_a_file_or_folder_in_the_way(toy, tmp_path, file):
    reproduce = toy(fig1=plain(smoke={"steps": 3}), fig2=plain(smoke={"steps": 4}))
    run = reproduce().figures["toy2024/fig1"].runs["rate 0.1"]
    root = tmp_path / "results"
    path = {"run": root / "runs" / run.key, "page": root / "index.html", "logs": root / "logs"}[
        file
    ]
    _ = shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    _ = path.mkdir() if file == "page" else path.write_text("in the way")
    results = reproduce()
    assert results.figures["toy2024/fig2"].claims[0]["holds"] is True
    told = [*results.failures.values(), *results.damaged]
    assert file == "logs" or any(str(path) in sentence for sentence in told)


@pytest.mark.parametrize(
    ("field", "value"),
    [("seconds", "x"), ("seconds", -1), ("machine", []), ("commit", 3), ("dither", {})],
)
def test_an_environment_of_another_form_without_checksums(toy, tmp_path, field, value):
    reproduce = toy(fig1=plain(smoke={"steps": 3}), fig2=plain(smoke={"steps": 4}))
    run = reproduce().figures["toy2024/fig1"].runs["rate 0.1"]
    folder = Store(tmp_path / "results").folder(run, 0)
    env = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    (folder / "env.json").write_text(json.dumps({**env, field: value}))
    (folder / "sha256.json").unlink()
    results = reproduce()
    assert results.figures["toy2024/fig2"].claims[0]["holds"] is True
    assert field in results.damaged[0]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_ends_its_process_politely_fails_alone(toy, jobs):
    exits = plain(smoke={"function": "tasks:faulty", "how": "exit"})
    results = toy(fig1=exits, fig2=plain())(jobs=jobs, seeds=1)
    (why,) = results.failures.values()
    assert why.startswith("RuntimeError: it ended by SystemExit: 3")
    assert results.figures["toy2024/fig2"].claims[0]["holds"] is True


def test_a_figure_that_ends_its_process_politely_fails_alone(toy):
    exits = "raise SystemExit(0)\nfigure = None"
    results = toy(fig1=exits, fig2=plain())()
    assert "SystemExit: 0" in results.figures["toy2024/fig1"].problem
    assert results.figures["toy2024/fig2"].claims[0]["holds"] is True


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_terminal_that_closes_stops_a_session_unless_it_is_to_go_on():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started by
    try:
        with pytest.raises(KeyboardInterrupt), heard():
            signal.raise_signal(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with heard():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
