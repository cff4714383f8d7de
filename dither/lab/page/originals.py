"""The papers' own claims, each with its verdict at the best scale there is.

What is known of a claim comes from folders of results (`figures/<paper>/<figure>/claims.json`): of
recorded runs and of the quick scale. A claim is taken from the largest scale that judges it, and,
where none does, from the largest scale there is.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dither.lab import catalogue
from dither.lab.figure import SCALES
from dither.lab.original import Original
from dither.lab.page import verdicts

Entry = dict[str, Any]
Known = Mapping[str, list[Entry]]  # {"camuto2020/fig3: C4 MLP": entries, the largest scale first}


def known(*roots: Path) -> Known:
    """Every claim that has an entry in these folders of results."""
    entries_of: dict[str, list[Entry]] = {}
    for folder in (path.parent for root in roots for path in root.glob("figures/*/*/figure.json")):
        name, (about, entries) = "/".join(folder.parts[-2:]), verdicts.judged(folder)
        for entry in entries:
            said = {"scale": about["scale"], **entry, "figure": name}
            entries_of.setdefault(f"{name}: {entry['id']}", []).append(said)
    for entries in entries_of.values():
        entries.sort(key=lambda e: -SCALES.index(e["scale"]))
    return entries_of


def best(entries: Iterable[Entry]) -> Entry | None:
    """Of the largest scale that judges it; of none: the largest scale."""
    entries = list(entries)
    decided = [entry for entry in entries if entry["holds"] is not None]
    return next(iter([*decided, *entries]), None)


@dataclass(frozen=True)
class Row:
    """An original claim with what is known of it."""

    original: Original
    deciding: dict[str, Entry | None]  # {"camuto2020/fig3: C4 MLP": …}; None: not run anywhere
    variants: dict[str, Entry] = field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        """True if all that decide it hold, False if one fails."""
        holds = [entry["holds"] if entry else None for entry in self.deciding.values()]
        return False if False in holds else None if None in holds else True

    @property
    def shown(self) -> list[Entry]:
        """The entries whose numbers speak for the verdict."""
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
        """Intervals where there are, or the first number; why, where it is not judged."""
        return list(dict.fromkeys(t for entry in self.shown for t in evidence(entry)[:2]))[:2]

    @property
    def parts(self) -> str:
        """The verdict of each claim that decides it: "C1 Boston ✓, C1 CIFAR-10 –"."""
        holds_of = {
            n.partition(": ")[2]: e["holds"] if e else None for n, e in self.deciding.items()
        }
        marks = (f"{id} {verdicts.VERDICTS[holds][1]}" for id, holds in holds_of.items())
        return ", ".join(marks) if len(holds_of) > 1 else ""

    @property
    def missing(self) -> str:
        """What would settle it; nothing where it is settled."""
        if self.holds is not None:
            return ""
        absent = {name.partition(": ")[2]: 0 for name, entry in self.deciding.items() if not entry}
        said = [self.original.settle] if self.original.settle else []
        return "; ".join([*said, *([f"not run yet: {', '.join(absent)}"] if absent else [])])


def rows(paper: str, known: Known) -> list[Row]:
    """The paper's claims in its order; none for a paper without a list of them."""
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
    """Claims of the paper's figures that belong to none of its own."""
    taken = {name for row in rows(paper, known) for name in (*row.deciding, *row.variants)}
    rest = {n: best(e) for n, e in known.items() if n.startswith(f"{paper}/") and n not in taken}
    return {name: entry for name, entry in rest.items() if entry}


def evidence(entry: Entry) -> list[str]:
    """What an entry's verdict rests on, in words: the intervals of the same verdict, where there
    are.
    """
    numbers = entry["numbers"]
    if entry["holds"] is None and "why" in numbers:
        return [re.split(r": put | and can't be fetched", numbers["why"])[0]]
    findings = {n: v for n, v in numbers.items() if isinstance(v, dict) and "asked" in v}
    own = {n: v for n, v in findings.items() if v["holds"] is entry["holds"]} or findings
    return [f"{name}: {verdicts.readable(value)}" for name, value in (own or numbers).items()]
