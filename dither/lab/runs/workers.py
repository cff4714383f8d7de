"""Workers: this process, local processes, or a Dask cluster, with one thread each, through
`concurrent.futures`.

Each has outcomes(jobs, screen) → (job, Outcome), in the order in which jobs end. A run that raises,
or that kills its process, gives an Outcome too, and the others continue. Workers write checkpoints
only: the caller seals results.
"""

import asyncio
import concurrent.futures as cf
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dither.errors import DitherError
from dither.lab.figure import Run
from dither.lab.runs import provenance
from dither.lab.runs.execute import execute
from dither.lab.runs.interrupts import heed
from dither.lab.runs.jobs import Job, Outcome
from dither.lab.runs.screen import Screen
from dither.lab.runs.spawning import without_main
from dither.lab.runs.store import frame

DIED = "its process died (killed, out of memory, or a crash in native code)"
PATIENCE = 10  # seconds to wait for a scheduler
HEARTBEAT = 0.2  # seconds between two checks for Ctrl-C
REPORT = 0.2  # seconds between two reports of a run's progress
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")


Outcomes = Generator[tuple[Job, Outcome], None, None]


class Reporter:
    """A progress that sends at most one report every `REPORT` seconds."""

    def __init__(self, send: Callable[[float, float], None]) -> None:
        self.send, self.due = send, 0.0

    def update(self, done: float, total: float) -> None:
        if (now := time.monotonic()) >= self.due:
            self.due = now + REPORT
            self.send(done, total)


def work(job: Job, send: Callable[[float, float], None], say: Callable[[str], None]) -> Outcome:
    """Execute a job in this process."""
    start = time.perf_counter()
    try:
        with _one_thread():
            keeper = _keeper(job, say)
            results = execute(job.run, job.seeds, Reporter(send), keeper)
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
            send = partial(screen.update, job)
            yield job, work(job, send, screen.say)


class Processes:
    """Local processes. Each holds one end of a pipe (the leash) and exits when the other end is
    closed, also if the parent was killed.
    """

    def __init__(self, width: int) -> None:
        self.width = width

    def outcomes(self, jobs: Sequence[Job], screen: Screen) -> Outcomes:
        waiting = deque(jobs)
        while waiting:
            suspects = yield from self._round(waiting, min(self.width, len(waiting)), screen)
            for job in suspects:  # one of them killed its process: run alone, they show which
                if (yield from self._round(deque([job]), 1, screen)):
                    yield job, Outcome(sentence=DIED)

    def _round(
        self, waiting: deque[Job], width: int, screen: Screen
    ) -> Generator[tuple[Job, Outcome], None, list[Job]]:
        """Compute until no job is left or a process dies. Returns the jobs that were in flight
        then.
        """
        context = multiprocessing.get_context("spawn")
        leash, ours = context.Pipe(duplex=False)
        reports = context.Queue()
        pool = cf.ProcessPoolExecutor(width, context, _begin, (leash, reports))
        listener = threading.Thread(target=_listen, args=(reports, screen), daemon=True)
        listener.start()
        flight: dict[cf.Future[Outcome], Job] = {}
        over = False
        try:
            with (
                _uninterrupted(),
                without_main(),
            ):  # processes start at the first submit, and inherit this
                _fill(flight, waiting, width, lambda job: pool.submit(_remote, job), screen)
            yield from _flow(flight, waiting, width, lambda job: pool.submit(_remote, job), screen)
            over = True
        except BrokenProcessPool:
            return list(flight.values())
        finally:
            if not over:  # else the processes end by themselves and clean up
                ours.close()
            pool.shutdown(wait=True, cancel_futures=True)
            ours.close()
            leash.close()
            # If the thread still runs when the interpreter ends, a semaphore of the queue is left
            # behind. But if a process died with the lock, a join would wait for ever.
            reports.put(None)
            listener.join(timeout=10 if over else 1)
            reports.close()
            _ = reports.cancel_join_thread() if listener.is_alive() else reports.join_thread()
        return []


class Cluster:
    """A Dask cluster: at an address ("tcp://host:8786"), or "local" for one of this machine's
    processes.
    """

    def __init__(self, address: str, width: int) -> None:
        self.address, self.width = address, width

    def outcomes(self, jobs: Sequence[Job], screen: Screen) -> Outcomes:
        with contextlib.ExitStack() as stack:
            client = self._client(stack)
            width = sum(client.nthreads().values())
            if not width:
                what = f"the Dask scheduler at {self.address}"
                raise DitherError(f"{what} has no workers: start one with `dask worker`")
            submit = client.get_executor(pure=False, retries=0).submit
            waiting, flight = deque(jobs), {}
            _fill(flight, waiting, width, lambda job: submit(_afar, job), screen)
            yield from _flow(flight, waiting, width, lambda job: submit(_afar, job), screen)

    def _client(self, stack: contextlib.ExitStack) -> Any:
        try:
            from distributed import Client, LocalCluster
            from distributed.comm.core import connect
        except ImportError as error:
            raise DitherError("--cluster needs Dask: pip install 'dither[dask]'") from error
        if self.address == "local":
            options = {"n_workers": self.width, "threads_per_worker": 1, "dashboard_address": None}
            cluster = LocalCluster(**options, silence_logs=logging.CRITICAL)
            return stack.enter_context(Client(stack.enter_context(cluster), set_as_default=False))

        async def knock() -> None:
            (await connect(self.address, timeout=PATIENCE)).abort()

        try:  # a Client without a scheduler logs again when it is collected
            with cf.ThreadPoolExecutor(1) as elsewhere:  # a notebook runs its own loop
                elsewhere.submit(asyncio.run, knock()).result()
        except (OSError, ValueError) as error:
            why = str(error) or type(error).__name__
            what = f"no Dask scheduler answers at {self.address!r}"
            raise DitherError(f"{what} ({why}): give tcp://HOST:PORT or local") from error
        return stack.enter_context(Client(self.address, timeout=PATIENCE, set_as_default=False))


def _fill(
    flight: dict[cf.Future[Outcome], Job],
    waiting: deque[Job],
    width: int,
    submit: Callable[[Job], cf.Future[Outcome]],
    screen: Screen,
) -> None:
    """Submit at most one job per worker, so that all jobs in flight are being computed."""
    while waiting and len(flight) < width:
        flight[submit(waiting[0])] = waiting[0]
        screen.start(waiting.popleft())


def _flow(
    flight: dict[cf.Future[Outcome], Job],
    waiting: deque[Job],
    width: int,
    submit: Callable[[Job], cf.Future[Outcome]],
    screen: Screen,
) -> Outcomes:
    while flight:
        heed()
        # Polars' handler of SIGINT restarts system calls: an endless wait would ignore Ctrl-C.
        done, _ = cf.wait(flight, timeout=HEARTBEAT, return_when=cf.FIRST_COMPLETED)
        for future in done:
            outcome = _result(future)
            yield flight.pop(future), outcome
        _fill(flight, waiting, width, submit, screen)


def _result(future: cf.Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        raise
    except Exception as error:  # it could not be sent or received, or a cluster lost its worker
        return Outcome.failed(error)


def _listen(reports: Any, screen: Screen) -> None:
    with contextlib.suppress(EOFError, OSError):
        while (report := reports.get()) is not None:
            _ = screen.say(report) if isinstance(report, str) else screen.update(*report)


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


_reports: Any = None  # the leash of a worker process


def _begin(leash: Connection, reports: Any) -> None:
    """Start a worker process: one thread; Ctrl-C is ignored, since the parent decides; it exits
    when the leash is closed.
    """
    global _reports
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    threading.Thread(target=_hold, args=(leash,), daemon=True).start()


def _hold(leash: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        leash.recv()
    os._exit(1)


def _remote(job: Job) -> Outcome:
    return work(job, lambda done, total: _reports.put((job, done, total)), _reports.put)


def _afar(job: Job) -> Outcome:
    return work(job, lambda done, total: None, print)


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
