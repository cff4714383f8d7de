"""A paper for the laboratory's tests: tasks that workers can import, figures made on the spot."""

import importlib
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import dither.papers
from dither.errors import DitherError

PLAIN = '''
    """Figure 1: a decay. Two rates, one faster.   Toy et al. 2024, Fig. 1

    What `decay` gives, < 1:

        f(t) = exp(−rate · t)"""

    from matplotlib.figure import Figure as Picture
    from dither.lab.figure import Claim, Figure, Task

    def runs(steps=5, function="tasks:decay", **more):
        return {f"rate {r}": Task.of(function, rate=r, steps=steps, **more) for r in (0.1, 0.5)}

    def plot(table):
        picture = Picture(figsize=(3, 2))
        ax = picture.subplots()
        for label in table.labels:
            steps, values = table.series(label, "value")
            ax.plot(steps, values.mean(0), label=label)
        return picture

    def faster(table):
        slow, fast = table.last("rate 0.1", "value"), table.last("rate 0.5", "value")
        return bool((fast < slow).all()), {"slow": slow, "fast": fast}

    claims = [Claim("T1", "faster is lower", faster)]
    figure = Figure(runs, plot, claims=claims, seeds=dict(smoke=2, quick=2, paper=4), **MORE)
'''


def paper(folder: Path, monkeypatch, name: str = "toy2024", **figures: str) -> None:
    """Make dither.papers.<name> with these modules, for the length of a test."""
    home = folder / name
    home.mkdir(parents=True)
    (home / "__init__.py").write_text('"""Toy et al. 2024, On Nothing"""\n', encoding="utf-8")
    for figure, source in figures.items():
        (home / f"{figure}.py").write_text(textwrap.dedent(source).lstrip(), encoding="utf-8")
    monkeypatch.setattr(dither.papers, "__path__", [str(folder)])
    monkeypatch.setattr(dither.papers.__spec__, "submodule_search_locations", [str(folder)])
    for module in [m for m in sys.modules if m.startswith(f"dither.papers.{name}")]:
        monkeypatch.delitem(sys.modules, module)
    importlib.invalidate_caches()


def plain(**more: object) -> str:
    """The source of a figure with two quick runs; more: what else Figure is told."""
    return PLAIN.replace("**MORE", ", ".join(f"{k}={v!r}" for k, v in more.items()))


def counting(tmp_path):
    """Settings of a figure that notes each of its computations; and what was noted."""
    log = tmp_path / "log"

    def noted():
        return [line.rpartition(" ")[0] for line in log.read_text(encoding="utf-8").splitlines()]

    return {"function": "tasks:counted", "log": str(log)}, noted


def decay(seed, progress, rate, steps):
    for t in range(steps):
        progress.update(t + 1, steps)
        yield t, "value", 2.718 ** (-rate * t) + 0.001 * seed


def counted(seed, progress, rate, steps, log):
    """As decay; and a line in a file each time it is computed."""
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(f"{rate} {seed} {os.getpid()}\n")
    return decay(seed, progress, rate, steps)


def slow(seed, progress, rate, steps, log, seconds):
    """As counted, but half of the runs takes its time."""
    rows = list(counted(seed, progress, rate, steps, log))
    if rate > 0.2:
        time.sleep(seconds)
    return rows


_running = []


def steady(seed, progress, rate, steps, log, seconds):
    """As counted, with time between its steps, and a line where it is stopped. A process has one
    run at a time.
    """
    if _running:
        raise RuntimeError("two runs in one process")
    _running.append(seed)
    try:
        for row in counted(seed, progress, rate, steps, log):
            time.sleep(seconds)
            yield row
    except DitherError:
        with Path(log).open("a", encoding="utf-8") as file:
            file.write("stopped\n")
        raise
    finally:
        _running.clear()


def fragile(seed, progress, rate, steps, log):
    """As counted, but one run kills its process the first time."""
    first = not Path(log).exists() or f"{rate} {seed} " not in Path(log).read_text(encoding="utf-8")
    rows = counted(seed, progress, rate, steps, log)
    if first and (rate, seed) == (0.1, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return rows


def faulty(seed, progress, rate, steps, how):
    if rate > 0.2 and how == "bug":
        raise ZeroDivisionError("a bug")
    if rate > 0.2 and how == "sentence":
        raise DitherError("site 'fc9' matches nothing; there is fc0")
    if rate > 0.2 and how == "one seed" and seed == 1:
        raise ZeroDivisionError("seed 1 has a bug")
    if rate > 0.2 and how == "exit":
        sys.exit(3)
    if rate > 0.2 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return decay(seed, progress, rate, steps)


BROKEN: tuple[int, ...] = ()


def broken_at(seed, progress, rate, steps, at):
    """As decay, but these seeds of a rate of .5 fail, and those of BROKEN."""
    if rate == 0.5 and seed in (*at, *BROKEN):
        raise DitherError(f"seed {seed} broke")
    return decay(seed, progress, rate, steps)


def wrong(seed, progress, rate, steps):
    return [("step", "value", "three")]
