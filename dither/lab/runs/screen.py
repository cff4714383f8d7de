"""The display of running jobs: bars on a terminal, else one line per run."""

import threading
import time
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dither.lab.runs.jobs import Job
from dither.lab.wording import duration


class Screen(Protocol):
    """Gets reports of jobs and shows them. `update` may come from another thread."""

    def begin(self, total: int) -> None: ...
    def say(self, text: str) -> None: ...
    def start(self, job: Job) -> None: ...
    def update(self, job: Job, done: float, total: float) -> None: ...
    def finish(self, job: Job, failure: str) -> None: ...
    def close(self) -> None: ...


class Quiet:
    """Shows nothing: for use as a library."""

    def begin(self, total: int) -> None: ...
    def say(self, text: str) -> None: ...
    def start(self, job: Job) -> None: ...
    def update(self, job: Job, done: float, total: float) -> None: ...
    def finish(self, job: Job, failure: str) -> None: ...
    def close(self) -> None: ...


class Lines:
    """One line per run, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console, self.done, self.total = console, 0, 0
        self.started: dict[Job, float] = {}

    def begin(self, total: int) -> None:
        self.total = total

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def start(self, job: Job) -> None:
        self.started[job] = time.monotonic()

    def update(self, job: Job, done: float, total: float) -> None:
        pass

    def finish(self, job: Job, failure: str) -> None:
        self.done += len(job.seeds)
        end = f"failed: {failure}" if failure else duration(time.monotonic() - self.started[job])
        self.say(f"[{self.done}/{self.total}] {job} · {end}")

    def close(self) -> None:
        pass


class Bars:
    """A bar for all runs, and one for each run that is in progress."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
        )
        self.console, self.progress = console, Progress(*columns, console=console, transient=True)
        self.lock, self.total, self.done = threading.Lock(), 0, 0
        self.tasks: dict[Job, Any] = {}

    def begin(self, total: int) -> None:
        self.total = total
        self.all = self.progress.add_task("[bold]all runs", total=total, count=f"0/{total}")
        self.progress.start()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def start(self, job: Job) -> None:
        with self.lock:
            if job in self.tasks:  # once more, after its process died
                return
            self.tasks[job] = self.progress.add_task(escape(str(job)), total=None, count="")

    def update(self, job: Job, done: float, total: float) -> None:
        with self.lock:
            if job in self.tasks:  # a report may arrive after its run has finished
                self.progress.update(
                    self.tasks[job], completed=done, total=total, count=f"{done:g}/{total:g}"
                )

    def finish(self, job: Job, failure: str) -> None:
        with self.lock:
            self.progress.remove_task(self.tasks.pop(job))
            self.done += len(job.seeds)
            self.progress.update(self.all, completed=self.done, count=f"{self.done}/{self.total}")
        if failure:
            self.say(f"{job} · failed: {failure}")

    def close(self) -> None:
        self.progress.stop()
