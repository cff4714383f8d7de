"""The results of a folder as one static page, DIR/index.html: no script, no network, no torch.

It reads DIR/figures/<paper>/<figure>/{figure.json, claims.json, figure.svg} and nothing else, so
the page can be made on any machine.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from dither.errors import DitherError
from dither.lab import catalogue
from dither.lab.page import originals, picture
from dither.lab.page.picture import DPI as DPI
from dither.lab.page.verdicts import VERDICTS, judged, readable
from dither.lab.runs.store import write
from dither.lab.wording import duration

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Shown:
    """One figure of the page."""

    about: dict[str, Any]
    claims: list[dict[str, Any]]
    picture: str  # HTML
    width: float  # of the picture, points
    problems: tuple[str, ...] = ()  # what could not be read

    @property
    def name(self) -> str:
        return self.about["name"]

    @property
    def anchor(self) -> str:
        return self.name.replace("/", "-")

    @property
    def groups(self) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """[(claim, its variants)]: claims whose ids begin with the same number, as C4."""
        by_number: dict[str, list[dict[str, Any]]] = {}
        for claim in self.claims:
            number = re.match(r"[A-Z]+\d+(?=\W|$)", claim["id"])
            by_number.setdefault(number[0] if number else claim["id"], []).append(claim)
        return [(first, others) for first, *others in by_number.values()]


@dataclass
class Paper:
    """The part of the page about one paper."""

    name: str
    title: str
    rows: list[originals.Row] = field(default_factory=list)  # its own claims
    figures: list[Shown] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # figures without results here
    unread: list[str] = field(default_factory=list)  # sentences about figures that can't be read

    def count(self, holds: bool | None) -> int:
        """The number of its original claims with this verdict; without a list, of all claims."""
        claims = (claim for figure in self.figures for claim in figure.claims)
        verdicts = [row.holds for row in self.rows if row.original.counts] if self.rows else [
            claim["holds"] for claim in claims if claim.get("counts", True)
        ]  # fmt: skip
        return sum(verdict is holds for verdict in verdicts)

    @property
    def scales(self) -> str:
        return ", ".join(dict.fromkeys(figure.about["scale"] for figure in self.figures))

    @property
    def seeds(self) -> str:
        there = (f.about for f in self.figures if not f.about.get("problem"))
        counts = sorted({len(about["seeds"]) for about in there})
        return " – ".join(map(str, dict.fromkeys([counts[0], counts[-1]]))) if counts else "–"


def write_page(root: Path) -> Path:
    """Write DIR/index.html from DIR/figures."""
    papers = _papers(root)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "readable": readable,
        "paragraphs": _paragraphs,
        "prose": _prose,
        "duration": duration,
        "by_reason": by_reason,
        "title": catalogue.title,
    }
    environment.globals |= {"verdicts": VERDICTS}
    page = root / "index.html"
    write(page, environment.get_template("report.html.j2").render(papers=papers))
    return page


def problems(root: Path) -> list[str]:
    """A sentence for each figure, or picture, in DIR/figures that the page has to leave out."""
    return [sentence for _, figure in _found(root) for sentence in figure.problems]


def by_reason(missing: dict[str, str]) -> list[tuple[str, list[str]]]:
    """[(why, labels)]: the missing runs, grouped by reason."""
    labels_of: dict[str, list[str]] = {}
    for label, why in missing.items():
        labels_of.setdefault(why, []).append(label)
    return list(labels_of.items())


def _papers(root: Path) -> list[Paper]:
    found = dict(_found(root))
    unread = {name for name, figure in found.items() if not figure.about}
    known, judged_here = catalogue.names(), originals.known(root, unread=unread)
    papers: dict[str, Paper] = {}
    for name in [*known, *sorted(set(found) - set(known))]:
        if (key := name.split("/")[0]) not in papers:
            papers[key] = Paper(key, catalogue.paper(key), originals.rows(key, judged_here))
        paper = papers[key]
        if name not in found:
            paper.waiting.append(name)
        elif found[name].about:
            paper.figures.append(found[name])
        else:
            paper.unread += found[name].problems
    return list(papers.values())


def _found(root: Path) -> Iterator[tuple[str, Shown]]:
    """The figures with results in DIR/figures. One that can't be read has a sentence only."""
    for folder in (path.parent for path in sorted(root.glob("figures/*/*/figure.json"))):
        name = "/".join(folder.parts[-2:])
        try:
            about, claims = judged(folder)
        except DitherError as error:
            yield name, Shown({}, [], "", 0.0, (str(error),))
            continue
        try:
            yield name, Shown(about, claims, *picture.of(folder, name, about["title"]))
        except DitherError as error:
            said = about | {"no picture": str(error)}
            yield name, Shown(said, claims, "", 0.0, (str(error),))


def _prose(text: str) -> Markup:
    """Docstring prose: `names` are set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _paragraphs(text: str) -> Sequence[str]:
    return [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
