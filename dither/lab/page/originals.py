"""The papers' own claims, each with its verdict at the best scale.

The verdicts come from folders of results (`figures/<paper>/<figure>/claims.json`), of recorded runs
and of the quick scale. A claim is taken from the largest scale that judges it. If none does, it is
taken from the largest scale at which its runs could be compared, or else from the largest with a
result.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dither.lab import catalogue
from dither.lab.figure import SCALES
from dither.lab.original import Original
from dither.lab.page import verdicts

Entry = dict[str, Any]
Known = Mapping[str, list[Entry]]  # {"camuto2020/fig3: C4 MLP": entries, the largest scale first}


def known(*roots: Path, unread: Collection[str] = ()) -> Known:
    """Every claim that has an entry in these folders of results. unread: figures to leave out."""
    entries_of: dict[str, list[Entry]] = {}
    for folder in (path.parent for root in roots for path in root.glob("figures/*/*/figure.json")):
        name = "/".join(folder.parts[-2:])
        if name in unread:
            continue
        about, entries = verdicts.judged(folder)
        for entry in entries:
            said = {"scale": about["scale"], **entry, "figure": name}
            entries_of.setdefault(f"{name}: {entry['id']}", []).append(said)
    for entries in entries_of.values():
        entries.sort(key=lambda e: -SCALES.index(e["scale"]))
    return entries_of


def best(entries: Iterable[Entry]) -> Entry | None:
    """The entry of the largest scale that judges the claim; if none does, of the largest at which
    there was something to compare; or else of the largest scale.
    """
    entries = list(entries)
    decided = [entry for entry in entries if entry["holds"] is not None]
    compared = [entry for entry in entries if findings(entry)]
    return next(iter([*decided, *compared, *entries]), None)


@dataclass(frozen=True)
class Row:
    """An original claim with its results."""

    original: Original
    deciding: dict[str, Entry | None]  # {"camuto2020/fig3: C4 MLP": …}; None: not run anywhere
    variants: dict[str, Entry] = field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        """True if all deciding claims hold, False if one fails, None else."""
        holds = [entry["holds"] if entry else None for entry in self.deciding.values()]
        return False if False in holds else None if None in holds else True

    @property
    def said(self) -> tuple[str, str]:
        """The verdict as a word and a mark: ("holds", "✓")."""
        return verdicts.VERDICTS[self.holds] if self.original.counts else verdicts.FREE

    @property
    def shown(self) -> list[Entry]:
        """The entries whose numbers support the verdict."""
        there = [entry for entry in self.deciding.values() if entry]
        return [entry for entry in there if entry["holds"] is self.holds] or there

    @property
    def scale(self) -> str:
        return ", ".join(dict.fromkeys(entry["scale"] for entry in self.shown)) or "–"

    @property
    def seeds(self) -> str:
        return ", ".join(dict.fromkeys(str(entry["seeds"]) for entry in self.shown)) or "–"

    @property
    def evidence(self) -> list[str]:
        """The intervals, or else the first number. If it is not judged: why."""
        return list(dict.fromkeys(t for entry in self.shown for t in evidence(entry)[:2]))[:2]

    @property
    def parts(self) -> str:
        """Of several claims that decide it: "C1 Boston ✓, C1 CIFAR-10 not run"."""
        if len(self.deciding) == 1 or not any(self.deciding.values()):
            return ""
        marks = (
            f"{name.partition(': ')[2]} {verdicts.VERDICTS[e['holds']][1] if e else 'not run'}"
            for name, e in self.deciding.items()
        )
        return ", ".join(marks)

    @property
    def limits(self) -> str:
        """A sentence: what its verdict does not say, if it rests on the decisive scale."""
        judged = self.holds is not None and any(e["scale"] == "decisive" for e in self.shown)
        return self.original.limits if judged else ""

    @property
    def missing(self) -> str:
        """A sentence: what would settle it; "" if it is settled."""
        if self.holds is not None:
            return ""
        return self.original.settle or f"A run: `dither reproduce {self.original.figure}`."


def rows(paper: str, known: Known) -> list[Row]:
    """The claims of a paper, in its order; [] for a paper without a list."""
    originals = catalogue.originals(paper)
    table = []
    for original in originals:
        deciding = {name: best(known.get(name, ())) for name in original.by}
        own = re.compile(rf"{paper}/\w+: {re.escape(original.id)}(?!\d)")
        others = {n: best(e) for n, e in known.items() if own.match(n) and n not in deciding}
        variants = {name: entry for name, entry in others.items() if entry}
        table.append(Row(original, deciding, variants))
    return table


def ours(paper: str, known: Known) -> dict[str, Entry]:
    """Claims of the paper's figures that decide no claim of the paper."""
    taken = {name for row in rows(paper, known) for name in (*row.deciding, *row.variants)}
    rest = {n: best(e) for n, e in known.items() if n.startswith(f"{paper}/") and n not in taken}
    return {name: entry for name, entry in rest.items() if entry}


def findings(entry: Entry) -> dict[str, Any]:
    """The comparisons among an entry's numbers."""
    return {n: v for n, v in entry["numbers"].items() if isinstance(v, dict) and "asked" in v}


def evidence(entry: Entry) -> list[str]:
    """The reasons of an entry's verdict, in words: the intervals with the same verdict if there are
    any.
    """
    numbers = entry["numbers"]
    if entry["holds"] is None and "why" in numbers:
        why = re.sub(r"could not be judged: ('.+?') has no results: left out \(--only\)",
                     r"no results of \1", numbers["why"])  # fmt: skip
        return [re.split(r": put | and can't be fetched", why)[0]]
    found = findings(entry)
    own = {n: v for n, v in found.items() if v["holds"] is entry["holds"]} or found
    return [f"{name}: {verdicts.readable(value)}" for name, value in (own or numbers).items()]
