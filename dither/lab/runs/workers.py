"""Workers of this machine, with one thread each: this process, or processes.

Workers have outcomes(jobs, screen) → (job, Outcome), in the order in which jobs end. A run that
raises gives an Outcome too, and the others continue. A process that dies loses its own run only,
which starts again after the others, at its last checkpoint; after `RETRIES` such starts it has
failed. Workers write checkpoints only: the caller seals results. `cluster` has those of Dask.
"""

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from dither.errors import DitherError
from dither.lab.figure import Run
from dither.lab.runs import provenance
from dither.lab.runs.allocator import keep_freed
from dither.lab.runs.execute import execute
from dither.lab.runs.interrupts import heed
from dither.lab.runs.jobs import Job, Outcome
from dither.lab.runs.screen import Screen
from dither.lab.runs.spawning import without_main
from dither.lab.runs.store import frame

RETRIES = 2  # times that a run starts again after its process died
STARTS = 10  # processes in succession that may end before they are ready
HEARTBEAT = 0.2  # seconds between two checks for Ctrl-C
REPORT = 0.2  # seconds between two reports of a run's progress
PATIENCE = 10  # seconds in which a process ends that was told to
WHY = "killed, out of memory, or a crash in native code"
READY, END = None, b""  # the first word of a process, and the last one to it
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")


Outcomes = Generator[tuple[Job, Outcome], None, None]


class Reporter:
    """A progress that sends at most one report in `every` seconds."""

    def __init__(self, send: Callable[[float, float], None], every: float = REPORT) -> None:
        self.send, self.every, self.due = send, every, 0.0

    def update(self, done: float, total: float) -> None:
        if (now := time.monotonic()) >= self.due:
            self.due = now + self.every
            self.send(done, total)


def work(job: Job, reporter: Reporter, say: Callable[[str], None]) -> Outcome:
    """Execute a job in this process."""
    start = time.perf_counter()
    try:
        with _one_thread():
            keeper = _keeper(job, say)
            results = execute(job.run, job.seeds, reporter, keeper)
            rows = {seed: frame(results[seed]) for seed in job.seeds}
            seconds = time.perf_counter() - start + (keeper.before if keeper else 0)
            return Outcome(rows, provenance.environment(seconds, len(job.seeds)))
    except DitherError as error:
        return Outcome(sentence=str(error))
    except Exception as error:  # a bug in a run is a result to report: the other runs go on
        return Outcome.failed(error)


def _keeper(job: Job, say: Callable[[str], None]) -> Any:
    """The keeper of a Run's checkpoints; None if this machine can't reach the results' folder."""
    if not (job.folder and isinstance(job.run, Run) and Path(job.folder).parent.is_dir()):
        return None
    from dither.lab.training.checkpoint import Keeper

    return Keeper(Path(job.folder), job.run.key, lambda text: say(f"{job} · {text}"))


class InProcess:
    """Compute in this process, one job after another."""

    def outcomes(self, jobs: Sequence[Job], screen: Screen) -> Outcomes:
        for job in jobs:
            heed()
            screen.start(job)
            yield job, work(job, Reporter(partial(screen.update, job)), screen.say)


@dataclass(eq=False)
class Worker:
    """A process and our end of its pipe. It gets jobs, and sends reports and outcomes."""

    process: SpawnProcess
    pipe: Connection
    ready: bool = False
    job: Job | None = None

    def end(self) -> str:
        """Make sure that it ends. Returns how it ended."""
        self.pipe.close()  # then it exits
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        try:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        except ValueError:
            how = f"signal {-code}"
        self.process.close()
        return how


class Processes:
    """Local processes, `width` at a time.

    Each has a pipe of its own, so that one that dies holds no lock for which others wait. It exits
    when our end of the pipe is closed, also if this process was killed.
    """

    def __init__(self, width: int) -> None:
        self.width = width

    def outcomes(self, jobs: Sequence[Job], screen: Screen) -> Outcomes:
        crew = Crew(self.width, jobs, screen)
        try:
            while crew.busy or crew.waiting:
                heed()
                yield from crew.fill()
                # Polars' handler of SIGINT restarts system calls: an endless wait would ignore it.
                for pipe in wait([worker.pipe for worker in crew.workers], HEARTBEAT):
                    if ended := crew.listen(pipe):
                        yield from crew.fill()  # the next job is at work while this one is sealed
                        yield ended
            crew.dismiss()
        finally:
            crew.end()


class Crew:
    """The processes of one call, the jobs that wait for them, and how often each job was lost."""

    def __init__(self, width: int, jobs: Sequence[Job], screen: Screen) -> None:
        self.width, self.waiting, self.screen = width, deque(jobs), screen
        self.workers: list[Worker] = []
        self.lost: Counter[Job] = Counter()
        self.stillborn = 0  # processes in succession that ended before they were ready

    @property
    def busy(self) -> int:
        return sum(worker.job is not None for worker in self.workers)

    def fill(self) -> Iterator[tuple[Job, Outcome]]:
        """Start the processes that are missing and give jobs to those that have none. Yields the
        jobs that can't be sent.
        """
        while len(self.workers) < min(self.width, self.busy + len(self.waiting)):
            self.workers.append(_start())
        for worker in self.workers:
            while self.waiting and worker.ready and not worker.job:
                job = self.waiting.popleft()
                self.screen.start(job)
                try:
                    payload = pickle.dumps(job)
                except Exception as error:
                    yield job, Outcome.failed(error)
                    continue
                worker.job = job
                with contextlib.suppress(OSError):  # it has died: the next to listen finds out
                    worker.pipe.send_bytes(payload)

    def listen(self, pipe: object) -> tuple[Job, Outcome] | None:
        """Take what a process sent. Returns its job if that has ended."""
        worker = next(worker for worker in self.workers if worker.pipe is pipe)
        try:
            told = worker.pipe.recv()
        except (EOFError, OSError):
            return self._died(worker)
        job = worker.job
        if told is READY:
            worker.ready, self.stillborn = True, 0
        elif isinstance(told, str):
            self.screen.say(told)
        elif job and isinstance(told, Outcome):
            worker.job = None
            return job, told
        elif job:
            self.screen.update(job, *told)
        return None

    def _died(self, worker: Worker) -> tuple[Job, Outcome] | None:
        self.workers.remove(worker)
        how, job = worker.end(), worker.job
        if not worker.ready:
            self.stillborn += 1
            if self.stillborn >= STARTS:
                raise DitherError(
                    f"{self.stillborn} worker processes ended before they began (the last: {how}): "
                    "jobs=1 computes in this process and needs none"
                )
        if not job:
            return None
        self.lost[job] += 1
        if (n := self.lost[job]) > RETRIES:
            return job, Outcome(sentence=f"its process died {n} times ({how}: {WHY})")
        self.screen.say(f"{job} · its process died ({how}): again after the others, {n}/{RETRIES}")
        self.waiting.append(job)
        return None

    def dismiss(self) -> None:
        """The processes end by themselves and clean up."""
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.pipe.send_bytes(END)
        for worker in self.workers:
            worker.process.join(PATIENCE)

    def end(self) -> None:
        for worker in self.workers:
            worker.pipe.close()  # all at once
        for worker in self.workers:
            worker.end()


def _start() -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,))
    with _uninterrupted(), without_main():  # the process inherits this
        process.start()
    theirs.close()
    return Worker(process, ours)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Inside, workers ignore Ctrl-C. This process gets it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection) -> None:
    """A worker process: one thread; Ctrl-C is ignored, since the parent decides; it exits when the
    pipe is closed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    keep_freed()
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, inbox), daemon=True).start()
    pipe.send(READY)
    while (payload := inbox.get()) != END:
        try:
            job: Job = pickle.loads(payload)
        except Exception as error:
            pipe.send(Outcome.failed(error))
            continue
        pipe.send(work(job, Reporter(lambda done, total: pipe.send((done, total))), pipe.send))


def _receive(pipe: Connection, inbox: "queue.SimpleQueue[bytes]") -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            inbox.put(pipe.recv_bytes())
    os._exit(1)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread inside. So sums have one order, and a run in this process gives the numbers of a
    run in a worker process.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    try:
        with threadpool_limits(1):
            torch.set_num_threads(1)
            yield
    finally:
        torch.set_num_threads(before)
