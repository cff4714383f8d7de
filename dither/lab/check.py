"""Compare the results in a folder with their checksums, and compute damaged ones again."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dither.errors import DitherError
from dither.lab import catalogue, reproduce
from dither.lab.figure import BUGS
from dither.lab.runs.jobs import Job
from dither.lab.runs.screen import Quiet, Screen
from dither.lab.runs.store import FILES, OtherFormat, Store
from dither.lab.runs.workers import InProcess, Processes


@dataclass
class Report:
    """The condition of a folder of results.

    whole       how many results are whole
    unsealed    how many of them have no checksums, since an earlier version wrote them
    damaged     {folder of a result: what is wrong with it}
    """

    whole: int = 0
    unsealed: int = 0
    damaged: dict[Path, str] = field(default_factory=dict)

    def __str__(self) -> str:
        said = f"{self.whole} result{'s are' if self.whole != 1 else ' is'} whole"
        if self.unsealed:
            said += f", of which {self.unsealed} can be read but have no checksum"
        return f"{said}; {len(self.damaged)} damaged"


def check(store: Store) -> Report:
    """Read every result of a store. Raises DitherError if there is none, or if another version of
    dither wrote one.
    """
    if not (store.root / "runs").is_dir():
        raise DitherError(f"there are no results in {store.root}: `dither reproduce` makes some")
    report = Report()
    for folder in _folders(store.root / "runs", report.damaged):
        try:
            sums = _read(store, folder)
        except OtherFormat:
            raise
        except DitherError as error:
            report.damaged[folder] = str(error)
        else:
            report.whole += 1
            report.unsealed += not sums
    return report


def _folders(runs: Path, damaged: dict[Path, str]) -> Iterator[Path]:
    """The places of results: runs/<key>/<seed>. Hidden ones belong to writers and running runs."""
    for key in sorted(path for path in runs.iterdir() if not path.name.startswith(".")):
        try:
            places = sorted(path for path in key.iterdir() if not path.name.startswith("."))
            yield from (path for path in places if path.name.isdecimal() or path.is_dir())
        except OSError as error:
            damaged[key] = f"{key} is no folder of results ({error.strerror}): move it away"


def _read(store: Store, folder: Path) -> bool:
    """Whether a whole result has checksums."""
    try:
        lost = [file for file in FILES if not (folder / file).is_file()]
    except OSError as error:
        raise DitherError(f"{folder} can't be read ({error.strerror})") from error
    if lost:
        raise DitherError(f"{folder} lacks {', '.join(lost)}")
    store.env_of(folder)
    store.rows_of(folder)
    said = store.said_of(folder)
    if (said.get("key"), str(said.get("seed"))) != (folder.parent.name, folder.name):
        raise DitherError(f"{folder} holds the run {said.get('key')}, seed {said.get('seed')}")
    return bool(store.sums_of(folder))


def repair(
    store: Store, damaged: dict[Path, str], jobs: int = 1, screen: Screen | None = None
) -> list[str]:
    """Compute the damaged results again. A result is replaced when the new one is there.

    Returns a sentence for each result that could not be computed: no figure has the run any more,
    or it failed.
    """
    session = reproduce.Session(store, screen or Quiet(), again=True)
    known, plan, said = dict(_runs()), [], []
    for folder in damaged:
        job = known.get(folder.parent.name)
        if folder.parent.name == "runs":
            said.append(damaged[folder])
            continue
        if job is None or not folder.name.isdecimal():
            said.append(f"{folder}: no figure has this run; delete the folder")
            continue
        here = str(store.checkpoints(job.run))
        plan.append(Job(job.run, (int(folder.name),), job.label, here))
    if not plan:
        return said
    store.prepare()
    width = min(jobs, len(plan))
    workers = Processes(width) if width > 1 else InProcess()
    session.screen.begin(len(plan))
    try:
        with contextlib.closing(workers.outcomes(plan, session.screen)) as outcomes:
            for job, outcome in outcomes:
                session.take(job, outcome)
    finally:
        session.screen.close()
    return said + [f"{job}: {why}" for job, why in session.failures.items()]


def _runs() -> Iterator[tuple[str, Job]]:
    """Every run of every figure at every scale: (its key, a job without seeds)."""
    for name in catalogue.names():
        with contextlib.suppress(*BUGS):  # it can't be imported; the others can
            figure = catalogue.find(name)
            for scale in figure.scales:
                for label, run in figure.at(scale).items():
                    yield run.key, Job(run, (), f"{name} · {label}")
