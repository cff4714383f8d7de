"""Which runs of which figures are missing → workers → sealed results → pictures, claims, page.

The command may be stopped at any time. A run writes a checkpoint every few minutes and is sealed
when it is finished. A figure is judged, and the page rewritten, after the figure's last run. The
same command continues where the last one stopped.
"""

import contextlib
import difflib
import itertools
import math
import shlex
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dither.errors import DitherError
from dither.lab import catalogue, identity
from dither.lab.data import needs
from dither.lab.figure import BUGS, SCALES, Run, Task
from dither.lab.page import report
from dither.lab.page.judge import Study, conclude
from dither.lab.runs.cluster import Cluster
from dither.lab.runs.jobs import Job, Outcome
from dither.lab.runs.screen import Quiet, Screen
from dither.lab.runs.store import Blocked, OtherFormat, Store
from dither.lab.runs.workers import InProcess, Processes
from dither.lab.wording import duration

TOGETHER = 32  # seeds of a narrow network in one program; a kill loses at most these


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. The message says how many runs are finished."""


@dataclass(frozen=True)
class Results:
    """The result of `reproduce`: the page, the study of each figure (claims, table, problem), the
    runs that failed, and what could not be read or written.
    """

    page: Path
    figures: dict[str, Study]
    failures: dict[str, str]  # run → sentence
    damaged: list[str] = field(default_factory=list)  # sentences, each about a file or folder

    @property
    def claims(self) -> list[dict[str, Any]]:
        return [claim for study in self.figures.values() for claim in study.claims]

    def __repr__(self) -> str:
        return "\n".join([*map(str, self.figures.values()), f"The page: {self.page.resolve()}"])

    @property
    def failed_claims(self) -> dict[str, dict[str, Any]]:
        """{"levi2022/fig3 L5": the claim as in claims.json}."""
        studies = self.figures.values()
        return {f"{s.name} {c['id']}": c for s in studies for c in s.claims if c["holds"] is False}


def reproduce(
    names: str | Sequence[str] = (),
    *,
    scale: str = "quick",
    seeds: int | Iterable[int] | None = None,
    only: str | Sequence[str] = (),
    jobs: int = 1,
    out: str | Path = "results",
    cluster: str | None = None,
    resources: Mapping[str, float] | None = None,
    again: bool = False,
    screen: Screen | None = None,
) -> Results:
    """Compute the missing runs of the named figures, judge the claims and write the page.

    names     "levi2022/fig3", "levi2022" (a paper) or globs; none: all figures
    seeds     how many, or which; None: the number that each figure has for the scale
    only      labels of runs, or globs. Other runs are not computed, and claims that need one are
              not judged
    jobs      processes
    cluster   the address of a Dask scheduler, or "local"
    resources  what a worker of the cluster must offer for each run: {"GPU": 1}
    again     compute finished runs once more

    Raises DitherError if nothing can be run. A run that fails is reported in `failures` and on the
    page, and the others continue.
    """
    if scale not in SCALES:
        raise DitherError(f"scale {scale!r} is none of {', '.join(SCALES)}")
    if resources and cluster is None:
        raise DitherError("resources are what a Dask worker offers: give a cluster, too")
    if jobs < 1:
        raise DitherError(f"jobs = {jobs}: at least one process has to do the work")
    chosen = _chosen(seeds)
    figures = catalogue.match([names] if isinstance(names, str) else names)
    if not figures:
        raise DitherError(f"there is no figure in {catalogue.PAPERS}")
    only = (only,) if isinstance(only, str) else tuple(only)
    session = Session(Store(out), screen or Quiet(), again, only)
    studies = session.having(scale, [session.study(name, scale, chosen) for name in figures])
    asked = _asked(studies, only)
    for study in studies:
        study.unasked = set(study.runs) - asked[study.name]
    studies = [study for study in studies if study.problem or asked[study.name]]
    session.store.prepare()
    studies.sort(
        key=lambda s: s.figure.cost.get(scale, math.inf) if s.figure else 0
    )  # cheapest first; stable
    return session.run(studies, jobs, cluster, resources)


class Session:
    """One call of `reproduce`, with its store and its screen."""

    def __init__(
        self, store: Store, screen: Screen, again: bool, only: tuple[str, ...] = ()
    ) -> None:
        self.store, self.screen, self.again, self.only = store, screen, again, only
        self.failures: dict[str, str] = {}
        self.damaged: dict[str, None] = {}  # sentences, in order
        self.absent: dict[str, str] = {}  # data set → why it is missing; "" if it is here

    def study(self, name: str, scale: str, seeds: tuple[int, ...] | None) -> Study:
        """The study of a figure and its runs. An error of the figure becomes its problem."""
        typed = command(name, scale, seeds, self.store.root, self.only)
        study = Study(name, scale, seeds or (), typed, chosen=seeds is not None)
        try:
            study.figure = catalogue.find(name)
            study.seeds = seeds or tuple(range(study.figure.seeds_at(scale)))
            runs = study.figure.at(scale)
            for run in runs.values():
                identity.key(run)  # an object without identity shows here, not later
            study.runs = runs
        except DitherError as error:
            study.problem = str(error)
        except BUGS as error:  # a bug of a figure must not hide the others
            study.problem = self.store.log(
                name, f"{type(error).__name__}: {error}", traceback.format_exc()
            )
        return study

    def having(self, scale: str, studies: list[Study]) -> list[Study]:
        """The studies whose figures have this scale. The others are named and left out; their
        results stay. Raises DitherError if none is left.
        """
        lacking = [s for s in studies if s.figure and scale not in s.figure.scales]
        if not lacking:
            return studies
        if len(lacking) == len(studies):
            raise DitherError(lacking[0].problem)
        named = ", ".join(study.name for study in lacking)
        self.screen.say(f"left out, because they have no {scale} scale: {named}")
        return [study for study in studies if study not in lacking]

    def run(
        self,
        studies: list[Study],
        jobs: int,
        cluster: str | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> Results:
        page = self._write_page()
        self.screen.say(f"The page: {page.resolve()}")
        plan = self._plan(studies)
        total, done = sum(len(job.seeds) for job in plan), 0
        width = min(jobs, len(plan))
        workers = InProcess() if width < 2 else Processes(width)
        if cluster is not None:
            workers = Cluster(cluster, width, resources)
        self.screen.say(_opening(studies, total, width, cluster))
        try:
            for study in (s for s in studies if not s.waits):
                self._conclude(study)
            if plan:
                self.screen.begin(total)
                with contextlib.closing(workers.outcomes(plan, self.screen)) as outcomes:
                    for job, outcome in outcomes:
                        done += self.take(job, outcome)
                        self._settle(studies, job, outcome)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped: {_kept(done, total)}") from None
        except DitherError as error:
            if not done:
                raise
            raise DitherError(f"{error}; {_kept(done, total)}") from error
        finally:
            self.screen.close()
        self.damage(*report.problems(self.store.root))
        named = {study.name: study for study in studies}
        results = Results(page, named, self.failures, list(self.damaged))
        if results.failed_claims:
            self.screen.say("fails:")
        for name, claim in results.failed_claims.items():
            self.screen.say(f"  {name}: {claim['claim']}")
        self.screen.say(f"The page: {page.resolve()}")
        return results

    def _plan(self, studies: list[Study]) -> list[Job]:
        """The missing runs, each once, also if several figures share it."""
        planned: dict[str, Job] = {}
        for study in (s for s in studies if not s.problem):
            missing = {
                label: [n for n in study.seeds_of(label) if self.again or self._lacks(run, n)]
                for label, run in study.runs.items()
                if label not in study.unasked
            }
            if any(missing.values()) and (absent := self._absent(study)):
                study.problem = absent
                continue
            for label, seeds in missing.items():
                run = study.runs[label]
                study.waits |= {(run.key, seed) for seed in seeds}
                before = planned.get(run.key, Job(run, (), f"{study.name} · {label}"))
                planned[run.key] = replace(before, seeds=tuple(sorted({*before.seeds, *seeds})))
        return [
            replace(part, folder=str(self.store.checkpoints(job.run)))
            for job in planned.values()
            for part in parts(job, [] if self.again else self.store.programs(job.run))
        ]

    def _lacks(self, run: Run | Task, seed: int) -> bool:
        """Whether a result must be computed. One that can't be read is reported where it is used.
        Raises DitherError for one of another format, before any work.
        """
        try:
            return not self.store.has(run, seed)
        except OtherFormat:
            raise
        except DitherError:
            return False

    def _absent(self, study: Study) -> str:
        """Why a figure's data are missing; "" if they are here: its needs, and the set of all its
        runs at this scale. Each set is fetched once.
        """
        of_runs = {getattr(getattr(run, "data", None), "name", "") for run in study.runs.values()}
        only = [n for n in of_runs if len(of_runs) == 1 and n.removesuffix("-rgb") in needs.names()]
        for need in (*study.figure.needs, *only) if study.figure else ():
            if need not in self.absent:
                if needs.fetchable(need):
                    self.screen.say(f"{need} is not on this machine: fetching it")
                try:
                    needs.bring(need)
                    self.absent[need] = ""
                except DitherError as error:
                    self.absent[need] = f"data absent: {error}"
            if self.absent[need]:
                return self.absent[need]
        return ""

    def take(self, job: Job, outcome: Outcome) -> int:
        """Seal the result of a job, or record why there is none. Returns the number of finished
        runs.
        """
        if outcome.rows:
            try:
                self.store.seal(job.run, outcome.rows, env=outcome.env, replace=self.again)
            except Blocked as error:  # the others can be written
                outcome.sentence, outcome.rows = str(error), None
        if outcome.rows:
            from dither.lab.training import checkpoint  # imports torch

            checkpoint.remove(self.store.checkpoints(job.run), job.seeds)
        if outcome.traceback:
            outcome.sentence = self.store.log(str(job), outcome.sentence, outcome.traceback)
        if outcome.sentence:
            self.failures[str(job)] = outcome.sentence
        self.screen.finish(job, outcome.sentence)
        return len(outcome.rows or {})

    def _settle(self, studies: list[Study], job: Job, outcome: Outcome) -> None:
        """Conclude the figures that waited for this job alone."""
        over = {(job.run.key, seed) for seed in job.seeds}
        for study in (s for s in studies if s.waits & over):
            study.waits -= over
            if outcome.sentence:
                labels = [label for label, run in study.runs.items() if run.key == job.run.key]
                failed = [seed for seed in job.seeds if seed not in (outcome.rows or {})]
                for label, seed in itertools.product(labels, failed):
                    own = seed not in study.seeds
                    name = f"{label}, seed {seed}" if own else label
                    (study.lost if own else study.failures)[name] = outcome.sentence
                    if not self._lacks(job.run, seed):
                        study.earlier = [*dict.fromkeys([*study.earlier, name])]
            if not study.waits:
                self._conclude(study)

    def _conclude(self, study: Study) -> None:
        try:
            conclude(study, self.store)
        except DitherError as error:  # a file of this figure can't be written; others can
            self.damage(str(error))
        self._write_page()
        self.screen.say(str(study))
        self.damage(*study.unread.values())

    def _write_page(self) -> Path:
        try:
            return report.write_page(self.store.root)
        except DitherError as error:  # the results can be written
            self.damage(str(error))
        return self.store.root / "index.html"

    def damage(self, *sentences: str) -> None:
        """Tell what can't be read or written, each once."""
        for sentence in sentences:
            if sentence not in self.damaged:
                self.damaged[sentence] = None
                self.screen.say(sentence)


def command(
    name: str, scale: str, seeds: Sequence[int] | None, out: Path, only: Sequence[str] = ()
) -> str:
    """The command that gives this result."""
    words = ["dither reproduce", name, f"--scale {scale}"]
    words += [f"--only {shlex.quote(pattern)}" for pattern in only]
    if seeds:
        first, last = seeds[0], seeds[-1] + 1
        words.append(f"--seeds {last}" if first == 0 else f"--seeds {first}:{last}")
    return " ".join(words if out == Path("results") else [*words, f"--out {shlex.quote(str(out))}"])


def _chosen(seeds: int | Iterable[int] | None) -> tuple[int, ...] | None:
    if seeds is None:
        return None
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
        raise DitherError(
            f"seeds = {seeds!r} is empty, has one below 0, or one twice: give a number above 0"
        )
    return chosen


def _asked(studies: list[Study], only: Sequence[str]) -> dict[str, set[str]]:
    """{figure: labels of the runs to compute}: all, or those that match a pattern of `only`. A run
    that several figures share matches by any of its labels. Raises DitherError for a pattern that
    matches no label.
    """
    if not only:
        return {study.name: set(study.runs) for study in studies}
    labels = list(dict.fromkeys(label for study in studies for label in study.runs))
    for pattern in only:
        if labels and not any(fnmatchcase(label, pattern) for label in labels):
            near = difflib.get_close_matches(pattern, labels, n=3, cutoff=0.3)
            there, some = "near" if near else "there is", ", ".join(map(repr, near or labels[:8]))
            some += ", …" if not near and len(labels) > 8 else ""
            raise DitherError(
                f"--only {pattern}: no run is called that; {there}: {some} (repeat --only for each)"
            )
    fits = {label for label in labels if any(fnmatchcase(label, pattern) for pattern in only)}
    keys = {run.key for study in studies for label, run in study.runs.items() if label in fits}
    return {
        study.name: {label for label, run in study.runs.items() if run.key in keys}
        for study in studies
    }


def _opening(studies: list[Study], total: int, width: int, cluster: str | None) -> str:
    figures = f"{len(studies)} figure{'s' * (len(studies) != 1)} at scale {studies[0].scale}"
    if not total:
        return f"{figures}, nothing to compute"
    where = "in this process" if width < 2 else f"in {width} processes"
    where = where if cluster is None else f"on the cluster {cluster}"
    known = _declared(studies)
    cost = f" (about {duration(60 * known)} on one core)" if known else ""
    return f"{figures}: {total} run{'s' * (total != 1)} to do {where}{cost}"


def _declared(studies: list[Study]) -> float:
    """Minutes on one core of the missing runs: equal parts of what their first figures declare."""
    each: dict[tuple[str, int], float] = {}
    for study in studies:
        if (figure := study.figure) and study.runs:
            whole = sum(len(figure.seeds_of(label, study.scale)) for label in study.runs)
            one = figure.cost.get(study.scale, 0) / whole
            each = {**dict.fromkeys(study.waits, one), **each}
    return sum(each.values())


def _kept(done: int, total: int) -> str:
    kept = f"{done} of {total} run{'s' * (total != 1)} finished and kept"
    return f"{kept}; the same command goes on with the rest"


def parts(job: Job, known: Sequence[tuple[int, ...]] = ()) -> list[Job]:
    """A job as programs of at most `TOGETHER` seeds; one seed each where they can't be stacked. A
    seed that was in a known program is computed with the others of it, for the same last digits.
    """
    again = [seeds for seeds in known if job.run.stacked and {*seeds} & {*job.seeds}]
    left = [seed for seed in job.seeds if not any(seed in seeds for seeds in again)]
    size = TOGETHER if job.run.stacked else 1
    new = [tuple(left[i : i + size]) for i in range(0, len(left), size)]
    return [replace(job, seeds=seeds) for seeds in (*again, *new)]
