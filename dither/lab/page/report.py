"""The results of a folder as one static page, DIR/index.html: no script, no network, no torch.

Everything is read from DIR/figures/<paper>/<figure>/{figure.json, claims.json, figure.svg}, so the
page can be made anywhere.
"""

import base64
import html
import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from dither.errors import DitherError
from dither.lab import catalogue
from dither.lab.runs.store import write
from dither.lab.wording import duration

TEMPLATES = Path(__file__).with_name("templates")
DPI = 150  # of the PNGs
HEAVY = 1_500_000  # bytes of SVG above which the page shows the PNG instead
VERDICTS = {True: ("holds", "✓"), False: ("fails", "✗"), None: ("not judged", "–")}
THIN = "\u2009"  # space between thousands
MANY = 12  # values of an array that are shown
SPREADS = {"sd": "sd", "sem": "standard error"}


@dataclass(frozen=True)
class Shown:
    """One figure of the page."""

    about: dict[str, Any]
    claims: list[dict[str, Any]]
    picture: str  # HTML
    width: float  # of the picture, points

    @property
    def name(self) -> str:
        return self.about["name"]

    @property
    def anchor(self) -> str:
        return self.name.replace("/", "-")


@dataclass
class Paper:
    """One paper's share of the page."""

    name: str
    title: str
    figures: list[Shown] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # figures without results here

    def count(self, holds: bool | None) -> int:
        return sum(claim["holds"] is holds for figure in self.figures for claim in figure.claims)

    @property
    def scales(self) -> str:
        return ", ".join(dict.fromkeys(figure.about["scale"] for figure in self.figures))

    @property
    def seeds(self) -> str:
        counts = sorted({len(f.about["seeds"]) for f in self.figures if not f.about["problem"]})
        return " – ".join(map(str, dict.fromkeys([counts[0], counts[-1]]))) if counts else "–"


def write_page(root: Path) -> Path:
    """Make DIR/index.html anew from what is in DIR/figures."""
    papers = _papers(root)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "spelt": spelt,
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


def spelt(number: Any) -> str:
    """A number a claim looked at, as people read it: "0.832 ± 0.010 (sd of 5)"."""
    if isinstance(number, dict) and number.get("kind") == "interval":
        return finding(number)
    if isinstance(number, dict):
        kind, n = SPREADS.get(number.get("kind", ""), ""), number.get("n")
        note = f" ({kind}{f' of {n}' if n else ''})" if kind else ""
        return _with_spread(number["mean"], number["spread"]) + note
    if isinstance(number, list):
        more = f", … ({len(number)} in all)" if len(number) > MANY else ""
        return (", ".join(map(spelt, number[:MANY])) or "none") + more
    if isinstance(number, bool):
        return "yes" if number else "no"
    if isinstance(number, float) and 1000 <= abs(number) < 1e7:
        return f"{number:,.0f}".replace(",", THIN)
    if isinstance(number, float):
        return re.sub(r"e([+-])0?", r"e\1", f"{number:.3g}").replace("e+", "e")
    return "–" if number is None else str(number)


def finding(number: dict[str, Any]) -> str:
    """What came of a comparison: "0.013 [0.004, 0.022], n = 5, asked > 0.01: holds"."""
    mean, low, high = (spelt(number[part]) for part in ("mean", "low", "high"))
    ends = "" if number["low"] == "nan" else f" [{low}, {high}]"
    word = VERDICTS[number["holds"]][0]
    return f"{mean}{ends}, n = {number['n']}, asked {number['asked']}: {word}"


def by_reason(missing: dict[str, str]) -> list[tuple[str, list[str]]]:
    """[(why, labels)]: the runs that are missing for the same reason, together."""
    found: dict[str, list[str]] = {}
    for label, why in missing.items():
        found.setdefault(why, []).append(label)
    return list(found.items())


def _with_spread(mean: Any, spread: Any) -> str:
    """The spread with two digits, the mean to the same decimal."""
    if not (isinstance(mean, float) and isinstance(spread, float) and spread > 0):
        return f"{spelt(mean)} ± {spelt(spread)}"
    decimals = 1 - math.floor(math.log10(spread))
    if not 0 <= decimals <= 6 or abs(mean) >= 1000:
        return f"{spelt(mean)} ± {spelt(spread)}"
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}"


def _papers(root: Path) -> list[Paper]:
    shown = {
        figure.name: figure
        for path in root.glob("figures/*/*/figure.json")
        if (figure := _shown(path.parent))
    }
    known = catalogue.names()
    papers: dict[str, Paper] = {}
    for name in [*known, *sorted(set(shown) - set(known))]:
        paper = papers.setdefault(key := name.split("/")[0], Paper(key, catalogue.paper(key)))
        if name in shown:
            paper.figures.append(shown[name])
        else:
            paper.waiting.append(name)
    return list(papers.values())


def _shown(folder: Path) -> Shown:
    about, claims = judged(folder)
    return Shown(about, claims, *_picture(folder, about["name"], about["title"]))


def judged(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What figure.json and claims.json of a figure's folder say."""
    try:
        about = json.loads((folder / "figure.json").read_text(encoding="utf-8"))
        claims = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DitherError(
            f"{folder} can't be read ({error}): delete it and run `dither reproduce` again"
        ) from error
    return about, claims


def _picture(folder: Path, name: str, title: str) -> tuple[str, float]:
    """HTML and width in points; nothing if the figure was not drawn."""
    svg, png = folder / "figure.svg", folder / "figure.png"
    if svg.is_file() and svg.stat().st_size <= HEAVY:
        return _inline(svg.read_text(encoding="utf-8"), name, title)
    if png.is_file():
        data = png.read_bytes()
        (width,) = struct.unpack(">I", data[16:20])
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        return f'<img src="{source}" alt="{html.escape(title)}">', width * 72 / DPI
    return "", 0


def _inline(svg: str, name: str, title: str) -> tuple[str, float]:
    """An SVG file as a part of a page: ids of its own, no prologue, no metadata, no size."""
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.S
    )
    prefix = re.sub(r"\W+", "-", name)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    width = float(match[1]) if (match := re.search(r'\bwidth="([\d.]+)pt"', svg)) else 460.0
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    label = f'role="img" aria-label="{html.escape(title)}" stroke-linejoin="round"'
    return f"{head} {label}>{rest}", width


def _prose(text: str) -> Markup:
    """Docstring prose: `names` are set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _paragraphs(text: str) -> Sequence[str]:
    return [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
