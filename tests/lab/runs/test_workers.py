import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tasks import counting, paper, plain

from dither.errors import DitherError
from dither.lab.figure import Task
from dither.lab.runs import workers
from dither.lab.runs.interrupts import heard, heed
from dither.lab.runs.jobs import Job
from dither.lab.runs.screen import Quiet

HERE = Path(__file__).parents[2]

SCRIPT = """
import sys
sys.path[:0] = [{here!r}, {root!r}]
import dither.papers
dither.papers.__path__[:] = [{papers!r}]
dither.papers.__spec__.submodule_search_locations[:] = [{papers!r}]
from dither.lab.cli import main
if __name__ == "__main__":
    main()
"""


class Said(Quiet):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def session(tmp_path, monkeypatch):
    """session(source, *arguments) → a running `dither reproduce` in a group of its own."""
    started = []

    def session(source, *arguments):
        if not (tmp_path / "papers").exists():
            paper(tmp_path / "papers", monkeypatch, fig1=source)
            script = SCRIPT.format(
                here=str(HERE), root=str(HERE.parent), papers=str(tmp_path / "papers")
            )
            (tmp_path / "go.py").write_text(script, encoding="utf-8")
        command = [
            sys.executable,
            str(tmp_path / "go.py"),
            "reproduce",
            "toy2024",
            "--scale",
            "smoke",
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(
            [*command, *arguments], cwd=tmp_path, start_new_session=True, **pipes
        )
        started.append(process)
        return process

    yield session
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def sealed(folder):
    return sorted(p.parent.name + " " + p.name for p in (folder / "results").glob("runs/*/[0-9]*"))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return (
        Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").is_dir() else True
    )


@pytest.mark.parametrize(
    ("blow", "jobs"), [(signal.SIGTERM, "1"), (signal.SIGINT, "2"), (signal.SIGKILL, "2")]
)
def test_stopped_in_the_middle_and_taken_up_again(session, tmp_path, jobs, blow):
    log = tmp_path / "log"
    settings = {"function": "tasks:slow", "log": str(log), "seconds": 30}
    process = session(plain(smoke=settings), "--jobs", jobs)
    wait_for(lambda: log.exists() and "0.5 0" in log.read_text(encoding="utf-8"))
    wait_for(lambda: len(sealed(tmp_path)) == 2)
    pids = {int(line.split()[2]) for line in log.read_text(encoding="utf-8").splitlines()}
    assert all(alive(pid) for pid in pids)
    assert (pids == {process.pid}) == (jobs == "1")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "results").glob("runs/*/[0-9]*/*")}
    if blow == signal.SIGINT:
        os.killpg(process.pid, blow)  # a terminal tells everybody
    else:
        process.send_signal(blow)
    out, err = process.communicate(timeout=200)
    if blow != signal.SIGKILL:
        assert process.returncode == 130
        kept = "2 of 4 runs finished and kept; the same command goes on with the rest"
        assert err == f"dither: stopped: {kept}\n"
        assert "Traceback" not in out
    wait_for(lambda: not any(alive(pid) for pid in pids), seconds=30)  # no process is left behind
    assert len(sealed(tmp_path)) == 2
    assert not list((tmp_path / "results").glob("runs/*/.*"))

    log.write_text("", encoding="utf-8")
    source = (tmp_path / "papers/toy2024/fig1.py").read_text(encoding="utf-8")
    quick = source.replace("function, rate=r", "function if r < 0.2 else 'tasks:decay', rate=r")
    quick = quick.replace("steps=steps, **more", "steps=steps, **(more if r < 0.2 else {})")
    (tmp_path / "papers/toy2024/fig1.py").write_text(quick, encoding="utf-8")
    process = session(None, "--jobs", jobs)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, "")
    assert "2 runs to do" in out
    assert log.read_text(encoding="utf-8") == ""  # what was finished is not computed again
    assert {p: p.stat().st_mtime_ns for p in before} == before
    (claims,) = (tmp_path / "results").glob("figures/*/*/claims.json")
    assert [c["holds"] for c in json.loads(claims.read_text(encoding="utf-8"))] == [True]


def test_a_process_that_dies_loses_its_own_run_only(toy, tmp_path):
    settings, noted = counting(tmp_path)
    told = Said()
    results = toy(fig1=plain(smoke={**settings, "function": "tasks:fragile"}))(jobs=2, screen=told)
    assert not results.failures
    assert sorted(noted()) == ["0.1 0", "0.1 1", "0.1 1", "0.5 0", "0.5 1"]
    (died,) = [text for text in told.said if "died" in text]
    what = "its process died (SIGKILL): again after the others, 1/2"
    assert died == f"toy2024/fig1 · rate 0.1 · seed 1 · {what}"


def test_processes_that_can_not_start_end_the_call(monkeypatch):
    monkeypatch.setattr(workers, "_serve", os._exit)
    monkeypatch.setattr(workers, "STARTS", 3)
    jobs = [Job(Task("tasks:decay"), (seed,), "x") for seed in range(3)]
    with pytest.raises(DitherError, match=r"3 worker processes ended before they began .*jobs=1"):
        list(workers.Processes(2).outcomes(jobs, Quiet()))


def test_a_stop_that_somebody_swallows_is_asked_again():
    """As a library may that catches everything."""
    with heard():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            heed()
    heed()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
