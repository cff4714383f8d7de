"""The output of `dither list` and `dither show`: figures, their cost, their claims and the
verdicts; how long so many workers take.
"""

import re
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import starmap
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from dither.errors import DitherError
from dither.lab import catalogue, planning
from dither.lab.data import needs
from dither.lab.figure import SCALES, Figure
from dither.lab.page import report
from dither.lab.runs.store import Store
from dither.lab.wording import duration


def figures(names: Sequence[str], console: Console) -> None:
    """Two lines per figure: name, number of claims, cost on one core at each scale, data; the
    title.
    """
    wide = max(map(len, names), default=0)
    say = partial(console.print, highlight=False, soft_wrap=True)
    scales = "".join(f"{scale:>9}" for scale in SCALES)
    say(f"[dim]{'figure':{wide}}  claims{scales}  needs[/]")
    for name in names:
        try:
            figure = catalogue.find(name)
        except DitherError as error:
            say(f"[red]{escape(f'{name}  {error}')}[/]")
            continue
        costs = "".join(f"{_cost(figure, scale) or _unknown(figure, scale):>9}" for scale in SCALES)
        data = ", ".join(n if needs.found(n) else f"{n} (missing)" for n in figure.needs)
        say(f"{name:{wide}}  {len(figure.claims):>6}{costs}  {escape(data)}".rstrip())
        for line in textwrap.wrap(catalogue.title(name), max(console.width - 4, 20)):
            say(f"[dim]    {escape(line)}[/]")


def figure(name: str, out: str, console: Console) -> None:
    """One figure: its text, its runs at each scale, its claims with verdicts, its departures."""
    chosen, store = catalogue.find(name), Store(out)
    say = partial(console.print, highlight=False, markup=False)
    say(f"{name}\n\n{_unwrapped(chosen.doc)}\n")
    for scale in chosen.scales:
        runs, seeds = chosen.at(scale), chosen.seeds_at(scale)
        wanted = [(run, n) for label, run in runs.items() for n in chosen.seeds_of(label, scale)]
        there, more = sum(starmap(store.has, wanted)), len(wanted) - len(runs) * seeds
        said = ", ".join(f"{k} = {v!r}" for k, v in getattr(chosen, scale).items()) or "no settings"
        cost = f", about {cost} on one core" if (cost := _cost(chosen, scale)) else ""
        of = f"{len(runs)} runs × {seeds} seeds{f' and {more} more' * (more > 0)}"
        say(f"{scale}: {of}, {there} of {len(wanted)} there{cost} ({said})")
    say(f"\nruns: {' · '.join(chosen.at('paper'))}\n")
    for line in _claims(chosen, store.root / "figures" / name):
        say(line)
    if chosen.departures:
        say("departures from the paper:")
    for departure in chosen.departures:
        console.print(_hung("- ", departure), highlight=False)


def plan(names: Sequence[str], scale: str, workers: Sequence[int], out: str, say: Console) -> None:
    """What the figures cost at a scale, and how long so many workers take for all of them."""
    if scale not in SCALES:
        raise DitherError(f"scale {scale!r} is none of {', '.join(SCALES)}")
    chosen = [figure for figure in map(catalogue.find, names) if scale in figure.scales]
    if not chosen:
        raise DitherError(f"none of these figures has a {scale} scale: {', '.join(names)}")
    costs = planning.costs(chosen, scale, Store(out))
    grid = Grid("figure", "runs", "on one core", "longest run", box=None)
    for column in grid.columns[1:]:
        column.justify = "right"
    by_name = {cost.figure.name: cost for cost in costs}
    for name in (name for name in names if name in by_name):
        cost = by_name[name]
        runs = f"{cost.runs}{f' + {cost.shared} shared' * (cost.shared > 0)}"
        grid.add_row(name, runs, _hours(sum(cost.hours)), _hours(max(cost.hours, default=0)))
    hours = [hour for cost in costs for hour in cost.hours if hour == hour]
    runs = sum(cost.runs for cost in costs)
    grid.add_row("all", str(runs), _hours(sum(hours)), _hours(max(hours, default=0)))
    say.print(grid)
    if unknown := [cost.figure.name for cost in costs if any(h != h for h in cost.hours)]:
        say.print(f"without a cost, and left out below: {', '.join(unknown)}", soft_wrap=True)
    rows = Grid("workers", "as ordered", "idle", "longest first", "idle", "at least", box=None)
    for column in rows.columns:
        column.justify = "right"
    for n in workers:
        ours = planning.schedule(hours, n)
        best = planning.schedule(sorted(hours, reverse=True), n)
        why, least = max(best.bounds.items(), key=lambda bound: bound[1])
        rows.add_row(
            str(n), _hours(ours.hours), f"{ours.idle:.0%}", _hours(best.hours), f"{best.idle:.0%}",
            f"{_hours(least)} ({why})",
        )  # fmt: skip
    say.print()
    say.print(rows)


def _hours(hours: float) -> str:
    return "?" if hours != hours else duration(3600 * hours) if hours else "–"


def _claims(chosen: Figure, folder: Path) -> Iterator[str | Grid]:
    """Every claim, with the verdict and the numbers of the last result in the folder, if any."""
    about, entries = report.judged(folder) if (folder / "figure.json").is_file() else ({}, [])
    judged = {entry["id"]: entry for entry in entries}
    if about.get("problem"):
        yield f"claims, not run: {about['problem']}"
    elif about:
        count = len(about["seeds"]) - len(about["left out"])
        s = "s" * (count != 1)
        yield f"claims, judged at scale {about['scale']} over {count} seed{s}:"
    else:
        yield "claims, not judged yet:"
    for why, labels in report.by_reason(about.get("missing", {})):
        yield f"not run: {' · '.join(labels)}: {why}"
    for claim in chosen.claims:
        entry = judged.get(claim.id, {})
        word, mark = report.VERDICTS[entry.get("holds")]
        own = f" (seeds {entry['own seeds']} alone)" if "own seeds" in entry else ""
        yield _hung(f"{mark} ", f"{claim.id}{f' {word}' if entry else ''}: {claim.text}{own}")
        numbers = {} if about.get("problem") else entry.get("numbers", {})
        for key, number in numbers.items():
            label = "" if key == "why" else f"{key}: "
            yield _hung("    ", f"{label}{report.readable(number)}")
    yield ""


def _hung(head: str, text: str) -> Grid:
    """A line with a head and a text, wrapped under the start of the text."""
    grid = Grid.grid()
    grid.add_column(no_wrap=True, width=len(head))
    grid.add_column()
    grid.add_row(escape(head), escape(text))
    return grid


def _cost(figure: Figure, scale: str) -> str:
    return duration(60 * figure.cost[scale]) if scale in figure.cost else ""


def _unknown(figure: Figure, scale: str) -> str:
    return "?" if scale in figure.scales else "–"


def _unwrapped(doc: str) -> str:
    """A docstring with one line per paragraph. Indented lines (formulas) stay."""
    return re.sub(r"(?<=\S)[ ]?\n(?=[^\s])", " ", doc.strip())
