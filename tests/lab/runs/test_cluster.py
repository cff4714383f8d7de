"""Dask: a cluster of real processes, some of which are killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tasks import decay, plain

from dither.errors import DitherError
from dither.lab.figure import Silent
from dither.lab.runs import cluster
from dither.lab.runs.interrupts import heard
from dither.lab.runs.screen import Quiet
from dither.lab.runs.store import Store, frame

pytest.importorskip("distributed")
HERE = Path(__file__).parents[2]

SERVER = """
import asyncio, distributed, sys
async def run(server):
    async with server:
        await server.finished()
async def main(kind, port):
    if kind == "Scheduler":
        await run(distributed.Scheduler(host="127.0.0.1", port=int(port), dashboard=False))
    else:
        where = f"tcp://127.0.0.1:{port}"
        await run(distributed.Worker(where, nthreads=2, death_timeout=100))
asyncio.run(main(*sys.argv[1:]))
"""


DIGITS = '''
    """Figure 1: digits.   Toy et al. 2024, Fig. 1"""

    from dither import Additive
    from dither.lab import Figure
    from matplotlib.figure import Figure as Picture
    from runs import run
    from dither.lab.nets.specs import MLP

    def runs():
        net = MLP((784, 100, 10))  # too wide for seeds to share a program
        return {f"σ = {s}": run(model=net, noise=Additive(s)) for s in (0.5, 0.1)}

    figure = Figure(runs, lambda table: Picture(), seeds={"smoke": 2})
'''


class Told(Quiet):
    """A screen that keeps what it is told, and acts on it."""

    def __init__(
        self, on_update=lambda job: None, on_say=lambda text: None, on_finish=lambda: None
    ):
        self.said, self.reports, self.finished = [], [], 0
        self.on_update, self.on_say, self.on_finish = on_update, on_say, on_finish

    def say(self, text):
        self.said.append(text)
        self.on_say(text)

    def update(self, job, done, total):
        self.reports.append((done, total))
        self.on_update(job)

    def finish(self, job, failure):
        self.finished += 1
        self.on_finish()


class World:
    """A scheduler's port, and the processes that were started for it."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address, self.processes = f"tcp://127.0.0.1:{self.port}", []

    def start(self, kind):
        path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, kind, str(self.port)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.processes.append(process)
        return process


# They start schedulers and workers, kill them, and wait: on a busy machine the waits are too short.
kills = pytest.mark.skipif("DITHER_KILLS" not in os.environ, reason="make faults runs it")


@pytest.fixture
def world():
    world = World()
    yield world
    for process in world.processes:
        process.kill()
        process.wait()


def rows(toy_results, tmp_path):
    """{(label, seed): rows} of what is sealed."""
    store, found = Store(tmp_path / "results"), {}
    for label, run in toy_results.figures["toy2024/fig1"].runs.items():
        for seed in range(2):
            if store.has(run, seed):
                found[label, seed] = store.rows(run, seed)
    return found


@kills
def test_a_worker_and_the_scheduler_die(toy, tmp_path, world, monkeypatch):
    """The worker's run starts again; the scheduler is waited for at its address; what is sealed
    stays; a scheduler that does not come back ends the call.
    """
    monkeypatch.setattr(cluster, "ANSWER", 100)
    monkeypatch.setattr(cluster, "BACK", 100)
    log = tmp_path / "log"
    more = {"function": "tasks:steady", "log": str(log), "seconds": 0.2}
    reproduce = toy(fig1=plain(smoke=more))
    scheduler, *_ = [world.start(kind) for kind in ("Scheduler", "Worker", "Worker")]
    killed = []

    def kill_its_worker(job):
        if killed:
            return
        rate, (seed,) = job.label.rpartition(" ")[2], job.seeds
        lines = [line.split() for line in log.read_text(encoding="utf-8").splitlines()]
        killed.append(next(int(pid) for r, s, pid in lines if (r, s) == (rate, str(seed))))
        os.kill(killed[0], signal.SIGKILL)

    def kill_the_scheduler(text):
        if "its worker died" in text:  # the lost run has begun again, so there is work left
            scheduler.kill()
            world.start("Scheduler")
            world.start("Worker")

    told = Told(kill_its_worker, kill_the_scheduler)
    results = reproduce(cluster=world.address, screen=told)
    assert not results.failures
    assert told.finished == 4  # each run once
    assert {total for _, total in told.reports} == {5}  # progress inside a run
    (died,) = [text for text in told.said if "its worker died" in text]
    assert died.endswith("its worker died: started again, 1")
    assert f"the Dask scheduler at {world.address} is lost: waiting 100 s for it" in told.said
    there = rows(results, tmp_path)
    assert len(there) == 4
    for (label, seed), found in there.items():
        rate = float(label.rpartition(" ")[2])
        assert found.equals(frame(decay(seed, Silent(), rate, steps=5)))

    monkeypatch.setattr(cluster, "BACK", 1)
    gone = Told(on_finish=lambda: world.processes[-2].kill())
    kept = r"\d of 4 runs finished and kept; the same command goes on with the rest"
    with pytest.raises(DitherError, match=f"lost and did not come back in 1 s.*{kept}"):
        reproduce(cluster=world.address, again=True, screen=gone)
    assert 1 <= gone.finished < 4


@kills
def test_ctrl_c_stops_what_runs_on_a_worker(toy, tmp_path, world, monkeypatch):
    """And the scheduler says what it lacks."""
    log = tmp_path / "log"
    more = {"function": "tasks:steady", "log": str(log), "seconds": 0.2, "steps": 1000}
    reproduce = toy(fig1=plain(smoke=more))
    world.start("Scheduler")
    monkeypatch.setattr(cluster, "ANSWER", 100)
    monkeypatch.setattr(cluster, "WORKERS", 1)
    told = Told()
    with pytest.raises(DitherError, match="has no worker with GPU=1, and none came in 1 s"):
        reproduce(cluster=world.address, resources={"GPU": 1}, screen=told)
    (none,) = [text for text in told.said if "has no worker with GPU=1: waiting 1 s" in text]
    assert f"dask worker {world.address}" in none
    monkeypatch.setattr(cluster, "WORKERS", 100)
    world.start("Worker")
    stop = Told(on_update=lambda job: signal.raise_signal(signal.SIGINT))
    with heard(), pytest.raises(KeyboardInterrupt, match="stopped: 0 of 4 runs finished"):
        reproduce(cluster=world.address, screen=stop)
    end = time.monotonic() + 60
    while "stopped" not in log.read_text(encoding="utf-8"):
        assert time.monotonic() < end, "the worker goes on"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_local_cluster_gives_the_rows_of_processes_and_of_this_process(toy, tmp_path):
    """Also where its workers must offer something."""
    reproduce = toy(fig1=DIGITS)
    found = [
        rows(reproduce(again=True, **how), tmp_path)
        for how in ({}, {"jobs": 2}, {"cluster": "local", "jobs": 2, "resources": {"GPU": 1}})
    ]
    assert len(found[0]) == 4
    for other in found[1:]:
        assert all(other[key].equals(found[0][key]) for key in found[0])


@pytest.mark.parametrize(
    ("address", "why"),
    [("", "''"), ("nowhere", "'nowhere'"), ("tls://x", "'tls://x'"), ("ucx://x", "'ucx://x'")],
)
def test_a_scheduler_that_can_not_be(toy, address, why):
    with pytest.raises(
        DitherError, match=rf"^no Dask scheduler answers at {why} \(.+\): give tcp://HOST:PORT or"
    ) as raised:
        toy(fig1=plain())(cluster=address)
    assert "\n" not in str(raised.value)


def test_resources_without_a_cluster(toy):
    with pytest.raises(DitherError, match="resources are what a Dask worker offers"):
        toy(fig1=plain())(resources={"GPU": 1})


@pytest.mark.parametrize("again", [False, True])
def test_a_frozen_scheduler_is_given_up(monkeypatch, again):
    """One that takes a connection and never answers, as a stopped process does."""
    for name, seconds in (("TRY", 0.3), ("ANSWER", 0.5), ("BACK", 0.5)):
        monkeypatch.setattr(cluster, name, seconds)
    says = "did not come back" if again else "no Dask scheduler answers"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(DitherError, match=says), cluster._connected(address, again=again):
            pass
