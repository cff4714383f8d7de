"""One fault while a call computes; then the next call ends the job, bitwise as if nothing had been.

Each kind is a function (home, lots) → what it did, and raises AssertionError if the law is broken:
what was sealed stays as it was, stderr has sentences only, and the rows are those of an
uninterrupted call.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import world
from world import Call, Ended, results, verdicts

from dither.lab import reproduce

Lots = random.Random
ASK = ("reproduce", "toy2024", "--scale", "smoke")
REFERENCE: dict[str, bytes] = {}
DURATION = [1.0]  # seconds of an uninterrupted call


def reference(home: Path) -> None:
    """What an uninterrupted call gives, and how long it takes."""
    out = home / "reference"
    ended = Call(home, *ASK, "--jobs", "1", "--out", str(out)).end()
    assert ended.code == 0, ended
    REFERENCE.update(results(out))
    DURATION[0] = ended.seconds
    assert len(REFERENCE) == 8, REFERENCE.keys()
    assert verdicts(out) == {"fig1": [True], "fig2": [True]}


def call(home: Path, *more: object, **inside: Callable[[], object]) -> Call:
    jobs = () if "--jobs" in more else ("--jobs", "1")
    return Call(home, *ASK, *jobs, "--out", str(home / "out"), *more, **inside)


def whole(home: Path) -> dict[str, bytes]:
    """The results that are there, each bitwise as in the reference."""
    there = results(home / "out")
    wrong = [key for key, rows in there.items() if rows != REFERENCE.get(key)]
    assert not wrong, f"changed: {wrong}"
    return there


def said(ended: Ended, *codes: int) -> None:
    assert not ended.foreign, ended.foreign
    assert ended.code in codes, (ended.code, ended.out[-500:], ended.err)


def finished(home: Path, before: dict[str, bytes]) -> None:
    """The next call ends the job."""
    there = whole(home)
    assert before.keys() <= there.keys(), "a sealed result is lost"
    ended = call(home).end()
    said(ended, 0)
    assert whole(home).keys() == REFERENCE.keys()
    assert verdicts(home / "out") == {"fig1": [True], "fig2": [True]}
    left = [
        p
        for p in (home / "out").glob("runs/*/.*")
        if p.suffix in (".old", ".aside", ".ready", ".again")
    ]
    assert not left, left


def moment(lots: Lots, factor: float = 1.0) -> None:
    time.sleep(lots.uniform(0, factor * DURATION[0]))


def killed(home: Path, lots: Lots) -> str:
    """SIGKILL of a call in one process, once to three times."""
    times = lots.randint(1, 3)
    for _ in range(times):
        running = call(home, *(["--again"] if lots.random() < 0.2 else []))
        moment(lots)
        running.kill()
        running.end()
        before = whole(home)
    finished(home, before)
    return f"{times} kills"


def worker_killed(home: Path, lots: Lots) -> str:
    """SIGKILL of one worker of two, of the parent, or of all."""
    what = lots.choice(("one worker", "the parent", "all"))
    running = call(home, "--jobs", "2")
    while running.running() and len(running.workers()) < 2:
        time.sleep(0.01)
    moment(lots, 4)
    workers = running.workers()
    if what == "all":
        running.kill(group=True)
    elif what == "the parent":
        running.kill()
    elif workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(lots.choice(workers), signal.SIGKILL)
    ended = running.end()
    if what == "one worker":
        said(ended, 0, 1)
    assert world.gone(workers), "a worker outlives its parent"
    finished(home, whole(home))
    return what


def stopped(home: Path, lots: Lots) -> str:
    """SIGINT, SIGTERM, SIGHUP: a sentence, code 130, soon."""
    number = lots.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    running = call(home)
    first = running.files[0]
    while running.running() and not (first.exists() and first.stat().st_size):
        time.sleep(0.002)  # until it has begun
    moment(lots)
    at = time.monotonic()
    running.kill(number)
    ended = running.end()
    assert time.monotonic() - at < 60
    if ended.out.count("The page: ") < 2:  # else it was over already
        said(ended, 0, 130)
        assert ended.code == 0 or "dither: stopped" in ended.err, ended
    finished(home, whole(home))
    return number.name


def full(home: Path, lots: Lots) -> str:
    """A disk that is full: a small tmpfs where this may be mounted, else files that can't grow."""
    out, size = home / "out", lots.randint(4, 160)
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            said(call(home).end(), 0, 1)
            before = whole(home)
            subprocess.run(["mount", "-o", "remount,size=100m", str(out)], check=True)
            finished(home, before)
        finally:
            subprocess.run(["umount", "-l", str(out)], check=True)
        return "tmpfs"

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        most = lots.randint(100, 4000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    said(call(home, inside=small).end(), 0, 1)
    finished(home, whole(home))
    return "files that can't grow"


def read_only(home: Path, lots: Lots) -> str:
    """A folder, or one in it, that can't be written or read."""
    call(home).end()
    out = home / "out"
    folders = [out, *(p for p in sorted(out.rglob("*")) if p.is_dir())]
    victim, mode = lots.choice(folders), lots.choice((0o555, 0o000, 0o444))
    for path in sorted(out.glob("runs/*/0"))[: lots.randint(0, 2)]:
        shutil.rmtree(path)
    victim = victim if victim.exists() else out
    victim.chmod(mode)
    ended = call(home, inside=world.unprivileged).end()
    victim.chmod(0o755)
    said(ended, 0, 1)
    finished(home, whole(home))
    return f"{mode:o}"


def deleted(home: Path, lots: Lots) -> str:
    """The folder of results, or a part of it, deleted while it is written."""
    running = call(home)
    moment(lots)
    part = lots.choice(("", "runs", "figures", "runs/*", "runs/*/*"))
    for path in (home / "out").glob(part) if part else [home / "out"]:
        shutil.rmtree(path, ignore_errors=True)
    said(running.end(), 0, 1)
    finished(home, whole(home))
    return part or "all"


def two(home: Path, lots: Lots) -> str:
    """Two calls at once on one folder."""
    one = call(home, *(["--again"] if lots.random() < 0.3 else []))
    moment(lots, 0.5)
    other = call(home)
    for ended in (one.end(), other.end()):
        said(ended, 0)
    finished(home, whole(home))
    return "both"


def clock(home: Path, lots: Lots) -> str:
    """A clock that goes back or forward by years, between two calls and in one."""
    running = call(home)
    moment(lots)
    running.kill()
    running.end()
    days = lots.uniform(-4000, 4000)
    real = time.time

    def shifted() -> None:
        time.time = lambda: real() + 86_400 * days

    before = whole(home)
    for path in (home / "out").rglob("*"):
        with contextlib.suppress(OSError):
            then = real() + 86_400 * lots.uniform(-4000, 4000)
            os.utime(path, (then, then))
    said(call(home, inside=shifted).end(), 0)
    finished(home, before)
    return "back" if days < 0 else "forward"


def starved(home: Path, lots: Lots) -> str:
    """Little memory: a sentence, or, where native code gives up, a process that dies."""
    extra = round(2 ** lots.uniform(18, 30))
    compute = reproduce.Session.run

    def starve(*given: Any) -> Any:  # once all is imported
        world.memory(extra)
        return compute(*given)

    def inside() -> None:
        reproduce.Session.run = starve  # type: ignore[method-assign]

    ended = call(home, inside=inside).end()
    died = ended.code not in (None, 0, 1)  # a signal, or 127 of the C library
    if not died:
        said(ended, 0, 1)
    finished(home, whole(home))
    return "it died" if died else "a sentence" if ended.code else "enough"


KINDS: dict[str, Callable[[Path, Lots], str]] = {
    "killed": killed, "worker killed": worker_killed, "stopped": stopped, "disk full": full,
    "no permission": read_only, "deleted": deleted, "two at once": two, "clock": clock,
    "no memory": starved,
}  # fmt: skip
SHARES = {"killed": 12, "worker killed": 2}  # of others 1
