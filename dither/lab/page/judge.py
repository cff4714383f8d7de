"""From sealed runs to a figure's table, verdicts and picture, and their files.

An error in one claim or in the picture is reported in its place. The others are judged and drawn.
"""

import contextlib
import io
import math
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np
import polars as pl

from dither.errors import DitherError
from dither.lab import catalogue, rule
from dither.lab.figure import BUGS, Claim, Figure, Run, Task
from dither.lab.page.picture import lighter
from dither.lab.page.report import DPI
from dither.lab.runs import provenance
from dither.lab.runs.store import Store, json_text, write
from dither.lab.table import SCHEMA, Table
from dither.lab.wording import title_and_caption, whole

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable
    "svg.hashsalt": "dither",  # the same picture is the same file
    "font.family": "sans-serif",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "legend.frameon": False,
}
# matplotlib lays out with the widths of DejaVu; where that is missing, what comes next is narrower
DEJAVU = b"'DejaVu Sans'"
FONTS = b"'DejaVu Sans', Verdana, Helvetica, Arial, sans-serif"


@dataclass
class Study:
    """A figure at a scale, with its seeds, and the results of its runs."""

    name: str
    scale: str
    seeds: tuple[int, ...]
    command: str
    figure: Figure | None = None
    runs: Mapping[str, Run | Task] = field(default_factory=dict)
    unasked: set[str] = field(default_factory=set)  # labels of runs that --only leaves out
    problem: str = ""  # why it was not run
    waits: set[tuple[str, int]] = field(default_factory=set)  # (key, seed) not computed yet
    failures: dict[str, str] = field(default_factory=dict)  # label → sentence
    lost: dict[str, str] = field(default_factory=dict)  # "label, seed n" → sentence
    unread: dict[str, str] = field(default_factory=dict)  # label → sentence about a damaged result
    earlier: list[str] = field(default_factory=list)  # failed now, judged by earlier results
    claims: list[dict[str, Any]] = field(default_factory=list)  # as in claims.json
    table: Table | None = None
    chosen: bool = False  # whether the seeds were given; claims get no others then

    def seeds_of(self, label: str) -> tuple[int, ...]:
        """The seeds of a run to compute."""
        return self.seeds if self.chosen else tuple(sorted({*self.seeds, *self.asked_of(label)}))

    def asked_of(self, label: str) -> set[int]:
        """The seeds that claims with seeds of their own ask of a run."""
        return self.figure.asked_of(label, self.scale) if self.figure else set()

    def why_not(self, label: str, seed: int) -> str:
        """Why a seed that a claim asks of a run has no result."""
        left_out = "left out (--only)" if label in self.unasked else "left out (--seeds)"
        asked = label not in self.unasked and seed in self.seeds_of(label)
        none = "it has no results" if asked else left_out
        return self.lost.get(f"{label}, seed {seed}", none)

    def __str__(self) -> str:
        """Like "levi2022/fig3: 3 claims hold, 1 fails"."""
        if self.problem:
            return f"{self.name}: not run: {self.problem}"
        verdicts = [claim["holds"] for claim in self.claims]
        hold, fail, unclear = (verdicts.count(verdict) for verdict in (True, False, None))
        parts = [f"{hold} claim{'s hold' if hold != 1 else ' holds'}"] if hold else []
        parts += [f"{fail} fail{'s' if fail == 1 else ''}"] if fail else []
        parts += [f"{unclear} not judged"] if unclear else []
        verdict = ", ".join(parts) or "drawn, it has no claims"
        if self.earlier:
            verdict += (
                f"; {', '.join(self.earlier)} failed this time: results of an earlier run were used"
            )
        return f"{self.name}: {verdict}"


def conclude(study: Study, store: Store) -> None:
    """Judge and draw a figure after its runs, into DIR/figures/<name>/."""
    table = None if study.problem else tabulate(study, store)
    if table is not None and not table.seeds:
        reasons = (*study.failures.values(), *table.missing.values())
        study.problem = next(iter(reasons), "no seed has a result of every run")
        table = None
    study.table = table
    record, files = _record(study, store), {}
    claims = study.figure.claims_at(study.scale) if study.figure else ()
    if table is None:
        study.claims = [
            unjudged(claim, study.scale, f"not run: {study.problem}") for claim in claims
        ]
    else:
        study.claims = [_judged(study, claim, table, store) for claim in claims]
        files["numbers.csv"] = table.numbers().write_csv()
        files |= _drawn(study, table, store, record)
    files |= {"claims.json": json_text(study.claims), "figure.json": json_text(record)}
    folder = store.root / "figures" / study.name
    earlier = dict.fromkeys({"numbers.csv", "figure.svg", "figure.png"} - set(files))  # removed
    for file, content in (earlier | files).items():
        write(folder / file, content)


def tabulate(study: Study, store: Store) -> Table:
    """The table of the seeds that every run of the figure has. A run without results is missing.
    Seeds that claims ask of single runs are beside it.
    """
    there: dict[str, dict[int, pl.DataFrame]] = {}
    missing: dict[str, str] = {}
    for label, run in study.runs.items():
        try:
            seeds = [seed for seed in study.seeds if store.has(run, seed)]
            by_seed = {seed: _rows(label, seed, store.rows(run, seed)) for seed in seeds}
        except DitherError as error:  # one unreadable result must not hide the others
            missing[label] = study.unread[label] = str(error)
            continue
        if by_seed:
            there[label] = by_seed
        else:
            why = "left out (--only)" if label in study.unasked else "it has no results"
            missing[label] = study.failures.get(label, why)
    shared = set.intersection(*map(set, there.values())) if there else set()
    frames = [rows for seeds in there.values() for seed, rows in seeds.items() if seed in shared]
    more, lost = _asked(study, store, dict.fromkeys(there, shared))
    empty = pl.DataFrame(schema=SCHEMA)
    return Table(pl.concat([empty, *frames]), missing, pl.concat([empty, *more]), lost)


def _asked(
    study: Study, store: Store, shared: Mapping[str, set[int]]
) -> tuple[list[pl.DataFrame], dict[tuple[str, int], str]]:
    """What the table lacks of the seeds that claims ask of single runs: their rows, and {(label,
    seed): why} of those without results. shared: the seeds that the table has of each label.
    """
    more: list[pl.DataFrame] = []
    lost: dict[tuple[str, int], str] = {}
    for label, run in study.runs.items():
        for seed in sorted(study.asked_of(label) - shared.get(label, set())):
            try:
                if store.has(run, seed):
                    more.append(_rows(label, seed, store.rows(run, seed)))
                else:
                    lost[label, seed] = study.why_not(label, seed)
            except DitherError as error:
                lost[label, seed] = study.unread[f"{label}, seed {seed}"] = str(error)
    return more, lost


def _rows(label: str, seed: int, rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(pl.lit(label).alias("run"), pl.lit(seed, pl.Int64).alias("seed"), pl.all())


def judge(claim: Claim, table: Table, scale: str) -> tuple[dict[str, Any], str]:
    """The entry of claims.json, and a traceback if the check has a bug."""
    said = _said(claim)
    over: dict[str, Any] = {"seeds": len(table.seeds), "scale": scale}
    try:
        if claim.runs:
            over |= {"seeds": 0, "own seeds": whole(claim.seeds[scale])}
            table = table.select(claim.runs, claim.seeds[scale])
            over["seeds"] = len(table.seeds)
        holds, numbers = claim.check(table.whole())
        if not (holds is None or isinstance(holds, (bool, np.bool_))):
            raise TypeError(f"its check says holds = {holds!r}, not True, False or None")
        said["holds"] = None if holds is None else bool(holds)
        words = {str(k): number(v, len(table.seeds)) for k, v in numbers.items()}
        return {**said, "numbers": words, **over}, ""
    except DitherError as error:
        return {
            **said,
            "holds": None,
            "numbers": {"why": f"could not be judged: {error}"},
            **over,
        }, ""
    except BUGS as error:  # a bug of one claim must not hide the others
        why = f"could not be judged: {type(error).__name__}: {error}"
        return {**said, "holds": None, "numbers": {"why": why}, **over}, traceback.format_exc()


def unjudged(claim: Claim, scale: str, why: str) -> dict[str, Any]:
    """The entry of a claim whose figure was not run."""
    return {**_said(claim), "numbers": {"why": why}, "seeds": 0, "scale": scale}


def _said(claim: Claim) -> dict[str, Any]:
    free = {} if claim.counts else {"counts": False}
    return {"id": claim.id, "claim": claim.text, **free, "holds": None}


def number(value: Any, seeds: int) -> Any:
    """JSON of one of a claim's numbers: a number, a word, {"mean", "spread", …} for estimates,
    pairs and arrays of one value per seed, the interval of a finding, or a list of the values of an
    array.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, rule.Finding):
        return value.entry()
    if hasattr(value, "sem"):
        return {
            "mean": number(value.value, seeds),
            "spread": number(value.sem, seeds),
            "kind": "sem",
        }
    if isinstance(value, tuple) and len(value) == 2:
        return {"mean": number(value[0], seeds), "spread": number(value[1], seeds)}
    if isinstance(value, Mapping):
        raise TypeError(
            f"{dict(value)} among its numbers: give its entries as numbers of their own"
        )
    array = np.asarray(value)
    if array.size == 1:
        scalar = array.item()
        return scalar if math.isfinite(scalar) else str(scalar)
    if array.shape == (seeds,):
        with np.errstate(invalid="ignore"):  # of values that are inf
            mean, spread = (number(one, seeds) for one in (array.mean(), array.std(ddof=1)))
        return {"mean": mean, "spread": spread, "kind": "sd", "n": seeds}
    return [number(one, seeds) for one in array.ravel()]


def picture_files(figure: Figure, table: Table) -> dict[str, bytes]:
    """{"figure.svg": …, "figure.png": …}. Raises whatever the figure's plot raises."""
    import matplotlib

    if "matplotlib.pyplot" not in sys.modules:
        matplotlib.use("Agg")  # no backend is chosen yet: take one without a display
    with matplotlib.rc_context(STYLE):
        picture = figure.plot(table)
        try:
            return {f"figure.{kind}": _saved(picture, kind) for kind in ("svg", "png")}
        finally:
            if pyplot := sys.modules.get("matplotlib.pyplot"):
                pyplot.close(picture)


def _saved(picture: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    silent: dict[str, Any] = (
        {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    )
    picture.savefig(buffer, format=kind, dpi=DPI, metadata=silent)
    if kind == "svg":
        head, svg, rest = buffer.getvalue().replace(DEJAVU, FONTS).decode().partition("<svg")
        return f"{head}{lighter(svg + rest)}".encode()
    from PIL import Image  # a dependency of matplotlib; loaded only here

    small = io.BytesIO()  # 64 colours are enough for lines: a quarter of the bytes
    Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
        small, "PNG", optimize=True, dpi=(DPI, DPI)
    )
    return small.getvalue()


def _judged(study: Study, claim: Claim, table: Table, store: Store) -> dict[str, Any]:
    entry, stack = judge(claim, table, study.scale)
    if stack:
        entry["numbers"]["why"] = store.log(
            f"{study.name} {claim.id}", entry["numbers"]["why"], stack
        )
    return entry


def _drawn(study: Study, table: Table, store: Store, record: dict[str, Any]) -> dict[str, bytes]:
    """The files of the picture; or none, with the reason in the record."""
    assert study.figure
    try:
        return picture_files(study.figure, table)
    except DitherError as error:
        record["no picture"] = str(error)
    except BUGS as error:  # a bug of the picture must not hide the claims
        sentence = f"{type(error).__name__}: {error}"
        if table.missing:  # most pictures need all runs that they show
            label, why = next(iter(table.missing.items()))
            sentence = f"some of the runs that it may show have no results, as {label!r} ({why})"
        record["no picture"] = store.log(f"{study.name} picture", sentence, traceback.format_exc())
    return {}


def _envs(store: Store, wanted: Mapping[tuple[str, int], Run | Task]) -> Iterator[tuple[int, dict]]:
    """(seed, where it comes from) of each readable result. wanted: {(key, seed): run}."""
    for (_, seed), run in wanted.items():
        with contextlib.suppress(DitherError):  # its run is told to be missing
            if store.has(run, seed):
                yield seed, store.env(run, seed)


def _record(study: Study, store: Store) -> dict[str, Any]:
    """figure.json: the page's content besides the claims."""
    title, caption = title_and_caption(catalogue.doc(study.name))
    wanted = {
        (run.key, seed): run
        for label, run in study.runs.items()
        for seed in sorted({*study.seeds} | study.asked_of(label))
    }
    found = list(_envs(store, wanted))
    envs = [env for _, env in found]
    table = study.table
    return {
        "name": study.name,
        "title": title,
        "caption": caption,
        "scale": study.scale,
        "seeds": list(study.seeds),
        "left out": [seed for seed in study.seeds if table and seed not in table.seeds],
        "runs": len(study.runs),
        "more seeds": sum(seed not in study.seeds for seed, _ in found),
        "problem": study.problem,
        "missing": table.missing if table else {},
        "failures": study.failures,
        "lost": study.lost,
        "earlier": study.earlier,
        "departures": study.figure.departures_at(study.scale) if study.figure else [],
        "command": study.command,
        "seconds": round(sum(env.get("seconds", 0) for env in envs), 1),
        "machines": _distinct([env.get("machine") for env in envs]),
        "versions": _distinct([provenance.versions_line(env) for env in envs]),
        "commits": _distinct([env.get("commit") for env in envs]),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _distinct(words: Sequence[str | None]) -> list[str]:
    return sorted({word for word in words if word})
