import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from dither.errors import DitherError
from dither.lab.figure import Task
from dither.lab.runs.store import FORMAT, STALE, SUMS, Blocked, Store, frame, write

RUN = Task.of("tasks:decay", rate=0.5, steps=3)
ROWS = frame([(0, "loss", 1.0), (1, "loss", 0.5), (1, "acc", float("nan"))])
ENV = {"dither": "0.1.0", "seconds": 1.5}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "results")
    store.prepare()
    return store


def test_what_is_sealed_is_there(store):
    assert not store.has(RUN, 3)
    store.seal(RUN, 3, ROWS, ENV)
    assert store.has(RUN, 3)
    assert not store.has(RUN, 4)
    assert store.rows(RUN, 3).equals(ROWS, null_equal=True)
    assert store.env(RUN, 3) == {"format": FORMAT, **ENV}


def test_a_result_says_what_it_is(store):
    store.seal(RUN, 3, ROWS, ENV)
    said = json.loads((store.folder(RUN, 3) / "run.json").read_text(encoding="utf-8"))
    assert (said["key"], said["seed"], said["format"]) == (RUN.key, 3, FORMAT)
    assert said["run"]["kwargs"] == [["rate", 0.5], ["steps", 3]]


def test_nothing_else_is_left_behind(store):
    store.seal(RUN, 3, ROWS, ENV)
    names = sorted(path.name for path in store.folder(RUN, 3).parent.rglob("*"))
    assert names == ["3", "env.json", "rows.parquet", "run.json", "sha256.json"]


def test_the_first_of_two_writers_stays(store):
    store.seal(RUN, 3, ROWS, {"who": "first"})
    store.seal(RUN, 3, ROWS, {"who": "second"})
    assert store.env(RUN, 3)["who"] == "first"
    assert len(list(store.folder(RUN, 3).parent.iterdir())) == 1


WRITER = """
import sys
from dither.lab.figure import Task
from dither.lab.runs.store import Store, frame
store, run = Store(sys.argv[1]), Task.of("tasks:decay", rate=0.5, steps=3)
print("ready", flush=True)
sys.stdin.readline()
for seed in range(40):
    store.seal(run, seed, frame([(t, sys.argv[2], seed) for t in range(500)]), {"who": sys.argv[2]})
"""


def test_processes_that_write_the_same_runs(store):
    import dither

    home = str(Path(dither.__file__).parents[1])
    command = [sys.executable, "-c", WRITER, str(store.root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [
        subprocess.Popen([*command, who], env={**os.environ, "PYTHONPATH": home}, **pipes)
        for who in "ab"
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    torn: list[object] = []

    def watch() -> None:  # whatever is there is whole, at every moment
        while any(writer.poll() is None for writer in writers):
            for seed in range(40):
                if store.has(RUN, seed):
                    rows, who = store.rows(RUN, seed), store.env(RUN, seed)["who"]
                    if len(rows) != 500 or set(rows["quantity"]) != {who}:
                        torn.append((seed, rows))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.close()
    assert [writer.wait() for writer in writers] == [0, 0]
    watcher.join()
    for writer in writers:
        writer.stdout.close()
    assert not torn
    assert sorted(int(path.name) for path in store.folder(RUN, 0).parent.iterdir()) == list(
        range(40)
    )


AGAIN = """
import sys
from dither.lab.figure import Task
from dither.lab.runs.store import Store, frame
store, run = Store(sys.argv[1]), Task.of("tasks:decay", rate=0.5, steps=3)
print("ready", flush=True)
sys.stdin.readline()
for step in range(150):
    store.seal(run, 0, frame([(step, sys.argv[2], t) for t in range(50)]), {}, replace=True)
"""


def test_processes_that_replace_the_same_run(store):
    import dither

    store.seal(RUN, 0, ROWS)
    home = str(Path(dither.__file__).parents[1])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", AGAIN, str(store.root), who],
            env={**os.environ, "PYTHONPATH": home},
            **pipes,
        )
        for who in "abc"
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.close()
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    for writer in writers:
        writer.stdout.close()
    rows = store.rows(RUN, 0)
    assert len(rows) == 50
    assert set(rows["step"]) == {149}
    assert [path.name for path in store.folder(RUN, 0).parent.iterdir()] == ["0"]


def test_a_half_written_folder_is_no_result(store):
    whole = store.folder(RUN, 0).with_name(".0.1.abc.tmp")  # what a killed writer leaves
    whole.mkdir(parents=True)
    ROWS.write_parquet(whole / "rows.parquet")
    assert not store.has(RUN, 0)


@pytest.mark.parametrize("lost", ["rows.parquet", "run.json", "env.json"])
def test_half_a_copy_is_no_result_and_is_replaced(store, lost):
    store.seal(RUN, 0, ROWS, {"who": "copied"})
    (store.folder(RUN, 0) / lost).unlink()
    assert not store.has(RUN, 0)
    store.seal(RUN, 0, ROWS, {"who": "computed"})
    assert store.env(RUN, 0)["who"] == "computed"


def test_what_killed_writers_left_is_swept_when_it_is_old(store):
    fresh, old = (store.root / "runs" / "k" / f".0.{i}.tmp" for i in (1, 2))
    for folder in (fresh, old):
        folder.mkdir(parents=True)
    os.utime(old, (time.time() - 2 * STALE,) * 2)
    store.prepare()
    assert fresh.exists()
    assert not old.exists()


def test_a_result_of_another_format_is_neither_used_nor_touched(store):
    store.seal(RUN, 0, ROWS, ENV)
    path = store.folder(RUN, 0) / "env.json"
    path.write_text(json.dumps({"format": FORMAT + 1, "dither": "9.9"}), encoding="utf-8")
    (store.folder(RUN, 0) / "rows.parquet").rename(store.folder(RUN, 0) / "rows.arrow")
    (store.folder(RUN, 0) / SUMS).write_text('{"blake3": ""}', encoding="utf-8")  # of another form
    match = f"{store.folder(RUN, 0)} was written in format {FORMAT + 1} by dither 9.9.*--out"
    with pytest.raises(DitherError, match=match):
        store.has(RUN, 0)
    assert (store.folder(RUN, 0) / "rows.arrow").exists()


@pytest.mark.parametrize("file", ["rows.parquet", "env.json"])
def test_a_damaged_file_is_named(store, file):
    store.seal(RUN, 0, ROWS, ENV)
    (store.folder(RUN, 0) / file).write_bytes(b"PAR1 no")
    with pytest.raises(DitherError, match=f"{file} can't be read .*: `dither check .* --repair`"):
        store.env(RUN, 0) and store.rows(RUN, 0)


def test_a_new_result_takes_the_place_of_the_old_one(store):
    store.seal(RUN, 0, ROWS, {"who": "first"})
    store.seal(RUN, 0, ROWS, {"who": "second"}, replace=True)
    store.seal(RUN, 1, ROWS, {"who": "third"}, replace=True)  # never there
    assert [store.env(RUN, seed)["who"] for seed in (0, 1)] == ["second", "third"]
    assert sorted(p.name for p in store.folder(RUN, 0).parent.iterdir()) == ["0", "1"]


def killed_at(monkeypatch, at, act):
    """Do something in a process that dies at its n-th change of the disk."""
    left = at

    class Killed(BaseException): ...

    def dying(name):
        real = getattr(os, name)

        def call(*arguments, **more):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            if left < 0:
                raise OSError(5, "a dead process does nothing")
            return real(*arguments, **more)

        monkeypatch.setattr(os, name, call)

    for name in ("mkdir", "rename", "unlink", "rmdir"):
        dying(name)
    with contextlib.suppress(Killed, DitherError):
        act()
    monkeypatch.undo()


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("at", range(1, 16))
def test_the_seeds_of_a_program_are_sealed_together(store, monkeypatch, at, replace):
    """A writer that is killed at its n-th change of the disk; then the next call."""
    if replace:
        store.seal(RUN, {0: ROWS, 1: ROWS}, env={"who": "first"})
    killed_at(monkeypatch, at, lambda: store.seal(
        RUN, {0: ROWS, 1: ROWS}, env={"who": "second"}, replace=replace))  # fmt: skip
    store.prepare()
    there = {seed: store.env(RUN, seed)["who"] for seed in (0, 1) if store.has(RUN, seed)}
    assert len(there) in ((2,) if replace else (0, 2))
    assert len(set(there.values())) <= 1
    assert not [p for p in store.root.glob("runs/*/.*") if p.suffix != ".tmp"]


def test_a_new_call_may_begin_while_results_are_replaced(store, monkeypatch):
    """Another process ends a program's results when the writer has moved the first of them."""
    store.seal(RUN, {0: ROWS, 1: ROWS}, env={"who": "first"})
    real, calls = Path.rename, []

    def rename(path, target):
        moved = real(path, target)
        if Path(target).name == "0" and not calls:  # the first result is in its place
            calls.append(path)
            listed = [path, path.with_name("1")]  # the other one had listed both before
            with monkeypatch.context() as other:
                other.setattr(Path, "iterdir", lambda _: iter(listed))
                store.prepare()
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    store.seal(RUN, {0: ROWS, 1: ROWS}, env={"who": "second"}, replace=True)
    assert calls
    assert [store.env(RUN, seed)["who"] for seed in (0, 1)] == ["second", "second"]


def test_a_lost_seed_names_its_program(store):
    store.seal(RUN, {0: ROWS, 1: ROWS}, env=ENV)
    store.seal(RUN, 4, ROWS, ENV)
    store.discard(RUN, 1)
    assert store.programs(RUN) == [(0, 1)]
    store.seal(RUN, {0: ROWS, 1: ROWS}, env={**ENV, "who": "later"})
    assert store.has(RUN, 1)
    assert "who" not in store.env(RUN, 0)  # what was whole stays


@pytest.mark.parametrize("place", ["0", ""])
def test_a_file_where_a_result_belongs(store, place):
    path = store.folder(RUN, 0).parent / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("in the way", encoding="utf-8")
    assert not store.has(RUN, 0)
    if place:  # in our own folder, by its name a half of a result
        store.seal(RUN, 0, ROWS, ENV)
        assert store.has(RUN, 0)
        return
    with pytest.raises(Blocked, match=rf"{RUN.key} can't be written .*: move away what is there"):
        store.seal(RUN, 0, ROWS, ENV)


def test_every_file_under_a_hidden_name_is_swept(store):
    homes = [".", f"runs/{RUN.key}", "figures/toy2024/fig1", "logs"]
    left = [store.root / home / ".claims.json.12.ab.tmp" for home in homes]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half", encoding="utf-8")
    store.prepare()
    assert all(path.exists() for path in left)  # they may belong to a writer
    for path in left:
        os.utime(path, (0, time.time() - STALE - 1))
    store.prepare()
    assert not any(path.exists() for path in left)


def test_a_folder_without_a_name():
    with pytest.raises(DitherError, match="has no name"):
        Store("")


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "results").write_text("", encoding="utf-8")
    store = Store(tmp_path / "results")
    with pytest.raises(
        DitherError, match=r"can't write results to .*results \(.*\): choose another"
    ):
        store.prepare()
    with pytest.raises(DitherError, match="can't write results"):
        store.seal(RUN, 0, ROWS, ENV)
    with pytest.raises(DitherError, match=r"can't write .*index\.html"):
        write(tmp_path / "results" / "index.html", "")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
def test_a_folder_nobody_may_write():
    with pytest.raises(DitherError, match="can't write results to /proc/dither"):
        Store("/proc/dither").prepare()


def test_a_written_file_is_there_whole_or_not_at_all(tmp_path):
    write(tmp_path / "a" / "page.html", "old")
    with pytest.raises(DitherError, match="can't write"):
        write(tmp_path / "a" / ("x" * 300), "too long a name")
    write(tmp_path / "a" / "page.html", "new")
    assert [(p.name, p.read_text(encoding="utf-8")) for p in (tmp_path / "a").iterdir()] == [
        ("page.html", "new")
    ]


def test_rows_are_triples():
    assert frame([]).schema == ROWS.schema
    assert frame(iter([(1, "a", True)])).row(0) == (1.0, "a", 1.0)
    for wrong in ([(1, "a")], [("x", "a", 1)], [(1, "a", None)], 3):
        with pytest.raises(DitherError, match=r"\(step, quantity, value\)"):
            frame(wrong)
    with pytest.raises(DitherError, match=r"\(step, quantity, value\)"):
        frame([(1, 2, 3)])


def test_a_traceback_is_kept_under_a_name_that_is_a_file_name(store):
    sentence = store.log("toy/fig1 · rate 0.5 · seed 0", "TypeError: no", "Traceback …")
    path = store.root / "logs" / "toy_fig1_rate_0.5_seed_0.log"
    assert sentence == f"TypeError: no (traceback: {path})"
    assert path.read_text(encoding="utf-8").endswith("Traceback …")


def test_rows_keep_their_types(store):
    store.seal(RUN, 0, ROWS, ENV)
    assert store.rows(RUN, 0).dtypes == [pl.Float64, pl.String, pl.Float64]
