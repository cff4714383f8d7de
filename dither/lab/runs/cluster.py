"""Workers of a Dask cluster: at an address ("tcp://host:8786"), or "local" for processes of this
machine.

All jobs are handed in at once, the first with the highest priority, so that Dask can scale. A job
whose worker dies is started again by the scheduler. A scheduler that is lost (its connection broke,
or it is silent for `SILENCE` seconds) is waited for at its address for `BACK` seconds, and gets the
jobs that are left; after that the call ends.

A worker reports over a topic of the scheduler. At each report it asks whether the run is still
wanted: where the call has ended, the run stops.
"""

import asyncio
import concurrent.futures as cf
import contextlib
import logging
import queue
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any

from dither.errors import DitherError
from dither.lab.runs.interrupts import heed
from dither.lab.runs.jobs import Job, Outcome
from dither.lab.runs.screen import Screen
from dither.lab.runs.workers import HEARTBEAT, RETRIES, WHY, Outcomes, Reporter, work

ANSWER = 10  # seconds in which a scheduler must answer at first
SILENCE = 30  # seconds after which a scheduler that says nothing is lost
BACK = 30  # seconds to wait for a lost scheduler
WORKERS = 300  # seconds to wait for a worker
LOSSES = 5  # losses of a scheduler in succession without a word from a worker between
CENSUS = 2  # seconds between two counts of the workers
REPORT = 1.0  # seconds between two reports of a run
TRY = 3  # seconds for one attempt to connect
SLOW = (OSError, asyncio.TimeoutError)  # errors of a connection
LOGGERS = (
    "distributed",
    "distributed.client",
    "distributed.nanny",
    "tornado.application",
    "asyncio",
)


class Lost(Exception):
    """The scheduler is gone."""


class Cluster:
    """A Dask cluster. resources: what a worker must offer for each run, {"GPU": 1}."""

    def __init__(
        self, address: str, width: int, resources: Mapping[str, float] | None = None
    ) -> None:
        self.address, self.width, self.resources = address, width, dict(resources or {})

    def outcomes(self, jobs: Sequence[Job], screen: Screen) -> Outcomes:
        left, losses = dict(enumerate(jobs)), 0
        with _quiet(), contextlib.ExitStack() as stack:
            address = self._address(stack)
            while left:
                with _connected(address, again=losses > 0) as client:
                    batch = Batch(client, left, screen, self.resources, address)
                    try:
                        yield from batch.outcomes()
                        return
                    except Lost:
                        losses = 1 if batch.heard else losses + 1
                gone = f"the Dask scheduler at {address} is lost"
                if losses > LOSSES:
                    raise DitherError(f"{gone}, {losses} times before a worker began: see its log")
                screen.say(f"{gone}: waiting {BACK} s for it")

    def _address(self, stack: contextlib.ExitStack) -> str:
        try:
            from dask import config
            from distributed import LocalCluster
        except ImportError as error:
            raise DitherError("--cluster needs Dask: pip install 'dither[dask]'") from error
        if self.address != "local":
            return self.address
        options = {"n_workers": self.width, "threads_per_worker": 1, "dashboard_address": ":0"}
        bound = {"distributed.scheduler.allowed-failures": RETRIES}
        with config.set(bound):
            cluster = LocalCluster(
                **options, resources=self.resources, silence_logs=logging.CRITICAL
            )
        stack.enter_context(cluster)
        return cluster.scheduler_address


class Batch:
    """The jobs that are left, on a connection to a scheduler. A job that ends leaves `left`.

    Whatever happens comes through `news`: (number of the job, what, …).
    """

    def __init__(
        self,
        client: Any,
        left: dict[int, Job],
        screen: Screen,
        resources: dict[str, float],
        address: str,
    ) -> None:
        self.client, self.left, self.screen = client, left, screen
        self.resources, self.address = resources, address
        self.news: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.started: Counter[int] = Counter()
        self.heard, self.lost = False, False  # a word from a worker; the scheduler
        self.asked: list[cf.Future[None]] = []
        self.answered = time.monotonic()
        self.alone: float | None = None  # since when there is no worker

    def outcomes(self) -> Outcomes:
        try:
            self._submit()
            self._ask(self._count())
            while self.left:
                heed()
                yield from self._next()
        finally:
            for asked in self.asked:
                asked.cancel()

    def _next(self) -> Outcomes:
        """Take one piece of news. Raises Lost if there is none and the scheduler is gone."""
        try:
            number, what, *more = self.news.get(timeout=HEARTBEAT)
        except queue.Empty:
            silent = time.monotonic() - self.answered > SILENCE
            if self.lost or silent or self.client.status != "running":
                raise Lost from None
            return
        self.answered = time.monotonic()
        if what == "lost":
            self.lost = True  # what has arrived is taken first
        elif what == "workers":
            self._workers(*more)
        elif job := self.left.get(number):
            if what != "ended":
                self._report(number, job, what, more)
                return
            if not self.started[number]:
                self.screen.start(job)
            del self.left[number]
            yield job, more[0]

    def _ask(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run on the client's loop until the session ends."""
        self.asked.append(
            asyncio.run_coroutine_threadsafe(coroutine, self.client.loop.asyncio_loop)
        )

    def _submit(self) -> None:
        topic = f"dither-{uuid.uuid4().hex}"
        self.client.subscribe_topic(topic, lambda event: self.news.put(tuple(event[1])))
        options = {"pure": False, "retries": 0, "resources": self.resources or None}
        for number, job in self.left.items():
            try:
                future = self.client.submit(_afar, job, number, topic, priority=-number, **options)
            except Exception as error:
                if self.client.status != "running":
                    raise Lost from error
                self.news.put((number, "ended", Outcome.failed(error)))  # it can't be sent
            else:
                self._ask(self._deliver(number, future))

    async def _deliver(self, number: int, future: Any) -> None:
        """Wait for a job and pass its outcome on."""
        from distributed import KilledWorker

        try:
            outcome = await future._result()  # `gather` leaves tasks whose errors are logged
        except (*SLOW, cf.CancelledError) as error:
            if future.status != "error":  # the connection broke, not the job
                self.news.put((number, "lost"))
                return
            outcome = Outcome.failed(error)
        except KilledWorker as error:
            n = error.allowed_failures + 1
            outcome = Outcome(sentence=f"its worker died {n} times ({WHY})")
        except Exception as error:  # it could not be sent or received
            outcome = Outcome.failed(error)
        self.news.put((number, "ended", outcome))

    async def _count(self) -> None:
        """Count the workers that can take a run, again and again. It is a sign of life, too."""
        with contextlib.suppress(Exception):  # without an answer the scheduler is silent
            while self.client.status == "running":
                workers = (await self.client.scheduler.identity())["workers"].values()
                offers = [worker["resources"] for worker in workers]
                n = sum(
                    all(offer.get(name, 0) >= much for name, much in self.resources.items())
                    for offer in offers
                )
                self.news.put((None, "workers", n))
                await asyncio.sleep(CENSUS)

    def _workers(self, n: int) -> None:
        """Say if there is no worker. Raises DitherError if that has lasted too long."""
        now = time.monotonic()
        asked = "".join(f" with {name}={much:g}" for name, much in self.resources.items())
        none = f"the Dask scheduler at {self.address} has no worker{asked}"
        if n:
            self.alone = None
        elif self.alone is None:
            self.alone = now
            start = f"start one with `dask worker {self.address}`"
            self.screen.say(f"{none}: waiting {WORKERS} s for one; {start}")
        elif now - self.alone > WORKERS:
            raise DitherError(f"{none}, and none came in {WORKERS} s: start one with `dask worker`")

    def _report(self, number: int, job: Job, what: str, more: list[Any]) -> None:
        self.heard = True
        if what == "say":
            self.screen.say(*more)
        elif what == "at":
            self.screen.update(job, *more)
        else:
            if n := self.started[number]:
                self.screen.say(f"{job} · its worker died: started again, {n}")
            else:
                self.screen.start(job)
            self.started[number] += 1


_alone = threading.Lock()  # torch's generator and its number of threads belong to the process


def _afar(job: Job, number: int, topic: str) -> Outcome:
    """A job on a worker, one at a time, also where the worker has several threads."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def tell(what: str, *more: Any) -> None:
        worker.log_event(topic, (number, what, *more))

    def report(done: float, total: float) -> None:
        task = worker.state.tasks.get(key)
        if worker.status.name in ("closing", "closed") or not task or task.state == "cancelled":
            raise DitherError("the call that asked for this run has ended")
        tell("at", float(done), float(total))

    with _alone:
        tell("start")
        return work(job, Reporter(report, REPORT), lambda text: tell("say", text))


@contextlib.contextmanager
def _connected(address: str, *, again: bool) -> Iterator[Any]:
    """A client of the scheduler at an address. Raises DitherError if none answers in `ANSWER`
    seconds, again: in `BACK` seconds; at once for an address that can't be.
    """
    from distributed import Client

    deadline, client = time.monotonic() + (BACK if again else ANSWER), None
    while client is None:
        heed()
        try:
            with cf.ThreadPoolExecutor(1) as elsewhere:  # a notebook runs its own loop
                elsewhere.submit(asyncio.run, _knock(address)).result()
            client = Client(address, timeout=TRY, set_as_default=False)
        except Exception as error:
            hope = isinstance(error, SLOW) and (again or not _unknown(error))
            if hope and time.monotonic() < deadline:
                time.sleep(HEARTBEAT)
                continue
            if again:
                raise DitherError(
                    f"the Dask scheduler at {address} is lost and did not come back in {BACK} s: "
                    "start it and its workers, then give the same command"
                ) from error
            why = str(error) or type(error).__name__
            raise DitherError(
                f"no Dask scheduler answers at {address!r} ({why}): give tcp://HOST:PORT or local"
            ) from error
    try:
        yield client
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.close(timeout=TRY)


async def _knock(address: str) -> None:
    """Raises an error if no scheduler answers. A Client would log it, and once more later."""
    from distributed import Security
    from distributed.comm.core import connect

    options = Security().get_connection_args("client")
    # A scheduler that is frozen takes the connection and never shakes hands.
    (await asyncio.wait_for(connect(address, timeout=TRY, **options), TRY)).abort()


def _unknown(error: BaseException | None) -> bool:
    """Whether an error comes from a name that no machine has."""
    while error and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Dask's loggers are silent inside: what matters is said in sentences."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
